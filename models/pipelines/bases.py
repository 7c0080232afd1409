"""Loads a base model into the BootPIG pipeline that fits it: Stable Diffusion 1.x and 2.x, or XL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import DDPMScheduler, SchedulerMixin
from torch import Tensor

from bootpig.models.pipelines.base_check import check_base, loading_base
from bootpig.models.pipelines.common import noise_schedule
from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.pipelines.xl import BootPIGXLPipeline
from bootpig.models.pretrained.snapshots import fetch_folder
from bootpig.models.pretrained.source import BASE, ModelSource
from bootpig.models.pretrained.variants import variant_components


def load_base(source: ModelSource, dtype: torch.dtype) -> BootPIGPipeline | BootPIGXLPipeline:
    """An untrained BootPIG pipeline on a base model, on the CPU. Reads only safetensors. Has no safety checker and no
    watermark.

    Raises:
        ModelError: the files are incomplete or damaged, or BootPIG cannot use this model (see `supported`).
    """
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    folder = fetch_folder(replace(source, loads=BASE))
    with loading_base(source):
        family = check_base(source)
        options |= variant_components(folder, dtype, without=BASE.without)
        if family == "XL":
            return BootPIGXLPipeline.from_pretrained(str(folder), add_watermarker=False, **options)
        options |= {"safety_checker": None, "requires_safety_checker": False}
        return BootPIGPipeline.from_pretrained(str(folder), **options)


def training_schedule(scheduler: SchedulerMixin) -> DDPMScheduler:
    """DDPM's scheduler with the betas and the prediction type of another one. It adds the noise in training.

    `from_config` alone would take DDPM's own defaults for what the other class has by default: LCM and TCD have others.
    """
    own = {name: value for name, value in noise_schedule(scheduler.config).items() if value is not None}
    schedule: DDPMScheduler = DDPMScheduler.from_config(scheduler.config, **own)
    return schedule


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
