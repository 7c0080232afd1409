"""Loads a base model into the BootPIG pipeline that fits it: Stable Diffusion 1.x and 2.x, or XL."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.pipelines.xl import BootPIGXLPipeline
from bootpig.models.pretrained.source import ModelError, ModelSource, loading


def load_base(source: ModelSource, dtype: torch.dtype) -> BootPIGPipeline | BootPIGXLPipeline:
    """An untrained BootPIG pipeline on a base model, on the CPU. Reads only safetensors. Has no safety checker and no
    watermark.

    Raises:
        ModelError: the files are incomplete or damaged, or BootPIG has no pipeline for this kind of model.
    """
    options: dict[str, Any] = {"revision": source.revision} if source.revision else {}
    with loading(source.field, source.source):
        name = str(DiffusionPipeline.load_config(source.path, **options)["_class_name"])
    if not name.startswith(("StableDiffusion", "BootPIG")):
        raise ModelError(f"{source.field}: {source.source!r} is a {name}; use a Stable Diffusion 1.x, 2.x or XL model")
    options |= {"dtype": dtype, "use_safetensors": True}
    with loading(source.field, source.source):
        if "XL" in name:
            return BootPIGXLPipeline.from_pretrained(source.path, add_watermarker=False, **options)
        options |= {"safety_checker": None, "requires_safety_checker": False}
        return BootPIGPipeline.from_pretrained(source.path, **options)


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
