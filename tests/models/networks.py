"""Small random-weight networks of the real classes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.pipelines.xl import BootPIGXLPipeline

WIDTH = 32
LATENTS = (16, 8, 8)


def sd_unet(seed: int = 0, **config: object) -> UNet2DConditionModel:
    """A UNet in the manner of the toy's: cross-attention at both levels, 8x8 latents of 16 channels."""
    torch.manual_seed(seed)
    defaults: dict[str, object] = {
        "sample_size": 8,
        "in_channels": LATENTS[0],
        "out_channels": LATENTS[0],
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "cross_attention_dim": WIDTH,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**defaults, **config}).eval()


def sd15_like(seed: int = 0, **config: object) -> UNet2DConditionModel:
    """SD 1.x and 2.x: four levels, the deepest without attention, so the last up block is the last with attention."""
    return sd_unet(
        seed,
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
        **config,
    )


def sd21_like(seed: int = 0) -> UNet2DConditionModel:
    """SD 2.x: as `sd15_like`, with heads of equal width and linear projections."""
    return sd_unet(
        seed,
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
        attention_head_dim=(2, 4, 4, 4),
        use_linear_projection=True,
    )


def sdxl_like(seed: int = 0, **config: object) -> UNet2DConditionModel:
    """SDXL: no attention at the finest level, several blocks a layer, pooled text and sizes as conditions."""
    defaults: dict[str, object] = {
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3),
        "layers_per_block": 2,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": WIDTH + 6 * 8,
    }
    return sd_unet(seed, **{**defaults, **config})


def sdxl_conditions(rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "text_embeds": torch.randn(rows, WIDTH, generator=generator),
        "time_ids": torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]]).repeat(rows, 1),
    }


def latents(rows: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, *LATENTS, generator=torch.Generator().manual_seed(seed))


def embeds(rows: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(rows, 6, WIDTH, generator=torch.Generator().manual_seed(seed))


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Splits into letters: enough to tell prompts from each other."""
    letters = [*"abcdefghijklmnopqrstuvwxyz,."]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=40)


def vae(seed: int = 0, channels: int = LATENTS[0]) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.5,
    ).eval()


def text_config(words: int, width: int = WIDTH) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=width,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
    )


def text_encoder(words: int, seed: int = 0) -> CLIPTextModel:
    torch.manual_seed(seed)
    return CLIPTextModel(text_config(words)).eval()


def scheduler(prediction_type: str = "v_prediction") -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def sd_pipeline(
    folder: Path, unet: UNet2DConditionModel | None = None, prediction_type: str = "v_prediction", **config: object
) -> BootPIGPipeline:
    """An untrained BootPIG on a random base, 64x64 pixels."""
    words = tokenizer(folder / "words")
    parts = (vae(), text_encoder(len(words)), words, unet or sd_unet(), scheduler(prediction_type))
    pipeline = BootPIGPipeline(*parts, **config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def as_base(pipeline: BootPIGPipeline) -> StableDiffusionPipeline:
    """The ordinary pipeline around the same networks."""
    parts = {name: part for name, part in pipeline.components.items() if name != "reference_unet"}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def sdxl_pipeline(folder: Path, **config: object) -> BootPIGXLPipeline:
    """An untrained BootPIG on a random SDXL-like base: two text encoders, pooled text and sizes as conditions."""
    words = tokenizer(folder / "words")
    torch.manual_seed(0)
    second = CLIPTextModelWithProjection(text_config(len(words), WIDTH // 2)).eval()
    unet = sdxl_like(cross_attention_dim=WIDTH + WIDTH // 2)
    pipeline = BootPIGXLPipeline(
        vae(),
        text_encoder(len(words)),
        second,
        words,
        words,
        unet,
        scheduler("epsilon"),
        add_watermarker=False,
        **config,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def train_a_little(pipeline: BootPIGPipeline | BootPIGXLPipeline, seed: int = 7) -> None:
    """Move the trained weights apart from the base, as training does."""
    torch.manual_seed(seed)
    base = {name: p for name, p in pipeline.unet.named_parameters() if ".attn1." in name}
    with torch.no_grad():
        for parameter in [*base.values(), *pipeline.reference_unet.parameters()]:
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
