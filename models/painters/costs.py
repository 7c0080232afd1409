"""What a denoising step of a text-to-image model costs, from the files of its folder. Loads nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bootpig.models.painters.families import BY_CLASS
from bootpig.models.pretrained import sizes
from bootpig.models.pretrained.source import PIPELINE, local_path

TOKEN_PIXELS = 16**2
"""Pixels per token of most transformers: latents are an eighth of the picture, in patches of 2×2."""

PUBLISHED = (
    ("flux.2-klein-4b", 3.9e9, False),
    ("flux.2-klein-9b", 9.1e9, False),
    ("flux.2-dev", 32e9, False),
    ("flux.1", 11.9e9, False),
    ("z-image", 6.15e9, True),
    ("qwen-image", 20.4e9, True),
    ("stable-diffusion-3.5-large", 8.1e9, True),
    ("stable-diffusion-3.5-medium", 2.2e9, True),
)
"""Of models that are not on this disk: part of the hub id in lower case, weights of the transformer as their authors
state them, and whether guidance takes a second pass."""


def step_tflop(model: str, pixels: float, guidance_scale: float) -> float:
    """Operations of one step for a picture of `pixels` pixels, in 10^12. A model that is not on this disk is taken for
    a Stable Diffusion, see `sizes`, unless its size is published."""
    weights = sizes.transformer_parameters(model) or _published(model)[0]
    once = 2e-12 * weights * pixels / TOKEN_PIXELS if weights else sizes.unet_tflop(model, pixels)
    return once * _passes(model, guidance_scale)


def _published(model: str) -> tuple[float, bool]:
    """Weights of a model's transformer and whether guidance takes a second pass; 0 weights: not known."""
    known = (values for name, *values in PUBLISHED if name in model.lower())
    weights, twice = next(known, (0.0, True))
    return float(weights), bool(twice)


def _passes(model: str, guidance_scale: float) -> int:
    folder = local_path(model)
    configs: dict[str, Any] = {}
    for name in ("", "unet", "transformer") if folder is not None else ():
        assert folder is not None
        configs[name] = _read(folder / name / ("config.json" if name else PIPELINE))
    if folder is None and not _published(model)[1]:
        return 1
    family = BY_CLASS.get(str(configs.get("", {}).get("_class_name")))
    if family is None:
        return 2 if guidance_scale > 1 else 1
    twice = family.guided(configs) and not family.embedded(configs) and guidance_scale > family.off
    return 2 if twice else 1


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
