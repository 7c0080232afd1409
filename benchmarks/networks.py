"""Networks like Stable Diffusion 2.1's with random weights, at full size or smaller with the same proportions."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

TRUE_WIDTH, TRUE_LATENTS = 320, 64
"""Channels of the UNet's first level, and side of the latents at 512 pixels."""


def unet(width: int = TRUE_WIDTH, latents: int = TRUE_LATENTS) -> UNet2DConditionModel:
    """A UNet like SD 2.1's, with 64 channels per head.

    If the number of tokens is reduced by the same factor as the width (128 channels and 40×40 latents are both 0.4 of
    the original), all operation counts shrink by the same factor: convolutions, projections and attention keep their
    shares of the work.

    Args:
        width: channels of the first level, a multiple of 64.
        latents: the latents' side, a multiple of 8.
    """
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=latents,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        attention_head_dim=tuple(channels // 64 for channels in (width, 2 * width, 4 * width, 4 * width)),
        cross_attention_dim=text_width(width),
        use_linear_projection=True,
    )


def text_width(width: int) -> int:
    """Channels of the text embeds for a UNet of that width: 1024 at full size."""
    return round(1024 * width / TRUE_WIDTH / 64) * 64


def text_length(latents: int) -> int:
    """Tokens of a caption: 77 at full size."""
    return round(77 * latents**2 / TRUE_LATENTS**2)


def vae(width: int, factor: int = 8) -> AutoencoderKL:
    """A VAE like Stable Diffusion's with `width` channels at its first level (128 at full size)."""
    torch.manual_seed(1)
    levels = factor.bit_length()
    return AutoencoderKL(
        block_out_channels=tuple(width * times for times in (1, 2, 4, 4)[:levels]),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=width // 4 if width % 4 == 0 else 2,
    )


def text_encoder(width: int, length: int, layers: int = 23) -> CLIPTextModel:
    """A CLIP text model like SD 2.1's (1024 channels, 23 layers, 77 tokens at full size)."""
    torch.manual_seed(2)
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            max_position_embeddings=length,
        )
    )
