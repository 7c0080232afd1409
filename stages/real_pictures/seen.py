"""Remembers on this machine the digests of pictures, so that a file is hashed again only after it has changed.

The memory is `pictures.sqlite` in the folder of other caches. It can be removed at any time. Without a place to write,
nothing is remembered.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

SECONDS = 5.0
"""How long to wait for another process."""

_AT_ONCE = 500
"""Keys in a query."""


class Seen:
    """A table of texts by key."""

    def __init__(self) -> None:
        with suppress(RuntimeError):  # a user without a home folder
            usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            self._file: Path | None = usual / "bootpig" / "pictures.sqlite"
            return
        self._file = None

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """The values of those `keys` that are known."""
        found: dict[str, str] = {}
        if self._file is None or not self._file.exists():
            return found
        with suppress(sqlite3.Error, OSError), self._open() as table:
            for begin in range(0, len(keys), _AT_ONCE):
                some = keys[begin : begin + _AT_ONCE]
                marks = ",".join("?" * len(some))
                found |= dict(table.execute(f"SELECT key, value FROM seen WHERE key IN ({marks})", some))
        return found

    def put(self, values: Mapping[str, str]) -> None:
        if self._file is None or not values:
            return
        with suppress(sqlite3.Error, OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as table, table:
                table.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?)", values.items())

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(str(self._file), timeout=SECONDS)) as table:
            table.execute("CREATE TABLE IF NOT EXISTS seen (key TEXT PRIMARY KEY, value TEXT)")
            yield table
