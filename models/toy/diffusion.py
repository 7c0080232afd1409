"""Trains the toy Stable Diffusion: a UNet on 8×8×16 latents, together with its CLIP text model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel, UniPCMultistepScheduler
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from bootpig.models.toy.renders import Renders, scenes
from bootpig.models.toy.tokens import all_captions, build_tokenizer
from bootpig.models.toy.training import Recipe, fit
from bootpig.models.toy.vae import latents
from bootpig.models.toy.world import KINDS, POSITIONS, SCENES, caption

RECIPE = Recipe(steps=4000, learning_rate=8e-4, tail_from=0.5, ema=0.998)
BATCH = 64
CAPTION_DROPOUT = 0.1
TOKENS = 24
WIDTH = 128

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}


class Diffusion(nn.Module):
    """The UNet and the text model, which are trained together."""

    def __init__(self, vocabulary: int, end: int) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=16,
            out_channels=16,
            block_out_channels=(96, 160),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=(3, 5),  # diffusers' name for the number of heads: 32 channels each
            norm_num_groups=16,
        )
        self._begin_with_nothing()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=TOKENS,
                projection_dim=WIDTH,
                eos_token_id=end,
                bos_token_id=end - 1,
                pad_token_id=end,
            )
        )

    @torch.no_grad()
    def _begin_with_nothing(self) -> None:
        """Zero the last layer of every residual branch, as is common for diffusion UNets; diffusers does not do it."""
        last = [self.unet.conv_out]
        for module in self.unet.modules():
            if isinstance(module, ResnetBlock2D):
                last.append(module.conv2)
            elif isinstance(module, Transformer2DModel):
                last.append(module.proj_out)
        for layer in last:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def _encoded(data: Renders, vae: AutoencoderKL, work: Path, device: torch.device) -> torch.Tensor:
    file = work / f"latents-{len(data)}.npy"
    if not file.exists():
        print(f"diffusion: encoding {len(data)} scenes", flush=True)
        partial = file.with_suffix(".tmp.npy")
        np.save(partial, latents(vae, data.images, device).half().numpy())
        partial.replace(file)
    return torch.from_numpy(np.load(file)).float() * vae.config.scaling_factor


def save(work: Path, out: Path, device: torch.device) -> None:
    """Train on the saved VAE, then write `out/stable-diffusion`, an ordinary diffusers pipeline folder."""
    torch.manual_seed(2)
    folder = out / "stable-diffusion"
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).to(device).eval()
    tokenizer = build_tokenizer(all_captions(), TOKENS)
    model = Diffusion(len(tokenizer), tokenizer.eos_token_id)
    data = scenes("base", 24_000, "train", work)
    encoded = _encoded(data, vae, work, device)
    texts = [""] + [caption(k, p, s) for k in KINDS for p in POSITIONS for s in SCENES]
    tokens = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    tokens = tokens.input_ids.to(device)
    of_scene = 1 + (data.kinds * len(POSITIONS) + data.positions) * len(SCENES) + data.scenes
    scheduler = UniPCMultistepScheduler(**SCHEDULER)
    alphas = scheduler.alphas_cumprod.to(device)

    def loss(rng: np.random.Generator) -> torch.Tensor:
        index = rng.integers(len(data), size=BATCH)
        text = np.where(rng.random(BATCH) < CAPTION_DROPOUT, 0, of_scene[index])
        clean = encoded[index].to(device)
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32)).to(device)
        timesteps = torch.from_numpy(rng.integers(1000, size=BATCH)).to(device)
        signal, spread = (v[timesteps].sqrt()[:, None, None, None] for v in (alphas, 1 - alphas))
        embeds = model.text_encoder(tokens[text]).last_hidden_state
        predicted = model.unet(signal * clean + spread * noise, timesteps, embeds).sample
        return (predicted.float() - (signal * noise - spread * clean)).square().mean()

    fit("diffusion", model, loss, RECIPE, work, device)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to("cpu", torch.float16).save_pretrained(folder)
    _drop_paths(folder)


def _drop_paths(folder: Path) -> None:
    """Remove the local paths that diffusers writes to its config files."""
    for file in folder.rglob("*.json"):
        content = json.loads(file.read_text())
        if content.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(content, indent=2) + "\n")
