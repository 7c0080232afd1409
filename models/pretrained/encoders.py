"""Loads pretrained diffusers pipelines, whole, or only what encodes pictures and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from bootpig.models.pipelines.base_check import check_base, loading_base
from bootpig.models.pipelines.supported import check_components
from bootpig.models.pipelines.vae import encoded_mode, normalised
from bootpig.models.pretrained.finite import check_pipeline
from bootpig.models.pretrained.snapshots import fetch_folder
from bootpig.models.pretrained.source import ENCODERS, ModelSource, loading
from bootpig.models.pretrained.variants import variant_components


class LatentEncoder:
    """The VAE and text encoders of a base model, loaded without its denoiser."""

    def __init__(self, source: ModelSource, *, device: torch.device, dtype: torch.dtype) -> None:
        """Load VAE and text encoders.

        Raises:
            ModelError: the files are incomplete or damaged, or BootPIG cannot use this base model.
        """
        with loading_base(source):
            check_base(source)
            self._pipeline = load_pipeline(replace(source, loads=ENCODERS), dtype).to(device)
            check_components(self._pipeline)  # again: a hub's files may have been downloaded only now
        check_pipeline(source, self._pipeline)
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


def load_pipeline(source: ModelSource, dtype: torch.dtype) -> DiffusionPipeline:
    """Load the pipeline class named in model_index.json, with the components that `source` loads."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    folder = fetch_folder(source)
    with loading(source.field, source.source):
        index = DiffusionPipeline.load_config(str(folder))
        parts = [name for name, value in index.items() if isinstance(value, list) and not name.startswith("_")]
        options: dict[str, Any] = {name: None for name in parts if not source.loads.component(name)}
        if "safety_checker" in options:
            options["requires_safety_checker"] = False
        options |= variant_components(folder, dtype, without=options)
        return DiffusionPipeline.from_pretrained(
            str(folder), dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
        )
