"""The local payload cache: downloads once, verifies every read, stays within its size limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bootpig.storage.cache import PayloadCache
from bootpig.storage.errors import StoreError
from bootpig.storage.fingerprint import bytes_digest

SHARDS = [bytes([i]) * 100 for i in range(4)]


class Store:
    def __init__(self, cache: PayloadCache) -> None:
        self.cache = cache
        self.fetched: list[int] = []

    def read(self, number: int) -> bytes:
        def fetch() -> bytes:
            self.fetched.append(number)
            return SHARDS[number]

        return self.cache.get(bytes_digest(SHARDS[number]), fetch)


def test_a_payload_is_fetched_once(tmp_path: Path) -> None:
    store = Store(PayloadCache(tmp_path / "cache", 1000))
    assert [store.read(i) for i in (0, 1, 0, 1)] == [SHARDS[i] for i in (0, 1, 0, 1)]
    assert store.fetched == [0, 1]
    assert Store(PayloadCache(tmp_path / "cache", 1000)).read(1) == SHARDS[1], "another process finds it too"


def test_altered_cache_files_are_downloaded_again(tmp_path: Path) -> None:
    store = Store(PayloadCache(tmp_path, 1000))
    store.read(0)
    (tmp_path / bytes_digest(SHARDS[0])).write_bytes(b"x" * 100)
    assert store.read(0) == SHARDS[0] and store.fetched == [0, 0]
    assert store.read(0) == SHARDS[0] and store.fetched == [0, 0]


def test_the_least_recently_used_is_removed(tmp_path: Path) -> None:
    store = Store(PayloadCache(tmp_path, 250))
    for age, number in ((30, 0), (20, 1)):
        store.read(number)
        os.utime(tmp_path / bytes_digest(SHARDS[number]), (1e9 - age, 1e9 - age))
    store.read(0)
    store.read(2)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(bytes_digest(SHARDS[i]) for i in (0, 2))


def test_without_room_it_still_reads(tmp_path: Path) -> None:
    store = Store(PayloadCache(tmp_path / "none", 0))
    assert store.read(0) == SHARDS[0] and not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("no folder")
    assert Store(PayloadCache(tmp_path / "file", 1000)).read(0) == SHARDS[0]


def test_the_environment_says_where_and_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOOTPIG_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("BOOTPIG_CACHE_BYTES", "123")
    cache = PayloadCache.of_environment()
    assert (cache.folder, cache.limit) == (tmp_path / "here", 123)
    for given in ("1 GB", "²", "-1", ""):
        monkeypatch.setenv("BOOTPIG_CACHE_BYTES", given)
        with pytest.raises(StoreError, match=rf"BOOTPIG_CACHE_BYTES: '{given}' → must be a number"):
            PayloadCache.of_environment()
