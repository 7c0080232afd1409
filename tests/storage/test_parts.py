"""Parts: payload before marker, and equal content gives equal bytes."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from bootpig.storage import parts as parts_module
from bootpig.storage.errors import CorruptPart
from bootpig.storage.fingerprint import canonical_json, digest
from bootpig.storage.folders import check_folder, fetch_folder, publish_folder, read_manifest, withdraw_folder
from bootpig.storage.parts import Listing, Marker, Parts
from bootpig.storage.root import Root
from bootpig.storage.shards import read_shard, write_shard

COLUMNS = pa.schema([("score", pa.float64())])
ROWS = [
    {"id": "a", "unit": 3, "status": "ok", "reason": "", "score": 0.5},
    {"id": "b", "unit": 3, "status": "rejected", "reason": "blank"},
]


def test_a_shard_is_what_tarfile_writes_and_plain_webdataset_reads_it(tmp_path: Path) -> None:
    draw = random.Random(0)
    members = [
        ("a.json", b"{}"),
        ("a.target.png", b"png"),
        ("b.json", b"{1}"),
        ("b.é.txt", b""),
        ("c" * 96 + ".png", b"x"),
    ]
    members += [(f"{i:08d}.bin", draw.randbytes(size)) for i, size in enumerate((511, 512, 513, 70_000))]
    data = write_shard(members)
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(content), 0, 0o644
            archive.addfile(info, io.BytesIO(content))
    assert data == expected.getvalue()
    (tmp_path / "x.tar").write_bytes(data)
    rows = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False))
    theirs = [(row["__key__"], {k: v for k, v in row.items() if not k.startswith("__")}) for row in rows]
    assert list(read_shard(data)) == theirs
    assert theirs[0] == ("a", {"json": b"{}", "target.png": b"png"}) and len(theirs) == 7


def test_a_name_too_long_for_a_shard_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than 100 bytes"):
        write_shard([("é" * 49 + ".png", b"")])


def test_an_empty_shard_is_legal() -> None:
    assert list(read_shard(write_shard([]))) == []


def test_a_broken_shard_is_an_error() -> None:
    whole = write_shard([("a.json", b"{}"), ("b.json", b"{}" * 300)])
    flipped = bytearray(whole)
    flipped[1024 + 3] ^= 1  # in the second name, against its header's checksum
    nowhere = (b"not a tar archive at all" * 50, b"", whole[:100])
    for broken, at in [
        *((data, 0) for data in nowhere),
        (whole[:2000], 1024),
        (bytes(flipped), 1024),
        (whole[:2560], 2560),
    ]:
        with pytest.raises(CorruptPart, match=rf"^shard: .* at byte {at}$"):
            list(read_shard(broken))


def test_commit_then_read(tmp_path: Path) -> None:
    parts = Parts(Root(str(tmp_path)), "segment", "f00d")
    marker = parts.commit(3, ROWS, COLUMNS, b"payload", "above")
    assert marker.payload == "part-00003-239f59ed.tar"
    again = parts.marker(3)
    assert again is not None and again.digest == marker.digest and again.input == "above"
    assert [row["score"] for row in again.rows] == [0.5, None]
    assert parts.payload(3, again) == b"payload"
    table = pq.read_table(tmp_path / "segment/f00d/part-00003.parquet")
    assert table.schema.names == ["id", "unit", "status", "reason", "score"]


def test_equal_content_gives_equal_markers(tmp_path: Path) -> None:
    markers = [Parts(Root(str(tmp_path / n)), "s", "f").commit(0, ROWS, COLUMNS, b"p", "i") for n in "ab"]
    assert markers[0].data == markers[1].data
    assert Parts(Root(str(tmp_path)), "s", "f").commit(0, ROWS, COLUMNS, b"q", "i").digest != markers[0].digest


def test_no_byte_of_a_marker_changes_unseen(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "id": '"seal": "' + "0" * 64}, ROWS[1]]  # nor can a row pass for the seal
    marker = Parts(Root(str(tmp_path)), "s", "f").commit(0, rows, COLUMNS, b"p", "i")
    assert Marker.parse(marker.data).rows == marker.rows and marker.rows[0]["id"] == rows[0]["id"]
    for at in range(len(marker.data)):
        flipped = bytearray(marker.data)
        flipped[at] ^= 1 << at % 8
        with pytest.raises(CorruptPart, match=r"^marker: "):
            Marker.parse(bytes(flipped))
    for broken in (b"", marker.data[:-9], marker.data[9:], marker.data + b"\0"):
        with pytest.raises(CorruptPart, match=r"^marker: "):
            Marker.parse(broken)


def test_without_its_marker_a_payload_is_nothing(tmp_path: Path) -> None:
    parts = Parts(Root(str(tmp_path)), "s", "f")
    marker = parts.commit(0, ROWS, COLUMNS, b"p", "i")
    (tmp_path / "s/f/part-00000.parquet").unlink()
    assert parts.listing([0]) == Listing({}, set(), {}) and parts.marker(0) is None
    assert (tmp_path / "s/f" / marker.payload).exists()


def test_altered_and_missing_payloads_are_named(tmp_path: Path) -> None:
    parts = Parts(Root(str(tmp_path)), "s", "f")
    marker = parts.commit(7, ROWS, COLUMNS, b"payload", "i")
    (tmp_path / "s/f" / marker.payload).write_bytes(b"PAYLOAD")
    with pytest.raises(CorruptPart, match=r"s unit 7: .*checksum; run again"):
        parts.payload(7, marker)
    parts.discard_payload(7)
    assert parts.listing([7]) == Listing({}, {7}, {}) and parts.whole(7) is None
    with pytest.raises(CorruptPart, match="missing; run again"):
        parts.payload(7, marker)


def test_failures_and_logs_are_next_to_the_part(tmp_path: Path) -> None:
    parts = Parts(Root(str(tmp_path)), "s", "f")
    parts.note_failure(2, "boom")
    parts.log(2, {"event": "failed"})
    parts.log(2, {"event": "done"})
    assert parts.listing([]).failures == {2: "boom"}
    parts.commit(2, ROWS, COLUMNS, b"p", "i")
    assert parts.listing([]).failures == {}
    assert (tmp_path / "s/f/log-00002.jsonl").read_text().count("\n") == 2


def test_a_folder_is_published_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "model").mkdir(parents=True)
    (source / "model/weights").write_bytes(b"w")
    (source / "log").write_bytes(b"l")
    root = Root(str(tmp_path / "store"))
    assert read_manifest(root, "result") is None
    published = publish_folder(root, "result", source)
    assert read_manifest(root, "result") == published and set(published.files) == {"log", "model/weights"}
    folder = fetch_folder(root, published, tmp_path)
    assert folder == tmp_path / "store" / published.path and (folder / "model/weights").read_bytes() == b"w"
    (folder / "model/weights").write_bytes(b"x")
    assert check_folder(root, published) == ["model/weights"]
    with pytest.raises(CorruptPart, match="model/weights"):
        fetch_folder(root, published, tmp_path)
    (source / "log").write_bytes(b"another")
    again = publish_folder(root, "result", source)
    assert check_folder(root, again) == [] and root.folders("result") == [again.path.removeprefix("result/")]
    withdraw_folder(root, "result", published)  # which is replaced already
    assert read_manifest(root, "result") == again
    withdraw_folder(root, "result", again)
    assert read_manifest(root, "result") is None and root.folders("result") == []


def test_two_that_publish_one_folder_at_once_leave_a_whole_one(tmp_path: Path) -> None:
    turns = threading.Barrier(2)

    class InTurns(Root):
        """Two writers in lockstep: both write a file before either writes the next."""

        def upload(self, path: str, file: Path) -> None:
            super().upload(path, file)
            turns.wait(10)

    def publish(writer: str) -> None:
        for number in range(8):
            (tmp_path / writer / str(number)).write_text(f"{number}, by {writer}")
        publish_folder(InTurns(str(tmp_path / "store")), "result", tmp_path / writer)

    for writer in ("one", "two"):
        (tmp_path / writer).mkdir()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(publish, ("one", "two")))
    root = Root(str(tmp_path / "store"))
    published = read_manifest(root, "result")
    assert published is not None and check_folder(root, published) == []
    assert len({file.read_text()[3:] for file in (tmp_path / "store" / published.path).iterdir()}) == 1


def test_fingerprints() -> None:
    assert canonical_json({"b": 1, "a": [1.0, "é"]}) == '{"a":[1.0,"é"],"b":1}'.encode()
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(float("nan"))


def commit(root: Root, payload: bytes = b"payload", rows: list[dict] | None = None, input: str = "up") -> Marker:
    return Parts(root, "encode", "abc").commit(3, ROWS if rows is None else rows, COLUMNS, payload, input)


def as_earlier_release(root: Root, marker: Marker) -> Marker:
    """Rewrite the marker in the format of releases before the content digest."""
    table = pq.read_table(pa.BufferReader(marker.data))
    facts = json.loads(table.schema.metadata[b"bootpig"])
    del facts["digest"]
    facts["seal"] = "0" * 64
    buffer = io.BytesIO()
    described = table.replace_schema_metadata({b"bootpig": json.dumps(facts, sort_keys=True).encode()})
    pq.write_table(described, buffer, compression="zstd")
    data = parts_module._sealed(buffer.getvalue())
    root.write("encode/abc/part-00003.parquet", data)
    return Marker.parse(data)


def test_the_digest_is_the_same_whatever_library_writes_the_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    first = commit(Root("memory://digest-1"))
    real = pq.write_table
    monkeypatch.setattr(pq, "write_table", lambda t, b, **k: real(t, b, compression="snappy", version="1.0"))
    second = commit(Root("memory://digest-2"), input="another")
    assert first.data != second.data and first.digest == second.digest == second.content()
    assert Marker.parse(first.data).digest == first.digest


@pytest.mark.parametrize("value", [0.25, float("nan"), float("inf"), float("-inf"), -0.0, None])
def test_the_digest_tells_values_apart(value: float | None) -> None:
    rows = [{**ROWS[0], "score": value}, ROWS[1]]
    changed = commit(Root("memory://digest-3"), rows=rows)
    assert changed.digest != commit(Root("memory://digest-4")).digest
    assert changed.digest == commit(Root("memory://digest-5"), rows=rows).digest == changed.content()


def test_the_digest_covers_payload_and_order() -> None:
    made = [
        commit(Root("memory://digest-6")),
        commit(Root("memory://digest-7"), b"other"),
        commit(Root("memory://digest-8"), rows=ROWS[::-1]),
        commit(Root("memory://digest-9"), rows=ROWS[:1]),
    ]
    assert len({marker.digest for marker in made}) == 4


def test_a_marker_of_an_earlier_release_keeps_its_digest_when_the_unit_comes_out_the_same() -> None:
    root = Root("memory://earlier")
    old = as_earlier_release(root, commit(root))
    assert old.digest == hashlib.sha256(old.data).hexdigest() != commit(Root("memory://earlier-2")).digest
    assert commit(root).digest == old.digest, "nothing below becomes stale"
    root.remove(f"encode/abc/{old.payload}")
    again = commit(root)
    assert again.digest == again.content() and Parts(root, "encode", "abc").payload(3, again) == b"payload"
    assert commit(root, b"changed").digest not in (old.digest, again.digest)


@pytest.mark.parametrize("name", ["../../train/abc/part-00003-01234567.tar", "/etc/passwd", "pipe:rm -rf .", "", 7])
def test_a_marker_cannot_name_a_payload_elsewhere(name: object) -> None:
    root = Root("memory://hostile")
    table = pq.read_table(pa.BufferReader(commit(root).data))
    facts = json.loads(table.schema.metadata[b"bootpig"]) | {"payload": name, "seal": "0" * 64}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({b"bootpig": json.dumps(facts).encode()}), buffer)
    with pytest.raises(CorruptPart):
        Marker.parse(parts_module._sealed(buffer.getvalue()))


def test_payloads_that_no_marker_names_are_found() -> None:
    root = Root("memory://replaced")
    first = commit(root)
    parts = Parts(root, "encode", "abc")
    assert parts.replaced() == {}
    second = commit(root, b"another")
    assert parts.replaced() == {first.payload: len(b"payload")}
    root.write("encode/abc/part-00009-01234567.tar", b"a writer is about to name it")
    root.remove(f"encode/abc/{second.payload}")
    assert parts.replaced() == {}, "a unit without a whole marker keeps what it has"


def test_known_markers_are_not_read_again_unless_their_unit_was_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Root("memory://known")
    parts = Parts(root, "encode", "abc")
    for unit in range(4):
        parts.commit(unit, ROWS, COLUMNS, b"payload %d" % unit, "up")
    read: list[str] = []
    real = root.read_many
    monkeypatch.setattr(root, "read_many", lambda paths: read.extend(paths) or real(paths))  # type: ignore[func-returns-value]
    first = parts.listing(range(4)).markers
    assert len(read) == 4
    read.clear()
    assert parts.listing(range(4), first).markers == first and read == []
    again = parts.commit(2, ROWS[:1], COLUMNS, b"another", "up")
    found = parts.listing(range(4), first).markers
    assert read == ["encode/abc/part-00002.parquet"] and found[2] == again
    root.remove(f"encode/abc/{first[1].payload}")
    assert set(parts.listing(range(4), first).markers) == {0, 2, 3}
