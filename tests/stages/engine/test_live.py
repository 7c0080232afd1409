"""The log of a running reduce stage is in the store while it runs and after it failed, not once its result is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bootpig.stages.engine import live
from bootpig.stages.engine.live import copied, live_path
from bootpig.storage.errors import StoreUnavailable
from bootpig.storage.root import Root


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stored(root: Root) -> bytes:
    return root.read(live_path("train/f")) if root.exists(live_path("train/f")) else b""


def test_it_follows_the_file_and_goes_with_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "COPY_SECONDS", 0.02)
    monkeypatch.setattr(live, "COPY_BYTES", 10)
    root, log = Root(str(tmp_path / "store")), tmp_path / "log.jsonl"
    with copied(root, "train/f", log):
        log.write_bytes(b"one\n")
        until(lambda: stored(root) == b"one\n")
        log.write_bytes(b"one\ntwo\nthree\n")
        until(lambda: stored(root) == b"two\nthree\n")
    assert stored(root) == b""


def test_it_is_whole_after_an_error(tmp_path: Path) -> None:
    root, log = Root(str(tmp_path / "store")), tmp_path / "log.jsonl"
    log.write_bytes(b"one\n")
    with pytest.raises(SystemExit), copied(root, "train/f", log):
        raise SystemExit(143)
    assert stored(root) == b"one\n"
    with pytest.raises(RuntimeError), copied(root, "train/f", tmp_path / "none"):
        raise RuntimeError("before the first line")
    assert stored(root) == b"one\n"


def test_a_store_that_fails_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live, "COPY_SECONDS", 0.01)
    root, log = Root(str(tmp_path / "store")), tmp_path / "log.jsonl"
    attempts: list[str] = []

    def fails(path: str, data: bytes = b"") -> None:
        attempts.append(path)
        raise StoreUnavailable("root: it is gone")

    monkeypatch.setattr(root, "write", fails)
    monkeypatch.setattr(root, "remove", fails)
    log.write_bytes(b"one\n")
    with caplog.at_level(logging.WARNING), copied(root, "train/f", log):
        until(lambda: len(attempts) > 2)
    assert [record.getMessage() for record in caplog.records] == [
        "the log of the running stage cannot be copied to the store: root: it is gone"
    ]
