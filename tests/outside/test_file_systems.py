"""File systems that refuse a call: what is not needed is skipped, what is needed is named.

No such mount can be made here, so the calls themselves answer as one does.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import filelock
import pytest

from bootpig.flows import server
from bootpig.models.pretrained.downloads import fetch
from bootpig.models.pretrained.source import ModelError, ModelSource
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.device_lock import exclusive
from bootpig.storage.errors import StoreError
from bootpig.storage.root import Root

REFUSED = [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL]


def refuse(monkeypatch: pytest.MonkeyPatch, module: Any, call: str, number: int) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, call, refused)


@pytest.mark.parametrize("number", REFUSED)
@pytest.mark.parametrize("call", ["fchmod", "fsync"])
def test_a_store_does_without_modes_and_flushes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    refuse(monkeypatch, os, call, number)
    root = Root(str(tmp_path))
    root.check_writable()
    root.write("a/b", b"1")
    root.upload("a/c", tmp_path / "a" / "b")
    assert root.names("a") == {"b": 1, "c": 1}


def test_a_disk_that_fails_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, os, "fsync", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        Root(str(tmp_path)).write("a", b"1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", REFUSED)
def test_a_store_without_atomic_rename_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse(monkeypatch, os, "replace", number)
    with pytest.raises(StoreError, match="refuses to rename a file") as told:
        Root(str(tmp_path)).check_writable()
    assert "\n" not in str(told.value) and str(tmp_path) in str(told.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_prefect_home_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    refuse(monkeypatch, fcntl, "flock", number)
    with pytest.raises(server.ServerError, match=r"^PREFECT_HOME: .* no file locks"), server._first_start_lock():
        pass


def test_a_prefect_home_that_is_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "file"))
    with pytest.raises(server.ServerError, match=r"^PREFECT_HOME: .* writable folder"), server._first_start_lock():
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_device_locks_need_a_file_system_with_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    refuse(monkeypatch, fcntl, "lockf", number)
    with pytest.raises(InputError, match=r"^TMPDIR: .* no file locks"), exclusive(["pretend:0"]):
        pass


@pytest.mark.parametrize("number", REFUSED)
def test_device_locks_do_without_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    refuse(monkeypatch, os, "fchmod", number)
    with exclusive(["pretend:0"]) as name:
        assert name == "pretend:0"


def test_a_download_cache_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ModelSource(
        "segment.sam", "https://example.org/sam.pth", str(tmp_path / "cache" / "sam.pth"), sha256="0" * 64
    )

    def refused(self: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "_acquire", refused)
    with pytest.raises(ModelError, match=r"^segment.sam: .* cannot be used as a cache .*XDG_CACHE_HOME"):
        fetch(source)
