"""Tiny random-weight pipelines of the families that read their captions with a large language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLQwenImage,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
    OmniGenPipeline,
    OmniGenTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)
from diffusers.guiders import AdaptiveProjectedMixGuidance
from transformers import (
    BertConfig,
    BertModel,
    ByT5Tokenizer,
    CLIPTextModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
)

from tests.models.networks import text_config
from tests.models.networks import tokenizer as clip_tokenizer
from tests.models.painters import parts
from tests.models.painters.parts import TEXT, kl, lively
from tests.models.painters.pipelines import flow, shifting


def flux2_vae() -> AutoencoderKLFlux2:
    torch.manual_seed(2)
    return AutoencoderKLFlux2(
        block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=64
    ).eval()


def flux2_transformer(guided: bool, layers: int) -> Flux2Transformer2DModel:
    torch.manual_seed(0)
    return lively(
        Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=layers * TEXT,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guided,
        )
    )


def klein(distilled: bool) -> Any:
    return Flux2KleinPipeline(
        scheduler=shifting(),
        vae=flux2_vae(),
        text_encoder=parts.qwen3(layers=28),
        tokenizer=parts.tokenizer(),
        transformer=flux2_transformer(False, 3),
        is_distilled=distilled,
    )


def klein_base(folder: Path) -> Any:
    return klein(False)


def klein_distilled(folder: Path) -> Any:
    return klein(True)


def flux2(folder: Path) -> Any:
    torch.manual_seed(1)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "head_dim": 8,
    }
    config = Mistral3Config(
        text_config={**parts._decoder(31), "model_type": "mistral"},
        vision_config={**vision, "model_type": "pixtral"},
        image_token_index=8,
    )
    encoder = Mistral3ForConditionalGeneration(config).eval()
    return Flux2Pipeline(
        scheduler=shifting(),
        vae=flux2_vae(),
        text_encoder=encoder,
        tokenizer=parts.tokenizer(),
        transformer=flux2_transformer(True, 3),
    )


def qwen_vae() -> AutoencoderKLQwenImage:
    torch.manual_seed(2)
    statistics = {"latents_mean": [0.1] * 4, "latents_std": [1.5] * 4}
    return AutoencoderKLQwenImage(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **statistics).eval()


def qwen_image(folder: Path) -> Any:
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        axes_dims_rope=(4, 4, 8),
    )
    return QwenImagePipeline(
        scheduler=shifting(),
        vae=qwen_vae(),
        text_encoder=parts.qwen25_vl(),
        tokenizer=parts.tokenizer(length=1024),
        transformer=lively(transformer),
    )


def sana(folder: Path) -> Any:
    torch.manual_seed(0)
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock", "ResBlock", "ResBlock", "ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "ResBlock", "ResBlock", "ResBlock", "ResBlock"),
        encoder_block_out_channels=(8,) * 6,
        decoder_block_out_channels=(8,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        scaling_factor=0.4,
    ).eval()
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=TEXT,
        sample_size=2,
    )
    return SanaPipeline(
        tokenizer=parts.tokenizer(),
        text_encoder=parts.gemma2(),
        vae=vae,
        transformer=lively(transformer),
        scheduler=flow(),
    )


def hunyuan_dit(folder: Path) -> Any:
    torch.manual_seed(1)
    bert = BertConfig(
        vocab_size=parts.words(),
        hidden_size=TEXT,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
    )
    encoder = BertModel(bert).eval()
    transformer = HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=32,
        num_layers=2,
        cross_attention_dim=TEXT,
        cross_attention_dim_t5=TEXT,
        pooled_projection_dim=TEXT,
        text_len_t5=256,
    )
    return HunyuanDiTPipeline(
        vae=kl(4),
        text_encoder=encoder,
        tokenizer=parts.tokenizer(length=77),
        transformer=lively(transformer),
        scheduler=DDPMScheduler(prediction_type="v_prediction", beta_end=0.02),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=parts.t5(),
        tokenizer_2=parts.tokenizer(length=256),
    )


def hunyuan_image(guider: bool) -> Any:
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 32, 32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=32,
        sample_size=64,
        scaling_factor=0.75,
    ).eval()
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=TEXT,
        text_embed_2_dim=TEXT,
        rope_axes_dim=(8, 8),
        guidance_embeds=not guider,
    )
    return HunyuanImagePipeline(
        scheduler=flow(),
        vae=vae,
        text_encoder=parts.qwen25_vl(),
        tokenizer=parts.tokenizer(length=1100),
        text_encoder_2=parts.t5(),
        tokenizer_2=ByT5Tokenizer(),
        transformer=lively(transformer),
        guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=0) if guider else None,
        ocr_guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=0) if guider else None,
    )


def hunyuan_image_guided(folder: Path) -> Any:
    return hunyuan_image(True)


def hunyuan_image_distilled(folder: Path) -> Any:
    return hunyuan_image(False)


def kandinsky5(folder: Path) -> Any:
    words = clip_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    config = text_config(len(words))
    config.max_position_embeddings = 77  # the pipeline pads to it
    encoder = CLIPTextModel(config).eval()
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=TEXT,
        in_text_dim2=encoder.config.hidden_size,
        time_dim=16,
        out_visual_dim=4,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 4, 8),
    )
    pipeline = Kandinsky5T2IPipeline(
        transformer=lively(transformer),
        vae=kl(4),
        text_encoder=parts.qwen25_vl(),
        tokenizer=parts.tokenizer(length=1024),
        text_encoder_2=encoder,
        tokenizer_2=words,
        scheduler=flow(),
    )
    pipeline.resolutions = [(64, 64)]  # the smallest of the real ones takes seconds a picture
    return pipeline


def omnigen(folder: Path) -> Any:
    torch.manual_seed(0)
    transformer = OmniGenTransformer2DModel(
        in_channels=4,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        num_layers=1,
        pad_token_id=0,
        vocab_size=parts.words(),
        time_step_dim=16,
        pos_embed_max_size=32,
        rope_scaling={"long_factor": [1, 2, 3, 4], "short_factor": [1, 2, 3, 4]},
    )
    return OmniGenPipeline(
        transformer=lively(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        vae=kl(4),
        tokenizer=parts.tokenizer(length=2048),
    )


def ovis(folder: Path) -> Any:
    torch.manual_seed(0)
    transformer = OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        axes_dims_rope=(4, 4, 8),
    )
    return OvisImagePipeline(
        scheduler=shifting(),
        vae=kl(4),
        text_encoder=parts.qwen3().model,
        tokenizer=parts.tokenizer(length=1024),
        transformer=lively(transformer),
    )


MORE = {
    "FLUX.2": flux2,
    "FLUX.2 klein": klein_base,
    "FLUX.2 klein, distilled": klein_distilled,
    "Qwen-Image": qwen_image,
    "Sana": sana,
    "HunyuanDiT": hunyuan_dit,
    "HunyuanImage": hunyuan_image_guided,
    "HunyuanImage, distilled": hunyuan_image_distilled,
    "Kandinsky 5": kandinsky5,
    "OmniGen": omnigen,
    "Ovis-Image": ovis,
}
