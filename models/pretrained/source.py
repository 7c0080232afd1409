"""An outside model: what it is, what identifies it in a fingerprint, and which of its files are damaged."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from bootpig.models.memory import is_out_of_memory

PROJECT = Path(__file__).resolve().parents[2]
"""Relative paths are also looked up here, so that the committed toy checkpoints are found from any folder."""

PIPELINE = "model_index.json"
"""The file that every diffusers pipeline has."""
TRANSFORMER = "config.json"
"""The file that every transformers model has."""

KINDS = {PIPELINE: "a diffusers pipeline", TRANSFORMER: "a transformers model"}
"""Entry file → the kind of model that has it, for messages."""

_UNHASHED_SUFFIXES = (".md", ".lock", ".tmp")


class ModelError(ValueError):
    """A model is missing, broken, or not what its field needs. One line: the field, the value, what to do."""


@dataclass(frozen=True)
class ModelSource:
    """A model that was found."""

    field: str
    """The config field that names it, for messages: `segment.detector`."""
    source: str
    """As the config has it."""
    path: str
    """What `from_pretrained` takes: an absolute path, or a hub id."""
    revision: str | None = None
    """The hub commit, 40 hex digits; None for a file or folder."""
    sha256: str | None = None
    """Of a file that is downloaded from `source`, a URL, to `path`; see `bootpig.models.pretrained.downloads`."""

    @property
    def is_local(self) -> bool:
        return self.revision is None and self.sha256 is None

    def as_json(self) -> dict[str, str]:
        """The identity: `{"digest"}` of a file or folder wherever it is, or `{"id", "commit"}`.

        Raises:
            ModelError: a file of it cannot be read.
        """
        if self.revision is not None:
            return {"id": self.path, "commit": self.revision}
        if self.sha256 is not None:
            return {"digest": self.sha256}
        try:
            return {"digest": content_digest(Path(self.path))}
        except OSError as error:
            raise ModelError(
                f"{self.field}: {self.source!r} cannot be read ({first_line(error)}); check its permissions"
            ) from error


def local_path(source: str) -> Path | None:
    """The absolute path of `source` below the working folder or the project, or None if neither has it."""
    given = os.path.expanduser(source)
    for path in (given, os.path.join(PROJECT, given)):
        if os.path.exists(path):
            return Path(path).resolve()
    return None


def content_digest(path: Path) -> str:
    """sha256, in hex, of a file, or of a folder's sorted (relative path, file digest) pairs.

    Hidden files, Markdown and leftovers of downloads are left out: they change no output.
    """
    if path.is_file():
        return _file_digest(path)
    digest = hashlib.sha256()
    files = sorted(model_files(path), key=lambda file: file.relative_to(path).as_posix())
    with ThreadPoolExecutor(8) as pool:  # hashing releases the GIL
        for file, found in zip(files, pool.map(_file_digest, files), strict=True):
            digest.update(f"{file.relative_to(path).as_posix()}\0{found}\n".encode())
    return digest.hexdigest()


@contextmanager
def loading(field: str, source: str) -> Iterator[None]:
    """Turn any error that a library raises about broken model files into one `ModelError` that names field and file.

    Out of memory passes through: the files are not the cause.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        path = local_path(source)
        broken = None if path is None else broken_file(path)
        if broken is not None:
            raise ModelError(f"{field}: the file {str(broken)!r} is damaged; restore it") from error
        fix = "give a complete model of the right kind"
        if path is None:
            fix = "check the connection and the login, or give a complete local folder of the right kind"
        raise ModelError(f"{field}: {source!r} cannot be loaded ({first_line(error)}); {fix}") from error


def broken_file(path: Path) -> Path | None:
    """The first safetensors or JSON file at or below `path` that is cut short or unreadable, or None."""
    for file in [path] if path.is_file() else sorted(model_files(path)):
        try:
            if file.suffix == ".safetensors":
                from safetensors import safe_open

                with safe_open(file, framework="np"):
                    pass
            elif file.suffix == ".json":
                json.loads(file.read_bytes())
        except Exception:
            return file
    return None


def model_files(folder: Path) -> Iterator[Path]:
    """The files below `folder` that are part of a model, in no order: not hidden, no Markdown, no leftovers."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and not name.endswith(_UNHASHED_SUFFIXES):
                yield Path(parent) / name


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _digest_of(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=4096)
def _digest_of(path: str, size: int, mtime_ns: int, inode: int) -> str:
    """Size, time and inode are the cache's key: a changed file is read again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    """The type and the first line of the message of an error, at most 200 characters."""
    lines = str(error).strip().splitlines()
    text = lines[0].strip().rstrip(".:") if lines else ""
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
