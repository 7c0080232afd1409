"""Roots behave the same on all available file systems."""

from __future__ import annotations

import hashlib
import os
import subprocess
import uuid
from pathlib import Path

import pytest

from bootpig.storage.errors import StoreError, StoreFull
from bootpig.storage.root import Root


@pytest.fixture(params=["local", "file", "memory", "s3"])
def root(request, tmp_path: Path) -> Root:
    if request.param == "s3":
        request.getfixturevalue("s3")
    name = uuid.uuid4().hex
    url = {
        "local": str(tmp_path),
        "file": f"file://{tmp_path}",
        "memory": f"memory://{name}",
        "s3": f"s3://data/{name}",
    }
    return Root(url[request.param])


def test_what_is_written_is_read_and_listed(root: Root) -> None:
    root.write("a/b/one.bin", b"1")
    root.write("a/b/two.bin", b"22")
    assert root.read("a/b/one.bin") == b"1"
    assert root.names("a/b") == {"one.bin": 1, "two.bin": 2}
    assert root.folders("a") == ["b"]
    assert root.exists("a/b/two.bin") and not root.exists("a/b/three.bin")
    root.write("a/b/one.bin", b"new")
    assert root.read("a/b/one.bin") == b"new"
    root.remove("a/b/one.bin")
    root.remove("a/b/one.bin")
    assert root.names("a/b") == {"two.bin": 2}


def test_a_log_grows(root: Root) -> None:
    for line in (b"one\n", b"two\n"):
        root.append("a/log.jsonl", line)
    assert root.read("a/log.jsonl") == b"one\ntwo\n"
    assert [root.read_end("a/log.jsonl", size) for size in (3, 8, 9)] == [b"wo\n", b"one\ntwo\n", b"one\ntwo\n"]
    with pytest.raises(FileNotFoundError):
        root.read_end("a/none", 3)


def test_a_file_is_copied_in_and_out(root: Root, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(range(256)) * 100)
    root.upload("a/file", tmp_path / "in")
    root.download("a/file", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    assert root.sha256("a/file") == hashlib.sha256((tmp_path / "in").read_bytes()).hexdigest()
    assert root.size("a/file") == 25600 and root.size("a/none") is None
    root.remove("a", recursive=True)
    assert root.names("a") == {} and root.size("a/file") is None


def test_nothing_there(root: Root) -> None:
    assert root.names("nowhere") == {} and root.folders("nowhere") == []
    assert root.read_many([]) == {}
    with pytest.raises(FileNotFoundError):
        root.read("nowhere")


def test_many_are_read_together_and_the_missing_left_out(root: Root) -> None:
    for i in range(5):
        root.write(f"many/{i}", bytes([i]))
    found = root.read_many([f"many/{i}" for i in range(7)])
    assert found == {f"many/{i}": bytes([i]) for i in range(5)}


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Root(str(tmp_path))
    root.write("part", b"old")

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StoreFull, match="no space left; free some"):
        root.write("part", b"new")
    assert root.read("part") == b"old" and [p.name for p in tmp_path.iterdir()] == ["part"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError) as error:
        Root(str(tmp_path / "file")).check_writable()
    assert str(tmp_path / "file") in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_protocol_is_one_line() -> None:
    with pytest.raises(StoreError, match="root: 'nfs3://x'"):
        Root("nfs3://x")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs, which takes root")
def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine does not let its root mount")
    try:
        root = Root(str(disk))
        root.write("small", b"kept")
        with pytest.raises(StoreFull):
            root.write("large", bytes(200_000))
        assert root.read("small") == b"kept" and list(root.names("")) == ["small"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
