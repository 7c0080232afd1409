"""Where an outside model lies, and what stands for it in a fingerprint: a digest of its files, or a hub commit."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
"""Relative paths are looked up here too, so that the committed toy checkpoints are found from any folder."""

HUB_SECONDS = 10.0
"""How long one question to the hub may take."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNHASHED_SUFFIXES = (".md", ".lock", ".tmp")


class ModelError(ValueError):
    """A model is missing, broken, or not what its field needs. One line: the field, the value, the mend."""


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
    """The hub commit, 40 hex digits; None for a local file or folder."""

    @property
    def is_local(self) -> bool:
        return self.revision is None

    def as_json(self) -> dict[str, str]:
        """The identity: `{"digest"}` of a local file or folder wherever it lies, or `{"id", "commit"}`.

        Raises:
            ModelError: a file of it cannot be read.
        """
        if self.revision is not None:
            return {"id": self.path, "commit": self.revision}
        try:
            return {"digest": content_digest(Path(self.path))}
        except OSError as error:
            raise ModelError(
                f"{self.field}: {self.source!r} cannot be read ({_first_line(error)}); check its permissions"
            ) from error


def resolve(field: str, source: str, revision: str | None = None) -> ModelSource:
    """Find a model without loading it: a local file or folder first, then the hub's cache, then the hub.

    Args:
        field: the config field that names the model.
        source: a file or folder (absolute, `~`, or relative to the working folder or the project), or a hub id.
        revision: a branch, tag or commit of a hub id; None means `main`.

    Raises:
        ModelError: nothing is there, or a revision is given for a local path.
    """
    path = local_path(source)
    if path is not None:
        if revision is not None:
            raise ModelError(f"{field}: {source!r} is a local path, which has no revision {revision!r}; remove it")
        if path.is_dir() and not any(_hashed_files(path)):
            raise ModelError(f"{field}: the folder {source!r} is empty; put the model's files into it")
        return ModelSource(field, source, str(path))
    if not _HUB_ID.fullmatch(source) or Path(source).suffix in (".safetensors", ".pth", ".pt", ".bin"):
        raise ModelError(f"{field}: {source!r} does not exist; give an existing file or folder, or a hub id")
    return ModelSource(field, source, source, _hub_commit(field, source, revision or "main"))


def resolve_file(field: str, source: str) -> ModelSource:
    """Find a checkpoint that is one local file.

    Raises:
        ModelError: there is no such file.
    """
    path = local_path(source)
    if path is None or not path.is_file():
        what = "does not exist" if path is None else "is a folder"
        raise ModelError(f"{field}: {source!r} {what}; give the path of a checkpoint file")
    return ModelSource(field, source, str(path))


def local_path(source: str) -> Path | None:
    """The absolute path of `source` below the working folder or the project, or None if neither has it."""
    given = os.path.expanduser(source)
    for path in (given, os.path.join(PROJECT, given)):
        if os.path.exists(path):
            return Path(path).resolve()
    return None


def content_digest(path: Path) -> str:
    """sha256, in hex, of a file, or of a folder's sorted (relative path, file digest) pairs.

    Hidden files, Markdown and leftovers of downloads stay out: they change no output.
    """
    if path.is_file():
        return _file_digest(path)
    digest = hashlib.sha256()
    for file in sorted(_hashed_files(path), key=lambda file: file.relative_to(path).as_posix()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{_file_digest(file)}\n".encode())
    return digest.hexdigest()


@contextmanager
def loading(field: str, source: str) -> Iterator[None]:
    """Turn whatever a library raises over broken model files into one `ModelError` that names field and file.

    Out of memory passes through: the files are not at fault.
    """
    try:
        yield
    except (ModelError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        path = local_path(source)
        broken = None if path is None else broken_file(path)
        if broken is not None:
            raise ModelError(f"{field}: the file {str(broken)!r} is damaged; restore it") from error
        raise ModelError(
            f"{field}: {source!r} cannot be loaded ({_first_line(error)}); give a complete model of the right kind"
        ) from error


def broken_file(path: Path) -> Path | None:
    """The first safetensors or JSON file at or below `path` that is cut short or unreadable, or None."""
    for file in [path] if path.is_file() else sorted(_hashed_files(path)):
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


def _hub_commit(field: str, repo: str, revision: str) -> str:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    cache = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    if _COMMIT.fullmatch(revision) and (cache / "snapshots" / revision).is_dir():
        return revision
    reference = cache / "refs" / revision
    if reference.is_file():
        return reference.read_text().strip()
    try:
        commit = HfApi().model_info(repo, revision=revision, timeout=HUB_SECONDS).sha
    except GatedRepoError as error:
        raise ModelError(
            f"{field}: {repo!r} is gated; accept its licence on its hub page and log in (`hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{field}: {repo!r} has no revision {revision!r}; see the branches on its hub page") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{field}: {repo!r} is neither a local folder nor on the hub; name a mirror or a folder, "
            "or log in if it is private (`hf auth login`)"
        ) from error
    except Exception as error:
        raise ModelError(
            f"{field}: {repo!r} is no local folder, and the hub cannot be asked ({_first_line(error)}); "
            "give an existing folder or go online"
        ) from error
    if commit is None:
        raise ModelError(f"{field}: the hub names no commit for {repo!r} at {revision!r}; give a commit as revision")
    return commit


def _hashed_files(folder: Path) -> Iterator[Path]:
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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0].strip().rstrip(".:") if lines else ""
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
