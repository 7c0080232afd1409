"""Finds the model named by a config field without loading it: a local file or folder, a hub id, or a URL."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bootpig.models.pretrained.downloads import look_up
from bootpig.models.pretrained.hub import hub_commit
from bootpig.models.pretrained.source import (
    KINDS,
    PIPELINE,
    WHOLE,
    Loads,
    ModelError,
    ModelSource,
    local_path,
    model_files,
)

LOOKUP_SECONDS = 20.0
"""Time limit for finding all models of a stage."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve(
    field: str, source: str, revision: str | None = None, entry: str | None = None, loads: Loads = WHOLE
) -> ModelSource:
    """Find a model without loading it. Looks for a local file or folder, then in the hub's cache, then on the hub.

    Args:
        field: the config field that names the model.
        source: a file or folder (absolute, `~`, or relative to the working folder or the project), or a hub id.
        revision: a branch, tag or commit of a hub id; None means `main`.
        entry: a file that the model must have, `PIPELINE` or `TRANSFORMER`.
        loads: which of its files are loaded.

    Raises:
        ModelError: the model or its `entry` does not exist, or a revision is given for a local path.
    """
    path = local_path(source)
    if path is not None:
        if revision is not None:
            raise ModelError(
                f"{field}: {source!r} is a local path and cannot have revision {revision!r}; remove the revision"
            )
        if path.is_dir() and not any(model_files(path)):
            raise ModelError(f"{field}: the folder {source!r} is empty; put the model's files into it")
        if entry is not None and not (path / entry).is_file():
            raise ModelError(f"{field}: {source!r} {_without(path, entry)}")
        return ModelSource(field, source, str(path), loads=loads)
    _check_link(field, source)
    if not _HUB_ID.fullmatch(source) or Path(source).suffix in (".safetensors", ".pth", ".pt", ".bin"):
        raise ModelError(f"{field}: {source!r} does not exist; give an existing file or folder, or a hub id")
    return ModelSource(field, source, source, hub_commit(field, source, revision or "main", entry), loads=loads)


def resolve_file(field: str, source: str, sha256: str | None = None) -> ModelSource:
    """Find a checkpoint that is a single file: a local one, or one that `downloads.fetch` will download.

    Args:
        field: the config field that names the checkpoint.
        source: a path or an http(s) URL.
        sha256: expected hash, 64 hex digits; required for a URL.

    Raises:
        ModelError: there is no such file, or its sha256 does not match.
    """
    if re.match(r"https?://", source):
        return ModelSource(field, source, str(look_up(field, source, sha256)), sha256=sha256)
    path = local_path(source)
    _check_link(field, source)
    if path is None or not path.is_file():
        what = "does not exist" if path is None else "is a folder"
        raise ModelError(f"{field}: {source!r} {what}; give the path of a checkpoint file")
    found = ModelSource(field, source, str(path))
    if sha256 is not None and (digest := found.as_json()["digest"]) != sha256:
        raise ModelError(f"{field}: {source!r} has sha256 {digest}, not {sha256}; give the right file")
    return found


def _without(path: Path, entry: str) -> str:
    """What is wrong with a local path that has no file `entry`, and what to give instead."""
    if path.is_file():
        if entry == PIPELINE and path.suffix.lower() in (".safetensors", ".ckpt"):
            kind = "StableDiffusionXLPipeline" if "xl" in path.name.lower() else "StableDiffusionPipeline"
            load = f"from diffusers import {kind} as P; P.from_single_file({str(path)!r})"
            command = f'python -c "{load}.save_pretrained({str(path.with_suffix(""))!r})"'
            return f"is a single file; convert it to a folder: {command}"
        return f"is a file; give the folder of {KINDS[entry]}"
    for name in sorted(file.name for file in path.iterdir()):
        if name.lower() == entry.lower():
            return f"has {name} but no {entry}; rename it"
    near = sorted({file.parent for file in model_files(path) if file.name == entry})
    near += [path.parent] if (path.parent / entry).is_file() else []
    there = f", which {str(near[0])!r} has" if near else ""
    return f"has no {entry}{there}; give the folder of {KINDS[entry]}"


def _check_link(field: str, source: str) -> None:
    """Raises ModelError for a link that leads nowhere."""
    path = Path(os.path.expanduser(source))
    if path.is_symlink() and not path.exists():
        raise ModelError(
            f"{field}: {source!r} is a link to {str(path.readlink())!r}, which does not exist; restore the link"
        )


def resolve_all(stage: str, lookups: Mapping[str, Callable[[], ModelSource]]) -> dict[str, ModelSource]:
    """Find all models of a stage concurrently. `lookups` and the result are keyed by field name.

    Raises:
        ModelError: one line for each model that was not found.
    """
    found: dict[str, ModelSource] = {}
    failed: dict[str, BaseException] = {}

    def look_up(name: str) -> None:
        try:
            found[name] = lookups[name]()
        except BaseException as error:
            failed[name] = error

    # daemon threads: a server that does not answer must not keep the process alive
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
            problems.append(f"{stage}.{name}: {silence}; give a local folder or check the connection")
    if problems:
        raise ModelError("\n".join(problems))
    return {name: found[name] for name in lookups}
