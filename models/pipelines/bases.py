"""Loads a base model into the BootPIG pipeline that fits it: Stable Diffusion 1.x and 2.x, or XL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.pipelines.xl import BootPIGXLPipeline
from bootpig.models.pretrained.snapshots import fetch_folder
from bootpig.models.pretrained.source import BASE, ModelError, ModelSource, loading
from bootpig.models.pretrained.variants import variant_components


def load_base(source: ModelSource, dtype: torch.dtype) -> BootPIGPipeline | BootPIGXLPipeline:
    """An untrained BootPIG pipeline on a base model, on the CPU. Reads only safetensors. Has no safety checker and no
    watermark.

    Raises:
        ModelError: the files are incomplete or damaged, or BootPIG has no pipeline for this kind of model.
    """
    folder = fetch_folder(replace(source, loads=BASE))
    with loading(source.field, source.source):
        name = str(DiffusionPipeline.load_config(str(folder))["_class_name"])
    if not name.startswith(("StableDiffusion", "BootPIG")):
        raise ModelError(f"{source.field}: {source.source!r} is a {name}; use a Stable Diffusion 1.x, 2.x or XL model")
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    with loading(source.field, source.source):
        options |= variant_components(folder, dtype, without=BASE.without)
        if "XL" in name:
            return BootPIGXLPipeline.from_pretrained(str(folder), add_watermarker=False, **options)
        options |= {"safety_checker": None, "requires_safety_checker": False}
        return BootPIGPipeline.from_pretrained(str(folder), **options)


def empty_prompt(pipeline: BootPIGPipeline | BootPIGXLPipeline) -> tuple[Tensor, Tensor | None]:
    """The embeds that the base uses for a missing caption: those of "", or zeros if an SDXL base's config says so.

    Returns:
        The embeds (S, D), and the pooled embeds (P) if the base has them.
    """
    encoded = pipeline.encode_prompt(
        prompt="", device=pipeline.text_encoder.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    embeds, pooled = encoded[0][0].detach(), encoded[2][0].detach() if len(encoded) == 4 else None
    if pipeline.config.get("force_zeros_for_empty_prompt", False):
        embeds = torch.zeros_like(embeds)
        pooled = None if pooled is None else torch.zeros_like(pooled)
    return embeds, pooled
