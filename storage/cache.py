"""A local disk cache for the payloads of a remote store, so that training downloads each one only once.

`BOOTPIG_CACHE` sets the folder and `BOOTPIG_CACHE_BYTES` its maximum size. All processes of a machine share it. Cached
bytes are checked against their sha256 on every read, and downloaded again if they do not match.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bootpig.storage.errors import StoreError
from bootpig.storage.fingerprint import bytes_digest

FOLDER = "BOOTPIG_CACHE"
BYTES = "BOOTPIG_CACHE_BYTES"
USUAL_BYTES = 64 * 2**30


class PayloadCache:
    """Files named by the sha256 of their contents. Above `limit` bytes the least recently used are removed.

    If the disk is full or read-only, nothing is cached and reads go on as usual.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """`limit`: maximum size in bytes; 0 disables the cache."""
        self.folder = folder
        self.limit = limit

    @classmethod
    def of_environment(cls) -> PayloadCache:
        """The cache set by the environment variables. Raises StoreError if `BOOTPIG_CACHE_BYTES` is not a number."""
        given = os.environ.get(BYTES, str(USUAL_BYTES))
        if not given.isdecimal():  # isdigit accepts ², which int refuses
            raise StoreError(f"{BYTES}: {given!r} → must be a number of bytes; 0 disables the cache")
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bootpig" / "payloads"
        return cls(Path(os.environ.get(FOLDER) or usual).expanduser(), int(given))

    def get(self, sha256: str, fetch: Callable[[], bytes]) -> bytes:
        """The bytes with that digest, from the cache if it has them, else from `fetch`, which must verify them."""
        file = self.folder / sha256
        with suppress(OSError):
            data = file.read_bytes()
            if bytes_digest(data) == sha256:
                with suppress(OSError):  # only the order in which files are removed
                    os.utime(file)
                return data
        data = fetch()
        if len(data) <= self.limit:
            with suppress(OSError):
                self._keep(file, data)
        return data

    def _keep(self, file: Path, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            os.replace(temporary, file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        self._evict(file)

    def _evict(self, spare: Path) -> None:
        """Remove the least recently used files. Other processes may do so too, so missing files are not an error."""
        found = []
        for file in self.folder.iterdir():
            with suppress(FileNotFoundError):
                stat = file.stat()
                found.append((stat.st_mtime_ns, stat.st_size, file))
        total = sum(size for _, size, _ in found)
        for _, size, file in sorted(found):
            if total <= self.limit:
                break
            if file != spare:
                file.unlink(missing_ok=True)
                total -= size
