"""The root of a store: `file://`, `s3://`, anything fsspec speaks, with atomic writes and listings never cached."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec

from bootpig.storage import s3
from bootpig.storage.errors import StoreError, StoreFull, StoreUnavailable
from bootpig.storage.faults import is_answered, is_missing_bucket, is_refused, is_transient
from bootpig.storage.retry import ATTEMPTS, patiently, while_left

T = TypeVar("T")

_CREDENTIALS = re.compile(r"://[^/@\s]*:[^/@\s]*@")

BLOCK_BYTES = 2**24
"""Of a large file, read at once."""


def holds_credentials(url: str) -> bool:
    """Whether a URL has a `user:password@`. It would stand in every record and log of a run."""
    return _CREDENTIALS.search(url) is not None


def masked(text: str) -> str:
    """`text` with `***` in place of what stands before the `@` of its URLs."""
    return _CREDENTIALS.sub("://***@", text)


class Root:
    """One folder of one file system. Paths are relative to it and use `/`.

    Args:
        url: a local path or an fsspec URL. Credentials come from where the file system's own tools find them: the
            environment, a profile, the machine's role.

    Raises:
        StoreError: no file system is known for the URL, its package is missing, or it holds credentials. Every method
            raises it where access is refused or there is no such bucket, `StoreUnavailable` where the store gives no
            good answer after all attempts, and `StoreFull` where there is no room.
    """

    def __init__(self, url: str) -> None:
        if holds_credentials(url):
            raise StoreError(f"root: {masked(url)!r} holds credentials; leave them to the environment or a profile")
        self.url = url
        self._s3 = url.partition("://")[0] in s3.PROTOCOLS
        try:
            self.fs, path = fsspec.url_to_fs(url, **(s3.options() if self._s3 else {}))
        except (ImportError, ValueError) as error:
            raise StoreError(f"root: {url!r} cannot be opened: {error}") from None
        if self._s3:
            s3.prepare(self.fs)
        self._at_once = {"max_concurrency": 1} if self._s3 else {}
        """Of a whole file: one request. s3fs would ask for its size first."""
        self.path = path.rstrip("/")
        protocols = (self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol
        self.local: Path | None = Path(self.path) if "file" in protocols else None
        """The folder itself where the store is on this machine's disk, else None."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its URL: the other process opens a client of its own."""
        return Root, (self.url,)

    def join(self, *parts: str) -> str:
        return "/".join((self.path, *parts))

    def address(self, *parts: str) -> str:
        """A path as a person would give it: a local path, or a URL."""
        return self.join(*parts) if self.local is not None else str(self.fs.unstrip_protocol(self.join(*parts)))

    def _call(self, action: str, path: str, call: Callable[[], T]) -> T:
        """`call()`, again where its fault is a passing one. Raises as `_faults` does."""
        with self._faults(action, path):
            return patiently(call)

    @contextmanager
    def _faults(self, action: str, path: str) -> Iterator[None]:
        """Say what goes wrong in the block in one line.

        Raises:
            FileNotFoundError: nothing is there.
            StoreError: every other fault of the store.
        """
        try:
            yield
        except FileNotFoundError as error:
            if is_missing_bucket(error):
                raise StoreError(f"root: {self.url!r} → there is no such bucket; create it, or mend its name") from None
            raise
        except Exception as error:
            self._explain(f"root: {self.url!r}: cannot {action} {path!r}", error)
            raise

    def _explain(self, place: str, error: Exception) -> None:
        """Raise the StoreError that `error` stands for, if it stands for one."""
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"{place}: no space left; free some and run again, what is complete is kept") from None
        if self.local is not None:
            if number in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
                raise StoreError(f"{place}: {os.strerror(number)}; choose a folder that can be written") from None
        elif is_refused(error):
            raise StoreError(
                f"{place}: access refused ({_one_line(error)}); check the credentials in the environment "
                "and what they may do"
            ) from None
        elif is_transient(error):
            raise StoreUnavailable(
                f"{place}: no good answer in {ATTEMPTS} attempts ({_one_line(error)}); what is complete is kept, "
                "run again when the store is well"
            ) from None
        elif is_answered(error) or isinstance(error, ValueError):
            raise StoreError(f"{place}: {_one_line(error)}") from None

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError."""
        data: bytes = self._call("read", path, lambda: self.fs.cat_file(self.join(path), **self._at_once))
        return data

    def read_many(self, paths: list[str]) -> dict[str, bytes]:
        """Those of `paths` that exist, fetched together where the file system can."""
        left = {self.join(path): path for path in paths}
        read: dict[str, bytes] = {}

        def fetch() -> dict[str, Exception]:
            """The faults of those that are worth another try."""
            faults = {}
            found = self.fs.cat(list(left), on_error="return", **self._at_once) if left else {}
            for name, value in found.items():
                if isinstance(value, bytes):
                    read[left.pop(name)] = value
                elif isinstance(value, FileNotFoundError) and not is_missing_bucket(value):
                    del left[name]
                elif is_transient(value):
                    faults[name] = value
                else:
                    with self._faults("read", left[name]):
                        raise value
            return faults

        for name, error in while_left(fetch).items():
            with self._faults("read", left[name]):
                raise error
        return read

    def write(self, path: str, data: bytes) -> None:
        """Put `data` at `path`: a reader sees the old bytes or the new, never a part."""
        if self.local is None:
            self._call("write", path, lambda: self.fs.pipe_file(self.join(path), data))
            return
        with self._replacing(path) as stream:
            stream.write(data)

    def append(self, path: str, data: bytes) -> None:
        """Add `data` to what `path` holds. Neither atomic nor flushed to the disk: for logs."""
        if self.local is None:
            try:
                before = self.read(path)
            except FileNotFoundError:
                before = b""
            self.write(path, before + data)
            return
        with self._faults("write", path):
            target = self.local / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab") as stream:
                stream.write(data)

    def upload(self, path: str, file: Path) -> None:
        """Copy a local file to `path`, as `write` does, but never whole in memory."""
        if self.local is None:
            self._call("write", path, lambda: self.fs.put_file(str(file), self.join(path)))
            return
        with self._replacing(path) as stream, file.open("rb") as source:
            shutil.copyfileobj(source, stream, 2**20)

    @contextmanager
    def _replacing(self, path: str) -> Iterator[IO[bytes]]:
        """A new local file that takes the place of `path` when the block ends well."""
        assert self.local is not None
        target = self.local / path
        with self._faults("write", path):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=target.parent)
            try:
                with os.fdopen(handle, "wb") as stream:
                    os.fchmod(stream.fileno(), 0o644)  # mkstemp's own 0600 would keep other users out of a store
                    yield stream
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, target)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise

    def download(self, path: str, file: Path) -> None:
        """Copy `path` to a local file. Raises FileNotFoundError."""
        self._call("read", path, lambda: self.fs.get_file(self.join(path), str(file)))

    def sha256(self, path: str) -> str:
        """sha256 hex of a file, every byte read now, never whole in memory. Raises FileNotFoundError."""
        size = self.size(path)
        if size is None:
            raise FileNotFoundError(path)
        found = hashlib.sha256()
        for start in range(0, size, BLOCK_BYTES):
            block = partial(self.fs.cat_file, self.join(path), start=start, end=min(start + BLOCK_BYTES, size))
            # a fault costs the block, not those before it
            found.update(self._call("read", path, block))
        return found.hexdigest()

    def _entries(self, folder: str) -> list[dict[str, Any]]:
        full = self.join(folder)

        def listing() -> list[dict[str, Any]]:
            self.fs.invalidate_cache(full)
            return list(self.fs.ls(full, detail=True))

        try:
            return self._call("list", folder, listing)
        except FileNotFoundError:
            return []

    def names(self, folder: str) -> dict[str, int]:
        """File names directly in `folder` with their sizes in bytes; empty when there is no such folder."""
        files = (entry for entry in self._entries(folder) if entry["type"] == "file")
        return {
            name: int(e["size"] or 0) for e in files if not (name := e["name"].rsplit("/", 1)[-1]).startswith(".tmp-")
        }

    def folders(self, folder: str) -> list[str]:
        """Folder names directly in `folder`, sorted."""
        entries = self._entries(folder)
        return sorted(e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")

    def size(self, path: str) -> int | None:
        """The size of a file in bytes, or None where there is none."""
        full = self.join(path)

        def look() -> int:
            if self._s3:
                return s3.object_size(self.fs, full)
            self.fs.invalidate_cache(full)
            return int(self.fs.info(full)["size"] or 0)

        try:
            return self._call("read", path, look)
        except FileNotFoundError:
            return None

    def exists(self, path: str) -> bool:
        return self.size(path) is not None

    def remove(self, path: str, recursive: bool = False) -> None:
        """Remove a file, or a folder; nothing there is no error."""
        full = self.join(path)
        with suppress(FileNotFoundError):
            if not recursive:
                self._call("remove", path, lambda: self.fs.rm_file(full))
                return

            def clear() -> list[dict[str, Any]]:
                self._call("remove", path, lambda: self.fs.rm(full, recursive=True))
                # S3 names what it could not remove in an answer that is well, and s3fs does not look
                return self._entries(path)

            if while_left(clear):
                raise StoreUnavailable(
                    f"root: {self.url!r}: cannot remove all of {path!r}; run again when the store is well"
                )

    def check_writable(self) -> None:
        """Write and remove a small file.

        Raises:
            StoreError: the store cannot be written.
        """
        probe = f".write-probe-{os.getpid()}"
        self.write(probe, b"bootpig")
        self.remove(probe)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return masked(f"{type(error).__name__}: {text}" if text else type(error).__name__)
