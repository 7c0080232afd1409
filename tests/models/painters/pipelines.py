"""A tiny random-weight pipeline of the real classes of each family, made offline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import CLIPTextModelWithProjection, GlmConfig, GlmModel, UMT5Config, UMT5EncoderModel

from tests.models import families
from tests.models.networks import sd15_like, text_config, text_encoder
from tests.models.networks import tokenizer as clip_tokenizer
from tests.models.painters import parts
from tests.models.painters.parts import TEXT, kl, lively

SIDE = 64
"""Of the pictures, in pixels."""


def flow() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def shifting() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)


def sd15(folder: Path) -> Any:
    return StableDiffusionPipeline.from_pretrained(families.save_sd15(folder))


def sd21_v(folder: Path) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(families.save_sd21(folder))
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, prediction_type="v_prediction")
    return pipeline


def sdxl(folder: Path) -> Any:
    return StableDiffusionXLPipeline.from_pretrained(families.save_sdxl(folder))


def lcm(folder: Path) -> Any:
    words = clip_tokenizer(folder / "tokenizer")
    return LatentConsistencyModelPipeline(
        vae=kl(4),
        text_encoder=text_encoder(len(words)),
        tokenizer=words,
        unet=sd15_like(**families.FOUR, time_cond_proj_dim=32),
        scheduler=LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd3(folder: Path) -> Any:
    words = clip_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    clips = [CLIPTextModelWithProjection(text_config(len(words), TEXT)).eval() for _ in range(2)]
    width = clips[0].config.projection_dim
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * TEXT,
        caption_projection_dim=32,
        pooled_projection_dim=2 * width,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        transformer=lively(transformer),
        scheduler=flow(),
        vae=kl(16, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clips[0],
        tokenizer=words,
        text_encoder_2=clips[1],
        tokenizer_2=words,
        text_encoder_3=parts.t5(2 * TEXT),
        tokenizer_3=parts.tokenizer(),
    )


def flux(folder: Path, guided: bool) -> Any:
    words = clip_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    encoder = text_encoder(len(words))
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=encoder.config.hidden_size,
        guidance_embeds=guided,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        scheduler=shifting() if guided else flow(),
        vae=kl(4, shift_factor=0.1, scaling_factor=0.4),
        text_encoder=encoder,
        tokenizer=words,
        text_encoder_2=parts.t5(),
        tokenizer_2=parts.tokenizer(),
        transformer=lively(transformer),
    )


def flux_dev(folder: Path) -> Any:
    return flux(folder, True)


def flux_schnell(folder: Path) -> Any:
    return flux(folder, False)


def chroma(folder: Path) -> Any:
    torch.manual_seed(0)
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    return ChromaPipeline(
        scheduler=flow(),
        vae=kl(4),
        text_encoder=parts.t5(),
        tokenizer=parts.tokenizer(),
        transformer=lively(transformer),
    )


def z_image(folder: Path) -> Any:
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    return ZImagePipeline(
        scheduler=flow(),
        vae=kl(16),
        text_encoder=parts.qwen3(),
        tokenizer=parts.tokenizer(),
        transformer=lively(transformer),
    )


def pixart(folder: Path) -> Any:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=TEXT,
        norm_num_groups=4,
    )
    return PixArtSigmaPipeline(
        tokenizer=parts.tokenizer(),
        text_encoder=parts.t5(),
        vae=kl(4),
        transformer=lively(transformer),
        scheduler=DPMSolverMultistepScheduler(),
    )


def lumina2(folder: Path) -> Any:
    torch.manual_seed(0)
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(8, 4, 4),
        axes_lens=(512, 64, 64),
        cap_feat_dim=TEXT,
    )
    return Lumina2Pipeline(
        transformer=lively(transformer),
        scheduler=flow(),
        vae=kl(4),
        text_encoder=parts.gemma2(),
        tokenizer=parts.tokenizer(),
    )


def auraflow(folder: Path) -> Any:
    torch.manual_seed(1)
    config = UMT5Config(vocab_size=parts.words(), d_model=TEXT, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    encoder = UMT5EncoderModel(config).eval()
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    )
    return AuraFlowPipeline(
        tokenizer=parts.tokenizer(),
        text_encoder=encoder,
        vae=kl(4),
        transformer=lively(transformer),
        scheduler=flow(),
    )


def cogview4(folder: Path) -> Any:
    torch.manual_seed(1)
    encoder = GlmModel(GlmConfig(**parts._decoder(1))).eval()
    transformer = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=TEXT,
        time_embed_dim=16,
        condition_dim=8,
        sample_size=8,
        rope_axes_dim=(16, 16),
    )
    return CogView4Pipeline(
        tokenizer=parts.tokenizer(side="left"),
        text_encoder=encoder,
        vae=kl(4),
        transformer=lively(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True),
    )


PIPELINES: dict[str, Callable[[Path], Any]] = {
    "SD 1.5": sd15,
    "SD 2.1 (v)": sd21_v,
    "SDXL": sdxl,
    "LCM": lcm,
    "SD 3": sd3,
    "FLUX.1 dev": flux_dev,
    "FLUX.1 schnell": flux_schnell,
    "Chroma": chroma,
    "Z-Image": z_image,
    "PixArt-Σ": pixart,
    "Lumina 2": lumina2,
    "AuraFlow": auraflow,
    "CogView 4": cogview4,
}
