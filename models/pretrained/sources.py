"""Where an outside model lies, and what stands for it in a fingerprint: a digest of its files, or a hub commit."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from bootpig.models.memory import is_out_of_memory

PROJECT = Path(__file__).resolve().parents[2]
"""Relative paths are looked up here too, so that the committed toy checkpoints are found from any folder."""

HUB_SECONDS = 10.0
"""How long one question to the hub may take."""

LOOKUP_SECONDS = 20.0
"""How long all models of a stage together may take to be found."""

PIPELINE = "model_index.json"
"""The file that a diffusers pipeline has."""
TRANSFORMER = "config.json"
"""The file that a transformers model has."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNHASHED_SUFFIXES = (".md", ".lock", ".tmp")
_KINDS = {PIPELINE: "a diffusers pipeline", TRANSFORMER: "a transformers model"}
_COMMITS: dict[tuple[str, str, str, str | None], str] = {}
"""What the hub answered, so that a process sees one commit of a branch from beginning to end."""


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
    """The hub commit, 40 hex digits; None for a file or folder."""
    sha256: str | None = None
    """Of a file that is downloaded from `source`, a URL, to `path`; see `bootpig.models.pretrained.downloads`."""

    @property
    def is_local(self) -> bool:
        return self.revision is None and self.sha256 is None

    def as_json(self) -> dict[str, str]:
        """The identity: `{"digest"}` of a file or folder wherever it lies, or `{"id", "commit"}`.

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
                f"{self.field}: {self.source!r} cannot be read ({_first_line(error)}); check its permissions"
            ) from error


def resolve(field: str, source: str, revision: str | None = None, entry: str | None = None) -> ModelSource:
    """Find a model without loading it: a local file or folder first, then the hub's cache, then the hub.

    Args:
        field: the config field that names the model.
        source: a file or folder (absolute, `~`, or relative to the working folder or the project), or a hub id.
        revision: a branch, tag or commit of a hub id; None means `main`.
        entry: a file that the model must have, `PIPELINE` or `TRANSFORMER`.

    Raises:
        ModelError: nothing is there, or no `entry`, or a revision is given for a local path.
    """
    path = local_path(source)
    if path is not None:
        if revision is not None:
            raise ModelError(f"{field}: {source!r} is a local path, which has no revision {revision!r}; remove it")
        if path.is_dir() and not any(_hashed_files(path)):
            raise ModelError(f"{field}: the folder {source!r} is empty; put the model's files into it")
        if entry is not None and not (path / entry).is_file():
            raise ModelError(f"{field}: {source!r} has no {entry}; give the folder of {_KINDS[entry]}")
        return ModelSource(field, source, str(path))
    if not _HUB_ID.fullmatch(source) or Path(source).suffix in (".safetensors", ".pth", ".pt", ".bin"):
        raise ModelError(f"{field}: {source!r} does not exist; give an existing file or folder, or a hub id")
    return ModelSource(field, source, source, _hub_commit(field, source, revision or "main", entry))


def resolve_file(field: str, source: str, sha256: str | None = None) -> ModelSource:
    """Find a checkpoint that is one file: a local one, or one that `downloads.fetch` will download.

    Args:
        source: a path, or an http(s) URL.
        sha256: 64 hex digits that the file must have; a URL needs it.

    Raises:
        ModelError: there is no such file, or it is another one.
    """
    if re.match(r"https?://", source):
        from bootpig.models.pretrained.downloads import look_up

        return ModelSource(field, source, str(look_up(field, source, sha256)), sha256=sha256)
    path = local_path(source)
    if path is None or not path.is_file():
        what = "does not exist" if path is None else "is a folder"
        raise ModelError(f"{field}: {source!r} {what}; give the path of a checkpoint file")
    found = ModelSource(field, source, str(path))
    if sha256 is not None and (digest := found.as_json()["digest"]) != sha256:
        raise ModelError(f"{field}: {source!r} has sha256 {digest}, not {sha256}; give the file that was meant")
    return found


def resolve_all(stage: str, lookups: Mapping[str, Callable[[], ModelSource]]) -> dict[str, ModelSource]:
    """Look the models of a stage up, by the names of their fields, at the same time.

    Raises:
        ModelError: one line a model that is not found, all of them.
    """
    found: dict[str, ModelSource] = {}
    failed: dict[str, BaseException] = {}

    def look_up(name: str) -> None:
        try:
            found[name] = lookups[name]()
        except BaseException as error:
            failed[name] = error

    # daemons: whoever does not answer must not keep the process
    threads = [threading.Thread(target=look_up, args=(name,), daemon=True) for name in lookups]
    for thread in threads:
        thread.start()
    end = time.monotonic() + LOOKUP_SECONDS
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    problems = []
    for name in lookups:
        error = failed.get(name)
        if error is not None and not isinstance(error, ValueError):
            raise error
        if error is not None:
            problems.append(str(error))
        elif name not in found:
            silence = f"no answer within {LOOKUP_SECONDS:g} seconds"
            problems.append(f"{stage}.{name}: {silence}; give a local folder or mend the connection")
    if problems:
        raise ModelError("\n".join(problems))
    return {name: found[name] for name in lookups}


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
    files = sorted(_hashed_files(path), key=lambda file: file.relative_to(path).as_posix())
    with ThreadPoolExecutor(8) as pool:  # hashing lets go of the interpreter's lock
        for file, found in zip(files, pool.map(_file_digest, files), strict=True):
            digest.update(f"{file.relative_to(path).as_posix()}\0{found}\n".encode())
    return digest.hexdigest()


@contextmanager
def loading(field: str, source: str) -> Iterator[None]:
    """Turn whatever a library raises over broken model files into one `ModelError` that names field and file.

    Out of memory passes through: the files are not at fault.
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
        mend = "give a complete model of the right kind"
        if path is None:
            mend = "check the connection and the login, or give a complete local folder of the right kind"
        raise ModelError(f"{field}: {source!r} cannot be loaded ({_first_line(error)}); {mend}") from error


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


def _hub_commit(field: str, repo: str, revision: str, entry: str | None) -> str:
    """The commit of a hub id: from the hub's cache where that has the model, else from the hub, asked once a process.

    Raises:
        ModelError: the hub has no such repository, revision or `entry`, refuses it, or cannot be asked.
    """
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    cached = _cached_commit(cache, revision)
    if cached is not None and (entry is None or (cache / "snapshots" / cached / entry).exists()):
        return cached
    key = (constants.ENDPOINT, repo, revision, entry)
    if key not in _COMMITS:
        _COMMITS[key] = _ask_hub(field, repo, revision, entry)
    return _COMMITS[key]


def _cached_commit(cache: Path, revision: str) -> str | None:
    if _COMMIT.fullmatch(revision):
        return revision if (cache / "snapshots" / revision).is_dir() else None
    reference = cache / "refs" / revision
    return reference.read_text().strip() if reference.is_file() else None


def _ask_hub(field: str, repo: str, revision: str, entry: str | None) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    api = HfApi()
    try:
        info = api.model_info(repo, revision=revision, timeout=HUB_SECONDS)
        if info.gated:  # everyone may look at it, but not download it
            api.auth_check(repo)
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
    except OfflineModeIsEnabled as error:
        raise ModelError(
            f"{field}: {repo!r} at {revision!r} is not in the hub's cache, and HF_HUB_OFFLINE is set; "
            "download it first (`hf download`) or give a local folder"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        mend = "log in anew (`hf auth login`)" if status in (401, 403) else "try again later or give a local folder"
        raise ModelError(f"{field}: the hub answered {status} for {repo!r}; {mend}") from error
    except Exception as error:
        raise ModelError(
            f"{field}: {repo!r} is no local folder, and the hub cannot be asked ({_first_line(error)}); "
            "give an existing folder, a mirror (HF_ENDPOINT), or go online"
        ) from error
    if info.sha is None:
        raise ModelError(f"{field}: the hub names no commit for {repo!r} at {revision!r}; give a commit as revision")
    if entry is not None and entry not in {file.rfilename for file in info.siblings or ()}:
        raise ModelError(f"{field}: {repo!r} has no {entry} at {revision!r}; name a repository of {_KINDS[entry]}")
    return info.sha


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
