"""Describes a model that was found: its location, its identity in fingerprints, and checks for damaged files."""

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
from bootpig.models.pretrained.weight_files import DamagedFile

PROJECT = Path(__file__).resolve().parents[2]
"""Relative paths are also looked up in this folder, so that the toy checkpoints are found from anywhere."""

PIPELINE = "model_index.json"
"""A file in every diffusers pipeline."""
TRANSFORMER = "config.json"
"""A file in every transformers model."""

KINDS = {PIPELINE: "a diffusers pipeline", TRANSFORMER: "a transformers model"}
"""Entry file → kind of model, for messages."""

_UNHASHED_SUFFIXES = (".md", ".lock", ".tmp")


class ModelError(ValueError):
    """A model is missing, damaged, or of the wrong kind. The message is one line: field, value, what to do."""


@dataclass(frozen=True)
class Loads:
    """Which files of a model are loaded."""

    only: tuple[str, ...] = ()
    """Beginnings of the names of a pipeline's components. Empty: all."""
    without: tuple[str, ...] = ()
    """Components of a pipeline that are left out."""
    pickles: bool = False
    """Whether .bin files are loaded, as weights only, where a model has no others."""

    def component(self, name: str) -> bool:
        return name not in self.without and (not self.only or name.startswith(self.only))


WHOLE = Loads()
ENCODERS = Loads(only=("vae", "text_encoder", "tokenizer"))
"""What encodes pictures and captions."""
BASE = Loads(without=("safety_checker",))
"""A base model in training and in BootPIG's pipelines."""
JUDGE = Loads(pickles=True)
"""An embedder. The authors of some publish only .bin files."""


@dataclass(frozen=True)
class ModelSource:
    """A model that was found."""

    field: str
    """The config field that names it, such as `segment.detector`; for messages."""
    source: str
    """The value in the config."""
    path: str
    """The argument for `from_pretrained`: an absolute path or a hub id."""
    revision: str | None = None
    """The hub commit, 40 hex digits; None for a local file or folder."""
    sha256: str | None = None
    """Set if `source` is a URL that is downloaded to `path`; see `bootpig.models.pretrained.downloads`."""
    loads: Loads = WHOLE

    @property
    def is_local(self) -> bool:
        return self.revision is None and self.sha256 is None

    def as_json(self) -> dict[str, str]:
        """The identity for fingerprints: `{"digest"}` of a file or folder, whatever its path, or `{"id", "commit"}`.

        Raises:
            ModelError: one of its files cannot be read.
        """
        if self.revision is not None:
            return {"id": self.path, "commit": self.revision}
        if self.sha256 is not None:
            return {"digest": self.sha256}
        try:
            return {"digest": content_digest(Path(self.path))}
        except OSError as error:
            what = f"the file {error.filename!r}" if error.filename else repr(self.source)
            fix = "restore it" if isinstance(error, FileNotFoundError) else "check its permissions"
            raise ModelError(f"{self.field}: {what} cannot be read ({first_line(error)}); {fix}") from error


def local_path(source: str) -> Path | None:
    """The absolute path of `source`, relative to the working folder or the project, or None if it does not exist."""
    given = os.path.expanduser(source)
    for path in (given, os.path.join(PROJECT, given)):
        if os.path.exists(path):
            return Path(path).absolute()  # links keep their names, which say what is in the file
    return None


def content_digest(path: Path) -> str:
    """sha256 hex of a file, or of the sorted (relative path, file digest) pairs of a folder.

    Hidden files, Markdown and leftovers of downloads are ignored, because they do not affect results.
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
    """Turn any error of a library about broken model files into a `ModelError` that names field and file.

    Out-of-memory errors pass through unchanged.
    """
    try:
        yield
    except ModelError:
        raise
    except DamagedFile as error:
        raise ModelError(f"{field}: {error}") from error
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
    """The first truncated or unreadable safetensors or JSON file at or below `path`, or None."""
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
    """The model files in `folder`, unordered, without hidden files, Markdown and leftovers of downloads."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        above = os.path.realpath(parent)
        # a link to a folder above would never end
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and not (os.path.islink(path := os.path.join(parent, name)) and _holds(os.path.realpath(path), above))
        ]
        for name in names:
            if not name.startswith(".") and not name.endswith(_UNHASHED_SUFFIXES):
                yield Path(parent) / name


def _holds(folder: str, path: str) -> bool:
    return os.path.commonpath([folder, path]) == folder


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _digest_of(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=4096)
def _digest_of(path: str, size: int, mtime_ns: int, inode: int) -> str:
    """Hash a file. Size, time and inode are part of the cache key, so that a changed file is hashed again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    """An error's type and the first line of its message, up to 200 characters."""
    lines = str(error).strip().splitlines()
    text = lines[0].strip().rstrip(".:") if lines else ""
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
