"""The root folder of a store on any fsspec file system (`file://`, `s3://`, …): atomic writes, retries, no caching."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from bootpig.storage import s3
from bootpig.storage.errors import NO_SPACE, StoreError, StoreFull, StoreUnavailable
from bootpig.storage.faults import is_answered, is_missing_bucket, is_refused, is_transient, refuses_checksums
from bootpig.storage.refusals import REFUSALS, optional
from bootpig.storage.retry import ATTEMPTS, patiently, while_left

T = TypeVar("T")

_CREDENTIALS = re.compile(r"://[^/@\s]*:[^/@\s]*@")

BLOCK_BYTES = 2**24
"""Large files are read in blocks of this size."""


def holds_credentials(url: str) -> bool:
    """Whether a URL contains `user:password@`, which would end up in every record and log of a run."""
    return _CREDENTIALS.search(url) is not None


def masked(text: str) -> str:
    """`text` with the `user:password` in its URLs replaced by `***`."""
    return _CREDENTIALS.sub("://***@", text)


class Root:
    """A folder on a file system. All paths are relative to it and use `/`.

    Args:
        url: a local path or an fsspec URL. Credentials are taken from where the file system's own tools look for them:
            the environment, a profile, or the machine's role.

    Raises:
        StoreError: no file system is known for the URL, its package is missing, or the URL contains credentials. Every
            method raises it if access is refused or the bucket does not exist, `StoreUnavailable` if the store still
            fails after all retries, and `StoreFull` if there is no space left.
    """

    def __init__(self, url: str) -> None:
        if holds_credentials(url):
            raise StoreError(f"root: {masked(url)!r} contains credentials; use the environment or a profile")
        self.url = url
        self._s3 = url.partition("://")[0] in s3.PROTOCOLS
        try:
            if "://" in url:
                self.fs, path = fsspec.url_to_fs(url, **(s3.options() if self._s3 else {}))
            else:  # a path is taken as it is: fsspec would cut it at `::`
                self.fs, path = LocalFileSystem(), os.path.abspath(os.path.expanduser(url))
        except (ImportError, ValueError) as error:
            raise StoreError(f"root: {url!r} cannot be opened: {error}") from None
        if self._s3:
            s3.prepare(self.fs)
        self._at_once = {"max_concurrency": 1} if self._s3 else {}
        """Options for reading a whole file in one request; s3fs would ask for its size first."""
        self.path = path.rstrip("/")
        protocols = (self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol
        self.local: Path | None = Path(self.path) if "file" in protocols else None
        """The folder itself if the store is on a local disk, else None."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the URL only: the other process opens its own client."""
        return Root, (self.url,)

    def join(self, *parts: str) -> str:
        return "/".join((self.path, *parts))

    def address(self, *parts: str) -> str:
        """A path in the form a user would type: a local path or a URL."""
        return self.join(*parts) if self.local is not None else str(self.fs.unstrip_protocol(self.join(*parts)))

    def _call(self, action: str, path: str, call: Callable[[], T]) -> T:
        """Run `call()`, with retries on transient errors. Raises the same errors as `_faults`."""
        with self._faults(action, path):
            return patiently(call)

    @contextmanager
    def _faults(self, action: str, path: str) -> Iterator[None]:
        """Turn file system errors in the block into a StoreError with a one-line message.

        Raises:
            FileNotFoundError: the path does not exist.
            StoreError: any other error of the store.
        """
        try:
            yield
        except FileNotFoundError as error:
            if is_missing_bucket(error):
                raise StoreError(
                    f"root: {self.url!r} → there is no such bucket; create it or correct the name"
                ) from None
            raise
        except Exception as error:
            self._explain(f"root: {self.url!r}: cannot {action} {path!r}", error)
            raise

    def _explain(self, place: str, error: Exception) -> None:
        """Raise the StoreError that matches `error`. Returns if there is none."""
        number = error.errno if isinstance(error, OSError) else None
        if number in NO_SPACE:
            raise StoreFull(f"{place}: no space left; free some space and run again, complete units are kept") from None
        if self.local is not None:
            if number in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
                raise StoreError(f"{place}: {os.strerror(number)}; choose a writable folder") from None
        elif refuses_checksums(error):
            raise StoreError(
                f"{place}: {_one_line(error)}; if this server does not know S3's newer checksums, set "
                "AWS_REQUEST_CHECKSUM_CALCULATION=when_required in the environment and run again"
            ) from None
        elif is_refused(error):
            raise StoreError(
                f"{place}: access refused ({_one_line(error)}); check the credentials in the environment "
                "and their permissions"
            ) from None
        elif is_transient(error):
            raise StoreUnavailable(
                f"{place}: failed {ATTEMPTS} times ({_one_line(error)}); run again when the store works, "
                "complete units are kept"
            ) from None
        elif is_answered(error) or isinstance(error, ValueError):
            raise StoreError(f"{place}: {_one_line(error)}") from None

    def read(self, path: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError."""
        data: bytes = self._call("read", path, lambda: self.fs.cat_file(self.join(path), **self._at_once))
        return data

    def read_end(self, path: str, limit: int) -> bytes:
        """The last `limit` bytes of a file, or all of it if it is smaller. Raises FileNotFoundError."""
        size = self.size(path)
        if size is None:
            raise FileNotFoundError(path)
        if size <= limit:
            return self.read(path)
        begin = size - limit
        data: bytes = self._call("read", path, lambda: self.fs.cat_file(self.join(path), start=begin, end=size))
        return data

    def read_many(self, paths: list[str]) -> dict[str, bytes]:
        """Path → bytes of those `paths` that exist, fetched concurrently if the file system supports it."""
        left = {self.join(path): path for path in paths}
        read: dict[str, bytes] = {}

        def fetch() -> dict[str, Exception]:
            """The faults of those that are worth another try."""
            faults = {}
            # cat_ranges, not cat: cat takes *, ? and [ in a name for a pattern
            names = list(left)
            found = self.fs.cat_ranges(names, None, None, on_error="return", **self._at_once) if names else []
            for name, value in zip(names, found, strict=True):
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
        """Write a file atomically: a reader sees the old bytes or the new ones, never a mix."""
        if self.local is None:
            self._call("write", path, lambda: self.fs.pipe_file(self.join(path), data))
            return
        with self._replacing(path) as stream:
            stream.write(data)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that does not exist yet. Returns False if it does; it then stays as it is.

        Of several processes that create a file at once, one succeeds: on S3, and where fsspec's file system has a
        `create` of its own. Elsewhere, and on a local disk, it is a look and then a write.
        """
        if self.local is not None:
            if self.exists(path):
                return False
            self.write(path, data)
            return True

        def put() -> bool:
            try:
                self.fs.pipe_file(self.join(path), data, mode="create")
            except FileExistsError:
                return False
            except Exception as error:
                if not refuses_checksums(error):  # a server that does not know the condition says the same
                    raise
                if self.exists(path):
                    return False
                self.fs.pipe_file(self.join(path), data)
            return True

        return self._call("write", path, put)

    def append(self, path: str, data: bytes) -> None:
        """Append to a file. Not atomic and not flushed to disk: for logs only."""
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
        """Copy a local file to `path` atomically, like `write`, without loading it into memory."""
        if self.local is None:
            self._call("write", path, lambda: self.fs.put_file(str(file), self.join(path)))
            return
        with self._replacing(path) as stream, file.open("rb") as source:
            shutil.copyfileobj(source, stream, 2**20)

    @contextmanager
    def _replacing(self, path: str) -> Iterator[IO[bytes]]:
        """A new local file that replaces `path` if the block ends without an error."""
        assert self.local is not None
        target = self.local / path
        with self._faults("write", path):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=target.parent)
            try:
                with os.fdopen(handle, "wb") as stream:
                    with optional():
                        os.fchmod(stream.fileno(), 0o644)  # mkstemp's 0600 would lock out other users of the store
                    yield stream
                    stream.flush()
                    with optional():
                        os.fsync(stream.fileno())
                self._rename(temporary, target)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise

    def _rename(self, temporary: str, target: Path) -> None:
        """Raises StoreError where the file system has no atomic rename: a kill would leave half a file."""
        try:
            os.replace(temporary, target)
        except OSError as error:
            if error.errno not in REFUSALS or target.is_dir():
                raise
            raise StoreError(
                f"root: {self.url!r}: this file system refuses to rename a file ({os.strerror(error.errno or 0)}), "
                "which every commit needs; choose a folder on another one"
            ) from None

    def download(self, path: str, file: Path) -> None:
        """Copy `path` to a local file. Raises FileNotFoundError."""
        self._call("read", path, lambda: self.fs.get_file(self.join(path), str(file)))

    def sha256(self, path: str) -> str:
        """sha256 hex of a file, read block by block. Raises FileNotFoundError."""
        size = self.size(path)
        if size is None:
            raise FileNotFoundError(path)
        found = hashlib.sha256()
        for start in range(0, size, BLOCK_BYTES):
            block = partial(self.fs.cat_file, self.join(path), start=start, end=min(start + BLOCK_BYTES, size))
            # a retry repeats one block, not the whole file
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
        """File names directly in `folder` with their sizes in bytes. Empty if the folder does not exist."""
        files = (entry for entry in self._entries(folder) if entry["type"] == "file")
        return {
            name: int(e["size"] or 0) for e in files if not (name := e["name"].rsplit("/", 1)[-1]).startswith(".tmp-")
        }

    def folders(self, folder: str) -> list[str]:
        """Folder names directly in `folder`, sorted."""
        entries = self._entries(folder)
        return sorted(e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")

    def size(self, path: str) -> int | None:
        """The size of a file in bytes, or None if it does not exist."""
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
        """Remove a file, or a folder if `recursive`. It is not an error if it does not exist."""
        full = self.join(path)
        with suppress(FileNotFoundError):
            if not recursive:
                self._call("remove", path, lambda: self.fs.rm_file(full))
                return

            def clear() -> list[dict[str, Any]]:
                self._call("remove", path, lambda: self._clear(full))
                # S3 lists the objects that it could not remove in a successful response, which s3fs ignores
                return self._entries(path)

            if while_left(clear):
                raise StoreUnavailable(
                    f"root: {self.url!r}: cannot remove all of {path!r}; run again when the store works"
                )

    def _clear(self, full: str) -> None:
        """Remove all files below a folder, and the folder, by their exact names.

        fsspec's recursive `rm` takes *, ? and [ in a name for a pattern: below `data[12]` it would remove `data1`.
        """
        if self.local is not None:
            folder = Path(full)
            folder.unlink() if folder.is_symlink() or folder.is_file() else shutil.rmtree(folder)
            return
        self.fs.invalidate_cache(full)
        found = self.fs.find(full, withdirs=True, detail=True)
        names = [name for name, entry in found.items() if entry["type"] == "file"]
        plain = [name for name in names if not has_magic(name)]
        if plain:
            self.fs.rm(plain)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(self.fs.rm_file, (name for name in names if has_magic(name))))
        for name in sorted({name for name, entry in found.items() if entry["type"] != "file"} | {full}, reverse=True):
            with suppress(OSError):  # an object store has no folders
                self.fs.rmdir(name)

    def check_writable(self) -> None:
        """Write and remove a small file to test access.

        Raises:
            StoreError: the store is not writable.
        """
        probe = f".write-probe-{os.getpid()}"
        self.write(probe, b"bootpig")
        self.remove(probe)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return masked(f"{type(error).__name__}: {text}" if text else type(error).__name__)
