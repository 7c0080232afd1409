"""Download checkpoint files by URL: once, into this user's cache, checked against their sha256."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock

from bootpig.models.pretrained.source import ModelError, ModelSource, content_digest

SECONDS = 10.0
"""Timeout of a connection and of each read."""

_CHUNK = 2**20


def look_up(field: str, url: str, sha256: str | None) -> Path:
    """The path in the cache of the file at `url`. Nothing is downloaded, but the server is asked whether it has it.

    Raises:
        ModelError: no sha256, credentials in the URL, or the server has no such file.
    """
    shown = _shown(url)
    if sha256 is None:
        raise ModelError(f"{field}: {shown!r} is a URL; give its sha256 too ({field}_sha256)")
    if "@" in urlsplit(url).netloc:
        raise ModelError(f"{field}: {shown!r} holds a password; download it by hand and give the path")
    path = _cache() / f"{sha256}{PurePosixPath(urlsplit(url).path).suffix}"
    if path.exists():
        return path
    try:
        urlopen(Request(url, method="HEAD"), timeout=SECONDS).close()
    except HTTPError as error:
        if error.code not in (405, 501):  # some servers do not support HEAD
            raise ModelError(f"{field}: {shown!r} answers {error.code} {error.reason}; fix the URL") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{field}: {shown!r} cannot be reached ({_reason(error)}); {_BY_HAND}") from None
    return path


def fetch(source: ModelSource, told: Callable[[str], None] = lambda line: None) -> Path:
    """The file of `source` on this machine; if several processes need it, one of them downloads it.

    Args:
        told: called with one line before a download begins.

    Raises:
        ModelError: it cannot be downloaded, or its sha256 differs.
    """
    path = Path(source.path)
    if source.sha256 is None:
        return path
    with _locked(source.field, path):
        if not path.exists() or content_digest(path) != source.sha256:
            told(f"{source.field}: downloading {_shown(source.source)}")
            _download(source, source.sha256, path)
    return path


@contextlib.contextmanager
def _locked(field: str, path: Path) -> Iterator[None]:
    """One process at a time in the block. Raises ModelError where the cache's folder cannot be written or locked."""
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
        raise ModelError(
            f"{field}: {str(path.parent)!r} cannot be used as a cache ({_reason(error)}); set XDG_CACHE_HOME to a "
            "writable folder on a local disk"
        ) from None
    try:
        yield
    finally:
        lock.release()


_BY_HAND = "go online, or download it by hand and give the path"


def _download(source: ModelSource, sha256: str, path: Path) -> None:
    """Into a temporary file, renamed to `path` when it is complete and its sha256 is right."""
    shown = _shown(source.source)
    digest = hashlib.sha256()
    handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file, urlopen(source.source, timeout=SECONDS) as answer:
            expected = int(answer.headers.get("Content-Length") or -1)
            while chunk := answer.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
            if 0 <= file.tell() < expected:
                raise ConnectionError(f"it ended after {file.tell()} of {expected} bytes")
        if digest.hexdigest() != sha256:
            raise ModelError(
                f"{source.field}: {shown!r} has sha256 {digest.hexdigest()}, not {sha256}; "
                f"fix {source.field}_sha256 or the URL"
            )
        os.replace(temporary, path)
    except OSError as error:
        raise ModelError(
            f"{source.field}: {shown!r} cannot be downloaded ({_reason(error)}); run again, or {_BY_HAND}"
        ) from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bootpig"


def _shown(url: str) -> str:
    """The URL without its parts that may be secret: user, password, query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"{error.code} {error.reason}"
    cause = error.reason if isinstance(error, URLError) else error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
