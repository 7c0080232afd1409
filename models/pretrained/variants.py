"""Loads the components of a pipeline whose weights exist only in a variant, such as fp16."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj
from transformers import PreTrainedModel

from bootpig.models.pretrained.weight_choice import Library, choose_weights


def variant_of(folder: Path, library: Library, *, pickles: bool = False) -> str | None:
    """The variant in which a model's weights are loaded from its folder; None for plain ones."""
    choice = choose_weights([file.name for file in folder.iterdir()], library, pickles=pickles)
    return None if choice is None else choice.variant


def variant_components(folder: Path, dtype: torch.dtype, *, without: Collection[str] = ()) -> dict[str, Any]:
    """The components of a local pipeline that have no plain weights, loaded in their variant.

    Each component has a variant of its own: diffusers' argument `variant` takes one for all, and prefers it to plain
    weights.

    Args:
        without: components that are not loaded.
    """
    found = {}
    for name, value in DiffusionPipeline.load_config(str(folder)).items():
        if name.startswith("_") or name in without or not isinstance(value, list) or not (folder / name).is_dir():
            continue
        if value[0] is None:
            continue
        kind: Any
        try:
            kind = simple_get_class_obj(*value)
        except (AttributeError, ImportError, TypeError, ValueError):
            continue  # a class of the folder's own code, or of another release: the pipeline may not even use it
        if (library := _library(kind)) is None:
            continue
        if (variant := variant_of(folder / name, library)) is not None:
            found[name] = kind.from_pretrained(folder / name, variant=variant, dtype=dtype, use_safetensors=True)
    return found


def _library(kind: Any) -> Library | None:
    """Whose model a class is; None: it is no model."""
    if not isinstance(kind, type):
        return None
    if issubclass(kind, ModelMixin):
        return "diffusers"
    return "transformers" if issubclass(kind, PreTrainedModel) else None
