"""Reads a folder that others have filled, on any file system: all files below it, whole or in parts. Never writes."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from bootpig.storage.errors import StoreError
from bootpig.storage.root import Root

SETTLED_SECONDS = 2.0
"""A file that changed less than this long ago may change again without another time stamp."""

_TAGS = ("ETag", "etag", "e_tag", "md5Hash", "md5", "blob_id", "checksum")
"""What file systems call the tag of a file's content."""
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")


@dataclass(frozen=True)
class FoundFile:
    """A file as it is listed."""

    size: int
    """Bytes."""
    version: str
    """Differs when the content does."""
    settled: bool
    """Whether equal versions always mean equal content."""


class Outside(Root):
    """A folder of files that are not ours.

    Args:
        url: a local path or an fsspec URL.
        field: the setting that names it, for messages.

    Raises:
        StoreError: as for `Root`.
    """

    def __init__(self, url: str, field: str) -> None:
        self.field = field
        try:
            super().__init__(url)
        except StoreError as error:
            raise self._named(error) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return Outside, (self.url, self.field)

    def files(self) -> dict[str, FoundFile]:
        """All files below the folder by their path relative to it, unordered. Empty if there is no such folder.

        Raises:
            StoreError: the folder cannot be listed, or has a link to a place outside of it.
        """
        if self.local is not None:
            return dict(self._local_files())

        def listing() -> dict[str, dict[str, Any]]:
            self.fs.invalidate_cache(self.path)
            return dict(self.fs.find(self.path, detail=True))

        try:
            found = self._call("list", "", listing)
        except FileNotFoundError:
            return {}
        start = len(self.path) + 1
        return {name[start:]: _of_entry(entry) for name, entry in found.items() if entry["type"] == "file"}

    def file(self, name: str) -> FoundFile | None:
        """One file of the folder, or None."""
        if self.local is not None:
            path = self.local / name
            return _of_stat(path.stat()) if path.is_file() else None
        try:
            return _of_entry(self._call("read", name, lambda: self.fs.info(self.join(name))))
        except FileNotFoundError:
            return None

    def _local_files(self) -> Iterator[tuple[str, FoundFile]]:
        base = os.path.realpath(self.path)

        def refuse(error: OSError) -> None:
            raise error

        with self._faults("list", ""):
            for parent, folders, names in os.walk(base, onerror=refuse) if os.path.isdir(base) else ():
                for name in (*folders, *names):
                    path = os.path.join(parent, name)
                    if not is_utf8(name):
                        raise StoreError(f"{self.field}: {path!r} → the name is not UTF-8; rename it")
                    if os.path.islink(path):
                        self._check_link(path, base)
                for name in names:
                    path = os.path.join(parent, name)
                    facts = os.stat(path)
                    if stat.S_ISREG(facts.st_mode):
                        yield os.path.relpath(path, base).replace(os.sep, "/"), _of_stat(facts)

    def _check_link(self, path: str, base: str) -> None:
        target = os.path.realpath(path)
        if os.path.commonpath([base, target]) != base:
            raise StoreError(
                f"{self.field}: {path!r} → is a link to a place outside of {self.url!r}; replace it by a copy"
            )
        if not os.path.exists(target):
            raise StoreError(f"{self.field}: {path!r} → is a link to a file that is not there; remove it")

    def ranges(self, spans: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """The bytes of parts of files, fetched concurrently if the file system supports it.

        Args:
            spans: path, first byte, byte after the last one.

        Raises:
            FileNotFoundError: a file does not exist.
        """
        if not spans:
            return []
        names, starts, ends = ([span[k] for span in spans] for k in range(3))
        full = [self.join(str(name)) for name in names]
        data: list[bytes] = self._call(
            "read", str(names[0]), lambda: self.fs.cat_ranges(full, starts, ends, on_error="raise")
        )
        return data

    @contextmanager
    def stream(self, name: str) -> Iterator[IO[bytes]]:
        """A file to read and seek in."""
        with self._faults("read", name):
            stream = self.fs.open(self.join(name), "rb")
        with stream:
            yield stream

    @contextmanager
    def _faults(self, action: str, path: str) -> Iterator[None]:
        try:
            with super()._faults(action, path):
                yield
        except StoreError as error:
            raise self._named(error) from None

    def _named(self, error: StoreError) -> StoreError:
        text = str(error).replace("root:", f"{self.field}:", 1)
        return type(error)(text.replace("choose a writable folder", "check its permissions"))


def is_utf8(name: str) -> bool:
    """Whether a name from a file system or an archive can be written as text."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _of_stat(facts: os.stat_result) -> FoundFile:
    changed = max(facts.st_mtime_ns, facts.st_ctime_ns)
    version = f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns} {facts.st_ino}"
    return FoundFile(facts.st_size, version, time.time() - changed / 1e9 > SETTLED_SECONDS)


def _of_entry(entry: dict[str, Any]) -> FoundFile:
    size = int(entry.get("size") or 0)
    tag = next((str(entry[name]) for name in _TAGS if entry.get(name)), "")
    changed = tag or next((str(entry[name]) for name in _TIMES if entry.get(name)), "")
    return FoundFile(size, f"{size} {changed}", bool(tag))
