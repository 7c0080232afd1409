"""Loads pretrained diffusers pipelines: text-to-image, refiners, and encoders of pictures and captions."""

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

from bootpig.models.pipelines.base_check import check_base, loading_base
from bootpig.models.pipelines.supported import check_components
from bootpig.models.pipelines.vae import encoded_mode, normalised
from bootpig.models.pretrained.source import ModelError, ModelSource, loading

_ENCODERS = ("vae", "text_encoder", "tokenizer")


def load_text_to_image(
    source: ModelSource, *, device: torch.device, dtype: torch.dtype, scheduler: str | None = None
) -> DiffusionPipeline:
    """Load any diffusers text-to-image pipeline from safetensors to `device`.

    Args:
        scheduler: name of a diffusers scheduler class to use instead of the model's own, with the same settings.

    Raises:
        ModelError: the files are incomplete or damaged, or the scheduler does not exist or is not compatible.
    """
    pipeline = _load(source, dtype)
    if scheduler is not None:
        set_scheduler(pipeline, source, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def set_scheduler(pipeline: Any, source: ModelSource, name: str) -> None:
    """Replace a pipeline's scheduler by another diffusers class with the same settings.

    Raises:
        ModelError: there is no such class, or it is not compatible.
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
    """Load an SDXL image-to-image pipeline that continues from intermediate latents of `base`.

    Raises:
        ModelError: the files are incomplete or damaged, `base` cannot stop midway, or the refiner cannot start midway.
    """
    field = source.field.replace("refiner", "model")
    if "denoising_end" not in inspect.signature(type(base).__call__).parameters:
        raise ModelError(f"{field}: a {type(base).__name__} cannot stop midway for a refiner; use SDXL or no refiner")
    pipeline = _load(source, dtype)
    if "denoising_start" not in inspect.signature(type(pipeline).__call__).parameters:
        raise ModelError(
            f"{source.field}: {source.source!r} is a {type(pipeline).__name__}, which cannot start midway; "
            "use an SDXL image-to-image pipeline"
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


class LatentEncoder:
    """The VAE and text encoders of a base model, loaded without its denoiser."""

    def __init__(self, source: ModelSource, *, device: torch.device, dtype: torch.dtype) -> None:
        """Load VAE and text encoders.

        Raises:
            ModelError: the files are incomplete or damaged, or BootPIG cannot use this base model.
        """
        check_base(source)
        with loading_base(source):
            self._pipeline = _load(source, dtype, only=_ENCODERS).to(device)
            check_components(self._pipeline)  # again: a hub's files may have been downloaded only now
        self._device = device
        vae = self._pipeline.vae
        if dtype == torch.float16 and vae.config.force_upcast:
            vae.to(torch.float32)  # its activations exceed float16's range
        self.factor: int = 2 ** (len(vae.config.block_out_channels) - 1)
        """Downscaling factor: picture pixels per latent pixel along a side."""

    @torch.inference_mode()
    def latents(self, pictures: np.ndarray) -> torch.Tensor:
        """The mode of the posterior, normalised for the denoiser.

        Args:
            pictures: NHWC uint8 RGB; sides must be multiples of `factor`.

        Returns:
            N×C×H/factor×W/factor float32 on the CPU.
        """
        vae = self._pipeline.vae
        pixels = torch.from_numpy(pictures).to(self._device).permute(0, 3, 1, 2).to(vae.dtype) / 127.5 - 1
        return normalised(vae, encoded_mode(vae, pixels).float()).cpu()

    @torch.inference_mode()
    def prompt_embeds(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """The embeddings that the pipeline conditions on.

        Returns:
            `prompt_embeds` N×S×D and, if the pipeline has them (SDXL), `pooled_prompt_embeds` N×P; float32 on the CPU.
        """
        embeds = self._pipeline.encode_prompt(
            prompt=list(prompts), device=self._device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        names = ("prompt_embeds", None, "pooled_prompt_embeds", None)  # the others belong to the negative prompt
        return {
            name: tensor.float().cpu()
            for name, tensor in zip(names, embeds, strict=False)
            if name is not None and tensor is not None
        }


def _load(source: ModelSource, dtype: torch.dtype, only: tuple[str, ...] | None = None) -> DiffusionPipeline:
    """Load the pipeline class named in model_index.json, with all components or those whose names start with `only`."""
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
