"""Downloads the files of hub models that will be loaded, all of them before the first stage, and finds their folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bootpig.models.pretrained.source import PIPELINE, ModelSource, loading
from bootpig.models.pretrained.weight_choice import WeightChoice, choose_weights
from bootpig.models.pretrained.weight_files import DamagedFile, read_json

_Told = Callable[[str], None]

_TEXTS = (".json", ".txt", ".model", ".jinja")
"""Suffixes of a transformers model's files besides its weights."""


def cached_folder(source: ModelSource) -> Path | None:
    """The local folder of a model. For a hub model, the snapshot in the hub's cache, which may be incomplete; None if
    there is none."""
    if source.revision is None:
        return Path(source.path)
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    repo = repo_folder_name(repo_id=source.path, repo_type="model")
    folder = Path(constants.HF_HUB_CACHE, repo, "snapshots", source.revision)
    return folder if folder.is_dir() else None


def complete_folder(source: ModelSource) -> Path | None:
    """Like `cached_folder`, but None while files of a hub model are still to be downloaded.

    Without a connection (HF_HUB_OFFLINE), the cache is all there is: an incomplete folder is returned.
    """
    from huggingface_hub import constants

    folder = cached_folder(source)
    if folder is None or source.revision is None or constants.HF_HUB_OFFLINE:
        return folder
    names = _listed(source)
    return folder if names is not None and not _absent(source, folder, names) else None


def fetch_folder(source: ModelSource, told: _Told = lambda line: None) -> Path:
    """The local folder of a model. For a hub model, the files that will be loaded are downloaded if needed.

    Args:
        told: called with one line before a download starts.

    Raises:
        ModelError: a file cannot be downloaded.
    """
    if source.revision is None:
        return Path(source.path)
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with loading(source.field, source.source):
            if complete_folder(source) is None:
                told(f"{source.field}: downloading {source.path} at {source.revision[:8]}")
            names = _names(source)
            if names is not None and PIPELINE in names:
                return _fetch_pipeline(source, names)
            return _fetch_model(source, names)
    finally:
        if shown:
            enable_progress_bars()


def _fetch_pipeline(source: ModelSource, names: list[str]) -> Path:
    """Download as diffusers does, once for each variant that the components have."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download

    index = read_json(Path(hf_hub_download(source.path, PIPELINE, revision=source.revision)))
    parts = [name for name, value in index.items() if isinstance(value, list) and not name.startswith("_")]
    unused = [name for name in parts if not source.loads.component(name)]
    variants = {name: choice.variant for name in parts if (choice := _choice_in(name, names)) is not None}
    folder = None
    for variant in dict.fromkeys(variants[name] for name in variants if name not in unused):
        others = [name for name, own in variants.items() if own != variant]
        folder = DiffusionPipeline.download(
            source.path,
            revision=source.revision,
            variant=variant,
            use_safetensors=True,
            trust_remote_code=False,
            **dict.fromkeys([*unused, *others]),
        )
    if folder is None:
        raise DamagedFile(Path(PIPELINE), "names no component with weights in safetensors", "use another model")
    return Path(folder)


def _fetch_model(source: ModelSource, names: list[str] | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = None
    if names is not None:
        top = [name for name in names if "/" not in name]
        choice = choose_weights(top, "transformers", pickles=source.loads.pickles)
        patterns = [name for name in top if name.endswith(_TEXTS) and ".index." not in name]
        patterns += [] if choice is None else _patterns(choice)
    return Path(snapshot_download(source.path, revision=source.revision, allow_patterns=patterns))


def _patterns(choice: WeightChoice) -> list[str]:
    """Glob patterns of a choice's files: the file, or the index and its shards."""
    if not choice.is_index:
        return [choice.file]
    stem, _, suffix = choice.file.partition(".index.")[0].rpartition(".")
    variant = f".{choice.variant}" if choice.variant else ""
    return [choice.file, f"{stem}{variant}-*.{suffix}"]


def _choice_in(part: str, names: list[str]) -> WeightChoice | None:
    inside = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
    return choose_weights(inside, "diffusers") or choose_weights(inside, "transformers")


def _names(source: ModelSource) -> list[str] | None:
    """The files of a hub model at its commit: from the hub's cache, else from the hub. None if neither knows."""
    from huggingface_hub import HfApi, constants

    names = _listed(source)
    if names is not None or constants.HF_HUB_OFFLINE:
        return names if names is not None else _present(cached_folder(source))
    try:
        return HfApi(endpoint=constants.ENDPOINT).list_repo_files(source.path, revision=source.revision)
    except Exception:  # the hub is gone; what is in its cache may be enough
        return _present(cached_folder(source))


def _listed(source: ModelSource) -> list[str] | None:
    """The files of a hub model as listed by an earlier download."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [file.path for file in get_cached_repo_tree(source.path, revision=source.revision)]
    except CachedRepoTreeNotFoundError:
        return None


def _present(folder: Path | None) -> list[str] | None:
    if folder is None:
        return None
    return [os.path.relpath(file, folder) for file in folder.rglob("*") if not file.is_dir()]


def _absent(source: ModelSource, folder: Path, names: list[str]) -> bool:
    """Whether one of the weight files that will be loaded is not in a snapshot."""
    parts = {name.partition("/")[0] for name in names if "/" in name} if PIPELINE in names else {""}
    for part in filter(source.loads.component, parts):
        inside = folder / part
        own = [n.removeprefix(f"{part}/") if part else n for n in names if not part or n.startswith(f"{part}/")]
        choice = choose_weights(own, "diffusers") or choose_weights(own, "transformers", pickles=source.loads.pickles)
        if choice is None:
            continue
        files = [choice.file]
        if choice.is_index and (inside / choice.file).is_file():
            try:
                files += set(read_json(inside / choice.file).get("weight_map", {}).values())
            except (DamagedFile, AttributeError):
                continue  # it will be named
        if not all((inside / file).exists() for file in files):
            return True
    return False
