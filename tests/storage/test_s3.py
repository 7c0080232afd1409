"""A store on S3 over HTTP: transient and permanent faults, and the number of calls."""

from __future__ import annotations

import socket
import uuid
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
import s3fs

from bootpig.storage import retry as patience
from bootpig.storage.errors import CorruptPart, StoreError, StoreUnavailable
from bootpig.storage.fingerprint import bytes_digest
from bootpig.storage.folders import check_folder, fetch_folder, publish_folder, read_manifest
from bootpig.storage.parts import Parts
from bootpig.storage.root import Root
from tests.servers.s3 import FAULTS, READER, SECRET, Faults

ROWS = [{"id": "a", "unit": 0, "status": "ok", "reason": ""}]


@pytest.fixture
def root(s3: Faults) -> Root:
    return Root(f"s3://data/{uuid.uuid4().hex}")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every fault reach our own retries, with almost no pauses."""
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"retries": {"total_max_attempts": 1}}})
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.01)


@pytest.mark.parametrize("kind", FAULTS)
def test_every_kind_of_fault_passes(s3: Faults, hasty: None, kind: str, tmp_path: Path) -> None:
    root = Root(f"s3://data/{uuid.uuid4().hex}")
    s3.rate, s3.kinds, s3.in_a_row, s3.late_seconds = 0.3, (kind,), patience.ATTEMPTS - 1, 0.02
    (tmp_path / "in").write_bytes(bytes(range(256)) * 300)
    root.upload("folder/file", tmp_path / "in")
    for i in range(8):
        root.write(f"folder/{i}", bytes([i]) * 1000)
    assert root.read_many([f"folder/{i}" for i in range(9)]) == {f"folder/{i}": bytes([i]) * 1000 for i in range(8)}
    assert root.names("folder") == {"file": 76800, **{str(i): 1000 for i in range(8)}}
    root.download("folder/file", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    assert root.read("folder/file") == (tmp_path / "in").read_bytes()
    root.remove("folder/0")
    root.remove("folder/0")
    assert root.size("folder/0") is None and root.size("folder/1") == 1000
    assert any(call.fault for call in s3.calls)


def test_an_answer_that_takes_too_long_is_asked_for_again(s3: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"retries": {"total_max_attempts": 1}, "read_timeout": 0.5}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": own})
    root = Root(f"s3://data/{uuid.uuid4().hex}")
    s3.rate, s3.kinds, s3.in_a_row, s3.late_seconds = 1.0, ("late",), 1, 1.5
    root.write("x", b"1")
    assert [call.fault for call in s3.calls] == ["late", ""]


def test_a_server_that_takes_a_write_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """aiohttp would wait for `100 Continue` forever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        own = {"retries": {"total_max_attempts": 1}, "read_timeout": 0.2}
        conf = {"endpoint_url": f"http://127.0.0.1:{silent.getsockname()[1]}", "key": "k", "secret": "s"}
        monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": own, **conf})
        monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.01)
        with pytest.raises(StoreUnavailable, match=r"cannot write 'x': .*Timeout"):
            Root("s3://data/silent").write("x", b"1")


def test_a_fault_costs_a_block_not_those_before_it(
    s3: Faults, hasty: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bootpig.storage.root.BLOCK_BYTES", 1000)
    root = Root(f"s3://data/{uuid.uuid4().hex}")
    data = bytes(range(256)) * 40
    root.write("file", data)
    s3.rate, s3.kinds, s3.in_a_row, s3.calls = 1.0, ("cut",), 1, []
    assert root.sha256("file") == bytes_digest(data)
    assert [call.method for call in s3.calls] == ["HEAD"] * 2 + ["GET"] * 2 * 11


def test_what_a_removal_has_left_is_removed_again(s3: Faults, hasty: None) -> None:
    root = Root(f"s3://data/{uuid.uuid4().hex}")
    for name in ("run/a", "run/deep/b", "runs"):
        root.write(name, b"1")
    s3.rate, s3.kinds, s3.in_a_row = 1.0, ("kept",), 1
    root.remove("run", recursive=True)
    removals = [call.fault for call in s3.calls if call.query == "delete"]
    assert removals == ["kept", ""]
    assert (root.folders(""), root.names("")) == ([], {"runs": 1})


def test_a_store_that_keeps_failing_is_given_up(s3: Faults, hasty: None, root: Root) -> None:
    root = Root(root.url)
    s3.rate, s3.kinds = 1.0, ("slow_down",)
    with pytest.raises(StoreUnavailable, match=r"cannot write 'x': .*run again") as error:
        root.write("x", b"1")
    assert len(s3.calls) == patience.ATTEMPTS and "\n" not in str(error.value)
    s3.calls = []
    with pytest.raises(StoreUnavailable, match="cannot read 'x'"):
        root.read_many(["x", "y"])
    assert len(s3.calls) == 2 * patience.ATTEMPTS


@pytest.mark.parametrize(("key", "calls"), [("AKIANOBODY0000000000", 1), (READER, 1)])
def test_refused_access_is_said_at_once(s3: Faults, monkeypatch: pytest.MonkeyPatch, key: str, calls: int) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(StoreError, match=r"access refused \(.*\); check the credentials") as error:
            Root("s3://data/x").check_writable()
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
    assert len(s3.calls) == calls and not isinstance(error.value, StoreUnavailable)
    assert SECRET not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("refusal", ["no_checksums", "other_sum"])
def test_a_server_without_checksums_names_the_setting_that_helps(
    s3: Faults, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    s3.checksums = refusal
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match=r"set AWS_REQUEST_CHECKSUM_CALCULATION=when_required") as told:
        Root(f"s3://data/{uuid.uuid4().hex}").check_writable()
    assert "\n" not in str(told.value)
    assert sum(call.method == "PUT" for call in s3.calls) == 1, "asked once: it stays so"
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    Root(f"s3://data/{uuid.uuid4().hex}").check_writable()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_missing_bucket_is_named(s3: Faults) -> None:
    root = Root("s3://nowhere/x")
    for use in (root.check_writable, lambda: root.names("a"), lambda: root.read_many(["a"]), lambda: root.read("a")):
        with pytest.raises(StoreError, match=r"^root: 's3://nowhere/x' → there is no such bucket"):
            use()
    with pytest.raises(StoreError, match="Invalid bucket name"):
        Root("s3://no bucket!/x").names("a")


def test_without_credentials_it_says_so(s3: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(StoreError, match=r"access refused \(NoCredentialsError"):
            Root("s3://data/x").check_writable()
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
    assert s3.calls == []


def test_credentials_in_the_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(StoreError, match="contains credentials") as error:
        Root("s3://key:hunter2@data/x")
    assert "hunter2" not in str(error.value)


def test_what_another_has_written_is_seen_at_once(s3: Faults, root: Root) -> None:
    root.write("a/one", b"1")
    assert root.names("a") == {"one": 1} and not root.exists("a/two")
    s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(root.join("a/two"), b"22")
    assert root.names("a") == {"one": 1, "two": 2} and root.size("a/two") == 2


def test_a_stage_is_decided_by_one_listing_and_one_reading(s3: Faults, root: Root) -> None:
    parts = Parts(root, "segment", "f00d")
    for unit in range(6):
        parts.commit(unit, ROWS, pa.schema([]), bytes([unit]), "above")
    parts.note_failure(7, "boom")
    s3.calls = []
    found = parts.listing(range(10))
    assert set(found.markers) == set(range(6)) and found.failures == {7: "boom"}
    assert [call.lists for call in s3.calls].count(True) == 1
    assert sorted(call.method for call in s3.calls) == ["GET"] * 8, "a listing, six markers, one message"
    s3.calls = []
    assert parts.whole(3) == found.markers[3]
    assert not any(call.lists for call in s3.calls)


def test_a_marker_is_one_put_and_comes_last(s3: Faults, root: Root) -> None:
    Parts(root, "segment", "f00d").commit(0, ROWS, pa.schema([]), b"payload", "above")
    puts = [call.path.rsplit("/", 1)[-1] for call in s3.calls if call.method == "PUT"]
    assert len(puts) == 2 and puts[0].endswith(".tar") and puts[1] == "part-00000.parquet"


@pytest.mark.slow
def test_a_large_file_goes_up_in_parts_and_is_there_whole_or_not(s3: Faults, root: Root, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"0123456789abcdef" * (7 * 2**20))
    s3.rate, s3.kinds = 0.1, ("slow_down",)
    root.upload("weights", tmp_path / "in")
    assert any("uploadId" in call.query for call in s3.calls)
    s3.rate = 0.0
    assert root.size("weights") == 112 * 2**20
    root.download("weights", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()


def test_a_folder_is_fetched_once_and_checked(s3: Faults, root: Root, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_bytes(b"w" * 1000)
    published = publish_folder(root, "result", tmp_path / "model")
    assert read_manifest(root, "result") == published and check_folder(root, published) == []
    s3.calls = []
    assert (fetch_folder(root, published, tmp_path) / "weights").read_bytes() == b"w" * 1000
    assert [call.method for call in s3.calls] == ["GET"]
    root.write(f"{published.path}/weights", b"x" * 1000)
    assert check_folder(root, published) == ["weights"]
    with pytest.raises(CorruptPart, match="weights missing or altered"):
        fetch_folder(root, published, tmp_path)
