"""Outside diffusion pipelines: text-to-image, and the parts that turn pictures and captions into tensors."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from bootpig.models.pretrained.source import ModelError, ModelSource, loading

_ENCODERS = ("vae", "text_encoder", "tokenizer")


def load_text_to_image(
    source: ModelSource, *, device: torch.device, dtype: torch.dtype, scheduler: str | None = None
) -> DiffusionPipeline:
    """Any diffusers text-to-image pipeline, in safetensors, on `device`.

    Args:
        scheduler: a diffusers scheduler class to sample with in place of the folder's; keeps the folder's settings.

    Raises:
        ModelError: the files are incomplete or damaged, or `scheduler` does not exist or fit.
    """
    pipeline = _load(source, dtype)
    if scheduler is not None:
        set_scheduler(pipeline, source, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def set_scheduler(pipeline: Any, source: ModelSource, name: str) -> None:
    """Let a pipeline sample with a diffusers scheduler class, by the settings of its own one.

    Raises:
        ModelError: there is no such class, or it does not fit.
    """
    scheduler_class = getattr(diffusers, name, None)
    if scheduler_class is None or not hasattr(scheduler_class, "set_timesteps"):
        raise ModelError(
            f"{source.field}: diffusers has no scheduler {name!r}; "
            f"choose one of {', '.join(sorted(c.__name__ for c in pipeline.scheduler.compatibles))}"
        )
    with loading(source.field, source.source):
        pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config)


def load_refiner(
    source: ModelSource, base: DiffusionPipeline, *, device: torch.device, dtype: torch.dtype
) -> DiffusionPipeline:
    """An SDXL image-to-image pipeline that goes on from the latents at which `base` stops.

    Raises:
        ModelError: the files are incomplete or damaged, `base` cannot stop midway, or the refiner cannot begin there.
    """
    field = source.field.replace("refiner", "model")
    if "denoising_end" not in inspect.signature(type(base).__call__).parameters:
        raise ModelError(f"{field}: a {type(base).__name__} cannot stop midway for a refiner; give SDXL, or no refiner")
    pipeline = _load(source, dtype)
    if "denoising_start" not in inspect.signature(type(pipeline).__call__).parameters:
        raise ModelError(
            f"{source.field}: {source.source!r} is a {type(pipeline).__name__}, which cannot begin midway; "
            "give an SDXL image-to-image pipeline"
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


class LatentEncoder:
    """A pipeline's VAE and text encoders, without its denoiser."""

    def __init__(self, source: ModelSource, *, device: torch.device, dtype: torch.dtype) -> None:
        """Load the parts.

        Raises:
            ModelError: the files are incomplete or damaged, or the model has no VAE with a Gaussian posterior.
        """
        self._pipeline = _load(source, dtype, only=_ENCODERS).to(device)
        self._device = device
        vae = getattr(self._pipeline, "vae", None)
        if vae is None or not hasattr(self._pipeline, "encode_prompt"):
            raise ModelError(
                f"{source.field}: {source.source!r} is a {type(self._pipeline).__name__}, which has no VAE or no text "
                "encoder; give a latent text-to-image model"
            )
        if dtype == torch.float16 and vae.config.force_upcast:
            vae.to(torch.float32)  # its activations leave float16's range
        self.factor: int = 2 ** (len(vae.config.block_out_channels) - 1)
        """Pixels of a picture's side to one of its latents'."""

    @torch.inference_mode()
    def latents(self, pictures: np.ndarray) -> torch.Tensor:
        """The posterior's mode, as the denoiser sees it: (mode - shift_factor) × scaling_factor.

        Args:
            pictures: NHWC uint8 RGB, sides multiples of `factor`.

        Returns:
            N×C×H/factor×W/factor float32 on the CPU.
        """
        vae = self._pipeline.vae
        pixels = torch.from_numpy(pictures).to(self._device).permute(0, 3, 1, 2).to(vae.dtype) / 127.5 - 1
        mode = vae.encode(pixels).latent_dist.mode().float()
        return ((mode - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor).cpu()

    @torch.inference_mode()
    def prompt_embeds(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """What the pipeline conditions on.

        Returns:
            `prompt_embeds` N×S×D, and `pooled_prompt_embeds` N×P where the pipeline has them (SDXL); float32, CPU.
        """
        embeds = self._pipeline.encode_prompt(
            prompt=list(prompts), device=self._device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        names = ("prompt_embeds", None, "pooled_prompt_embeds", None)  # the others are the negative prompt's
        return {
            name: tensor.float().cpu()
            for name, tensor in zip(names, embeds, strict=False)
            if name is not None and tensor is not None
        }


def _load(source: ModelSource, dtype: torch.dtype, only: tuple[str, ...] | None = None) -> DiffusionPipeline:
    """The pipeline that the folder's model_index.json names; `only` components whose names begin so, else all."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    options: dict[str, Any] = {"revision": source.revision} if source.revision else {}
    with loading(source.field, source.source):
        if only is not None:
            index = DiffusionPipeline.load_config(source.path, **options)
            parts = [name for name, value in index.items() if isinstance(value, list) and not name.startswith("_")]
            options |= {name: None for name in parts if not name.startswith(only)}
            if "requires_safety_checker" in index:
                options["requires_safety_checker"] = False
        return DiffusionPipeline.from_pretrained(
            source.path, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
        )
