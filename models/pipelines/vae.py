"""A VAE's latents, normalised for the denoiser and back, as diffusers' pipelines do it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def encoded_mode(vae: Any, pixels: Tensor) -> Tensor:
    """The VAE's latents of pixels (N, 3, H, W) in [-1, 1], not normalised: the posterior's mode (N, C, h, w), or what
    an `AutoencoderTiny` returns, which has no posterior."""
    output = vae.encode(pixels)
    mode: Tensor = output.latent_dist.mode() if hasattr(output, "latent_dist") else output.latents
    return mode


def normalised(vae: Any, latents: Tensor) -> Tensor:
    """The VAE's latents (N, C, h, w) as the denoiser reads them: (latents - mean) × scaling_factor / std. Most VAEs
    have neither mean nor std."""
    statistics = _statistics(vae, latents)
    if statistics is None:
        return latents * vae.config.scaling_factor
    mean, std = statistics
    return (latents - mean) * vae.config.scaling_factor / std


def denormalised(vae: Any, latents: Tensor) -> Tensor:
    """The inverse of `normalised`, in the VAE's dtype: what its decoder reads."""
    statistics = _statistics(vae, latents.to(vae.dtype))
    if statistics is None:
        return (latents / vae.config.scaling_factor).to(vae.dtype)
    mean, std = statistics
    return latents.to(vae.dtype) * std / vae.config.scaling_factor + mean


def _statistics(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor] | None:
    """The VAE's (mean, std), each (1, C, 1, 1) like `latents`, or None."""
    mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        return None
    shape = (1, -1, 1, 1)
    return torch.tensor(mean).view(shape).to(latents), torch.tensor(std).view(shape).to(latents)
