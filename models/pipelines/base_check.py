"""Checks a base model by its config files, in a folder or in the hub's cache, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bootpig.models.pipelines.base_rules import PIPELINES
from bootpig.models.pipelines.supported import UnsupportedBase, unsupported
from bootpig.models.pretrained.source import PIPELINE, ModelError, ModelSource, loading

_FILES = {
    "scheduler": "scheduler/scheduler_config.json",
    "vae": "vae/config.json",
    "unet": "unet/config.json",
    "text_encoder": "text_encoder/config.json",
    "text_encoder_2": "text_encoder_2/config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
    "tokenizer_2": "tokenizer_2/tokenizer_config.json",
}
"""Component → its config file in a pipeline's folder."""

_SECOND = ("text_encoder_2", "tokenizer_2")


def base_problems(source: ModelSource) -> list[str]:
    """Why BootPIG cannot use a base model, one line per property. Reads only JSON files, in milliseconds.

    Files that are missing, unreadable or not downloaded yet are left out: whoever loads them reports them.
    """
    index = _index(source)
    if not index:
        return []
    family = PIPELINES.get(str(index.get("_class_name")))
    wanted = [part for part in _FILES if family == "XL" or part not in _SECOND]
    configs: dict[str, dict[str, Any]] = {"pipeline": index}
    missing = []
    for part in wanted:
        entry = index.get(part)
        kind = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if kind is None:
            missing.append(part)
        elif (config := _read(source, _FILES[part])) is not None:
            configs[part] = {**config, "_class_name": kind}
    configs["pipeline"] = {**index, "missing": missing}
    return _lines(source, unsupported(configs))


def check_base(source: ModelSource) -> str:
    """The family of a base model, `SD` or `XL`.

    Raises:
        ModelError: `base_problems` finds any, or the folder is no pipeline's.
    """
    if problems := base_problems(source):
        raise ModelError("\n".join(problems))
    return PIPELINES[str(_index(source)["_class_name"])]


@contextmanager
def loading_base(source: ModelSource) -> Iterator[None]:
    """As `loading`, for a base model: a component that BootPIG cannot use is named, too."""
    with loading(source.field, source.source):
        try:
            yield
        except UnsupportedBase as error:
            raise ModelError("\n".join(_lines(source, error.problems))) from error


def _lines(source: ModelSource, problems: Sequence[str]) -> list[str]:
    return [f"{source.field}: {source.source!r} {problem}" for problem in problems]


def _index(source: ModelSource) -> dict[str, Any]:
    """model_index.json, with the pipeline's class as text. Empty if it cannot be read."""
    index = _read(source, PIPELINE) or {}
    name = index.get("_class_name")
    if isinstance(name, list) and name:  # a pipeline saved with its own pipeline.py: [module, class]
        index["_class_name"] = name[-1]
    return index


def _read(source: ModelSource, name: str) -> dict[str, Any] | None:
    """A JSON file of a pipeline, or None."""
    path: Path | None = Path(source.path, name)
    if source.revision is not None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(source.path, name, revision=source.revision)
        path = Path(cached) if isinstance(cached, str) else None
    try:
        content = None if path is None else json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
