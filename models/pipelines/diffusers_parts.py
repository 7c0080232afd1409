"""Type annotations for the attributes of diffusers pipelines that BootPIG's mixins use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor


class DiffusersParts:
    """Annotations without values: the diffusers pipeline class, which comes next in the MRO, defines all of them.

    Methods are typed `Callable[..., X]` because their parameters differ between Stable Diffusion and SDXL.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    reference_unet: UNet2DConditionModel
    scheduler: SchedulerMixin
    image_processor: VaeImageProcessor
    config: FrozenDict
    vae_scale_factor: int
    """Pixels per latent along each side."""

    register_modules: Callable[..., None]
    register_to_config: Callable[..., None]
    maybe_free_model_hooks: Callable[[], None]
    progress_bar: Callable[..., AbstractContextManager[Any]]
    check_inputs: Callable[..., None]
    encode_prompt: Callable[..., tuple[Tensor, ...]]
    prepare_latents: Callable[..., Tensor]
    prepare_extra_step_kwargs: Callable[..., dict[str, Any]]

    # State of the current call: properties without a setter, and the attributes that they read.
    interrupt: bool
    guidance_scale: float
    guidance_rescale: float
    cross_attention_kwargs: dict[str, Any] | None
    _execution_device: torch.device
    _guidance_scale: float
    _guidance_rescale: float
    _clip_skip: int | None
    _cross_attention_kwargs: dict[str, Any] | None
    _interrupt: bool
    _num_timesteps: int
