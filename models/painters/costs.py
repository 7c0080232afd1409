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


def step_tflop(model: str, pixels: float, guidance_scale: float) -> float:
    """Operations of one step for a picture of `pixels` pixels, in 10^12. A model that is not on this disk is taken for
    a Stable Diffusion, see `sizes`."""
    weights = sizes.transformer_parameters(model)
    once = 2e-12 * weights * pixels / TOKEN_PIXELS if weights else sizes.unet_tflop(model, pixels)
    return once * _passes(model, guidance_scale)


def _passes(model: str, guidance_scale: float) -> int:
    folder = local_path(model)
    configs: dict[str, Any] = {}
    for name in ("", "unet", "transformer") if folder is not None else ():
        assert folder is not None
        configs[name] = _read(folder / name / ("config.json" if name else PIPELINE))
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
