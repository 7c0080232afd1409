"""Folders of random-weight pipelines of the classes that shipped configs name: SD 1.5, SD 2.1, SDXL, its refiner."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextModelWithProjection

from tests.models.networks import WIDTH, sd15_like, sdxl_like, text_config, text_encoder, tokenizer, vae

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}

FOUR = {"in_channels": 4, "out_channels": 4}
"""Latent channels, as the real ones have."""


def save_sd15(folder: Path) -> Path:
    """With a safety checker, like the real one, whose thresholds are never reached."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPConfig(text_config=small, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=8)
    checker = StableDiffusionSafetyChecker(clip)
    torch.nn.init.constant_(checker.concept_embeds_weights, 2.0)
    torch.nn.init.constant_(checker.special_care_embeds_weights, 2.0)
    return _save_sd(folder, checker)


def save_sd21(folder: Path) -> Path:
    """stable-diffusion-2-1-base predicts epsilon; it has no safety checker."""
    return _save_sd(folder, None)


def _save_sd(folder: Path, checker: StableDiffusionSafetyChecker | None) -> Path:
    words = tokenizer(folder / "tokenizer")
    StableDiffusionPipeline(
        vae=vae(channels=4),
        text_encoder=text_encoder(len(words)),
        tokenizer=words,
        unet=sd15_like(**FOUR),
        scheduler=PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **SCHEDULE),
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        requires_safety_checker=checker is not None,
    ).save_pretrained(folder)
    return folder


def save_sdxl(folder: Path) -> Path:
    """Two text encoders, pooled embeds, an empty prompt of zeros."""
    words = tokenizer(folder / "tokenizer")
    StableDiffusionXLPipeline(
        vae=vae(channels=4),
        text_encoder=text_encoder(len(words)),
        text_encoder_2=_second(len(words)),
        tokenizer=words,
        tokenizer_2=words,
        unet=sdxl_like(**FOUR, cross_attention_dim=WIDTH + WIDTH // 2),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **SCHEDULE),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def save_refiner(folder: Path) -> Path:
    """Reads the second text encoder alone, and an aesthetic score in place of the target size."""
    words = tokenizer(folder / "tokenizer_2")
    text = {"cross_attention_dim": WIDTH // 2, "projection_class_embeddings_input_dim": WIDTH + 5 * 8}
    StableDiffusionXLImg2ImgPipeline(
        vae=vae(channels=4),
        text_encoder=None,
        text_encoder_2=_second(len(words)),
        tokenizer=None,
        tokenizer_2=words,
        unet=sdxl_like(1, **FOUR, **text),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **SCHEDULE),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def _second(words: int) -> CLIPTextModelWithProjection:
    torch.manual_seed(0)
    return CLIPTextModelWithProjection(text_config(words, WIDTH // 2)).eval()
