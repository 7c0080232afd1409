"""Downloads checkpoint files by URL to a per-user cache and verifies their sha256."""

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
    """The cache path for the file at `url`. Downloads nothing, but asks the server whether the file exists.

    Raises:
        ModelError: the sha256 is missing, the URL contains credentials, or the server does not have the file.
    """
    shown = _shown(url)
    if sha256 is None:
        raise ModelError(f"{field}: {shown!r} is a URL; also give the file's sha256 ({field}_sha256)")
    if "@" in urlsplit(url).netloc:
        raise ModelError(f"{field}: {shown!r} contains credentials; download the file by hand and give its path")
    path = cache_folder() / f"{sha256}{PurePosixPath(urlsplit(url).path).suffix}"
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
    """The local file of `source`, downloaded if needed. If several processes need it, only one downloads it.

    Args:
        told: called with a one-line message before a download starts.

    Raises:
        ModelError: the file cannot be downloaded, or its sha256 does not match.
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


_BY_HAND = "check the connection, or download it by hand and give the path"


def _download(source: ModelSource, sha256: str, path: Path) -> None:
    """Download to a temporary file, and rename it to `path` once it is complete and its sha256 matches."""
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
                raise ConnectionError(f"the download ended after {file.tell()} of {expected} bytes")
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


def cache_folder() -> Path:
    """The folder of this user for downloads."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bootpig"


def _shown(url: str) -> str:
    """The URL without parts that may be secret: user, password, query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"{error.code} {error.reason}"
    cause = error.reason if isinstance(error, URLError) else error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
