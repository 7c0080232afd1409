"""Payloads of a remote store kept on the local disk, so that training reads each once: bounded, shared by processes.

`BOOTPIG_CACHE` names the folder, `BOOTPIG_CACHE_BYTES` how much it may hold. Neither changes what is read: bytes are
checked against their sha256 each time, and what does not match is fetched anew.
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
    """Files named by the sha256 of their bytes; above `limit` bytes the longest unused go.

    A disk that is full or cannot be written costs the cache, never the run.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """`limit`: bytes; 0 keeps nothing."""
        self.folder = folder
        self.limit = limit

    @classmethod
    def of_environment(cls) -> PayloadCache:
        """Raises StoreError where `BOOTPIG_CACHE_BYTES` is no number."""
        given = os.environ.get(BYTES, str(USUAL_BYTES))
        if not given.isdigit():
            raise StoreError(f"{BYTES}: {given!r} → must be a number of bytes, 0 for no cache")
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bootpig" / "payloads"
        return cls(Path(os.environ.get(FOLDER) or usual).expanduser(), int(given))

    def get(self, sha256: str, fetch: Callable[[], bytes]) -> bytes:
        """The bytes of that digest: from the folder, else from `fetch`, which checks them itself."""
        file = self.folder / sha256
        with suppress(OSError):
            data = file.read_bytes()
            if bytes_digest(data) == sha256:
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
        """Other processes may do the same at the same time: what one of them has removed is no error."""
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
