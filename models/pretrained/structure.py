"""Compares the tensors of weight files with the class that will hold them, built without memory on the meta device.

The names that a library converts, ties or ignores on loading are left to the library's own loading code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers.models.model_loading_utils import _fetch_remapped_cls_from_config
from diffusers.models.modeling_utils import LegacyModelMixin, no_init_weights
from transformers.utils import logging as transformers_logging

from bootpig.models.pretrained.weight_files import Header

_TORCH = {
    "BOOL": torch.bool,
    **{f"U{bits}": getattr(torch, f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"I{bits}": getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": getattr(torch, f"float{bits}") for bits in (16, 32, 64)},
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
}


def on_meta(header: Header) -> dict[str, torch.Tensor]:
    """Tensors without memory in place of those of a file. Any 8-bit float counts as one."""
    return {
        name: torch.empty(info.shape, dtype=_TORCH.get(info.dtype, torch.float8_e4m3fn), device="meta")
        for name, info in header.items()
    }


def diffusers_mismatch(kind: Any, folder: Path, tensors: dict[str, torch.Tensor], *, sharded: bool) -> str | None:
    """How the weights of a diffusers model differ from its class, or None if it will load.

    Args:
        kind: a subclass of `diffusers.ModelMixin`.
        folder: has its config.json.
        tensors: from `on_meta`; changed.
        sharded: diffusers renames old attention layers only where there is one file.

    Raises:
        Exception: the class cannot be built from that config.
    """
    config = kind.load_config(str(folder))
    if config.get("quantization_config"):
        return None
    if issubclass(kind, LegacyModelMixin):
        kind = _fetch_remapped_cls_from_config(config, kind)
    with ExitStack() as stack:
        for context in (no_init_weights(), init_empty_weights()):
            stack.enter_context(context)
        model = kind.from_config(config)
    if not sharded:
        model._fix_state_dict_keys_on_load(tensors)
    own = model.state_dict()
    # buffers have their values from the constructor
    missing = [name for name, tensor in own.items() if name not in tensors and tensor.is_meta]
    return _difference(kind.__name__, own, tensors, missing)


def transformers_mismatch(
    kind: Any, config: Any, tensors: Mapping[str, torch.Tensor], spare: str | None = None
) -> str | None:
    """How the weights of a transformers model differ from its class, or None if it will load.

    Args:
        kind: a subclass of `transformers.PreTrainedModel`.
        config: its configuration.
        tensors: from `on_meta`.
        spare: pattern of weights that may be missing because they are not used.

    Raises:
        Exception: the class cannot be built from that config.
    """
    if getattr(config, "quantization_config", None):
        return None
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=torch.float32,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    if report["mismatched_keys"]:
        name, found, wanted = min(report["mismatched_keys"], key=lambda key: str(key[0]))
        return _wrong_shape(kind.__name__, str(name), tuple(found), tuple(wanted))
    missing = [name for name in report["missing_keys"] if spare is None or not re.search(spare, name)]
    own = model.state_dict()
    return _difference(kind.__name__, {name: own[name] for name in own if name in tensors}, tensors, missing)


def state_mismatch(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """How weights differ from a module that loads them strictly."""
    own = model.state_dict()
    missing = [name for name in own if name not in tensors]
    if surplus := sorted(tensors.keys() - own.keys()):
        return f"has {len(surplus)} tensors that a {type(model).__name__} does not have, such as {surplus[0]!r}"
    return _difference(type(model).__name__, own, tensors, missing)


def _difference(
    kind: str, own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], missing: list[str]
) -> str | None:
    for name, tensor in own.items():
        if name in tensors and tensors[name].shape != tensor.shape:
            return _wrong_shape(kind, name, tuple(tensors[name].shape), tuple(tensor.shape))
    if missing:
        return f"lacks {len(missing)} weights of a {kind}, such as {min(missing)!r}"
    for name, tensor in own.items():
        if name in tensors and tensor.is_floating_point() and not tensors[name].is_floating_point():
            return f"has {name!r} in {tensors[name].dtype}, but a {kind} needs floating point"
    return None


def _wrong_shape(kind: str, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    return f"has {name!r} of shape {found}, but its config.json asks for {wanted} in a {kind}"


def versions() -> str:
    return f"diffusers {diffusers.__version__} and transformers {transformers.__version__}"
