"""The root of a store: `file://`, `s3://`, anything fsspec speaks, with atomic writes and listings never cached."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec

from storage.errors import StoreError, StoreFull


class Root:
    """One folder of one file system. Paths are relative to it and use `/`.

    Args:
        url: a local path or an fsspec URL.

    Raises:
        StoreError: no file system is known for the URL, or its package is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.fs, path = fsspec.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise StoreError(f"root: {url!r} cannot be opened: {error}") from None
        self.path = path.rstrip("/")
        self.local: Path | None = Path(self.path) if "file" in (self.fs.protocol or ()) else None
        """The folder itself where the store is on this machine's disk, else None."""

    def join(self, *parts: str) -> str:
        return "/".join((self.path, *parts))

    @contextmanager
    def _faults(self, action: str, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            place = f"root: {self.url!r}: cannot {action} {path!r}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull(f"{place}: no space left; free some and run again, what is complete is kept") from None
            if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
                raise StoreError(f"{place}: {error.strerror}; choose a folder that can be written") from None
            raise

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError."""
        with self._faults("read", path):
            return self.fs.cat_file(self.join(path))

    def read_many(self, paths: list[str]) -> dict[str, bytes]:
        """Those of `paths` that exist, fetched together where the file system can."""
        if not paths:
            return {}
        full = {self.join(path): path for path in paths}
        found = self.fs.cat(list(full), on_error="return")
        faults = [v for v in found.values() if isinstance(v, Exception) and not isinstance(v, FileNotFoundError)]
        if faults:
            raise faults[0]
        return {full[key]: value for key, value in found.items() if isinstance(value, bytes)}

    def write(self, path: str, data: bytes) -> None:
        """Put `data` at `path`: a reader sees the old bytes or the new, never a part.

        Raises:
            StoreFull, StoreError: the disk is full, or the place cannot be written.
        """
        with self._faults("write", path):
            if self.local is None:
                self.fs.pipe_file(self.join(path), data)
                return
            target = self.local / path
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=target.parent)
            try:
                with os.fdopen(handle, "wb") as stream:
                    os.fchmod(stream.fileno(), 0o644)  # mkstemp's own 0600 would keep other users out of a store
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, target)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise

    def names(self, folder: str) -> dict[str, int]:
        """File names directly in `folder` with their sizes in bytes; empty when there is no such folder."""
        full = self.join(folder)
        self.fs.invalidate_cache(full)
        try:
            entries = self.fs.ls(full, detail=True)
        except FileNotFoundError:
            return {}
        files = (entry for entry in entries if entry["type"] == "file")
        return {
            name: int(e["size"] or 0) for e in files if not (name := e["name"].rsplit("/", 1)[-1]).startswith(".tmp-")
        }

    def folders(self, folder: str) -> list[str]:
        """Folder names directly in `folder`, sorted."""
        full = self.join(folder)
        self.fs.invalidate_cache(full)
        try:
            entries = self.fs.ls(full, detail=True)
        except FileNotFoundError:
            return []
        return sorted(e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")

    def exists(self, path: str) -> bool:
        self.fs.invalidate_cache(self.join(path))
        return bool(self.fs.exists(self.join(path)))

    def remove(self, path: str, recursive: bool = False) -> None:
        """Remove a file, or a folder; nothing there is no error."""
        with suppress(FileNotFoundError):
            self.fs.rm(self.join(path), recursive=recursive)

    def check_writable(self) -> None:
        """Write and remove a small file.

        Raises:
            StoreError: the store cannot be written.
        """
        probe = f".write-probe-{os.getpid()}"
        self.write(probe, b"bootpig")
        self.remove(probe)
