"""Random models of rivals, made of the tiny base of `make_world`: real classes and on-disk formats."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FluxKontextPipeline, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.models.painters.pipelines import flux_dev

TOKEN = "<thing>"


def save_ip_adapter(folder: Path, base: Path, width: int = 8, vision: int = 8) -> Path:
    """An IP-Adapter for `base`, whose image encoder has embeddings of `width` numbers."""
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    place = 1
    for name in unet.attn_processors:
        if name.endswith("attn1.processor"):
            continue
        shape = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape
        for part in "kv":
            tensors[f"ip_adapter.{place}.to_{part}_ip.weight"] = torch.randn(shape, generator=generator)
        place += 2
    text = unet.config.cross_attention_dim
    tensors["image_proj.proj.weight"] = torch.randn(4 * text, width, generator=generator)
    tensors["image_proj.proj.bias"] = torch.zeros(4 * text)
    tensors["image_proj.norm.weight"] = torch.ones(text)
    tensors["image_proj.norm.bias"] = torch.zeros(text)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "ip-adapter.safetensors")
    torch.manual_seed(2)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPVisionConfig(**small, image_size=32, patch_size=8, projection_dim=vision)
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder / "image_encoder"
    )
    return folder


def save_dreambooth(folder: Path, base: Path, seed: int) -> Path:
    """A whole pipeline whose UNet differs from the base's."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in pipeline.unet.named_parameters():
            if ".attn2." in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    pipeline.save_pretrained(folder)
    return folder


def save_lora(folder: Path, base: Path, seed: int) -> Path:
    """LoRA weights of the attention layers, as diffusers' training script writes them."""
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    torch.manual_seed(seed)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_k", "to_v"]))
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.5)
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return folder


def save_embedding(folder: Path, seed: int, width: int = 32, vectors: int = 2) -> Path:
    """A learned embedding of several vectors."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    save_file({TOKEN: torch.randn(vectors, width, generator=generator)}, folder / "learned_embeds.safetensors")
    return folder


def save_kontext(folder: Path) -> Path:
    parts = flux_dev(folder / "parts").components
    FluxKontextPipeline(**{name: part for name, part in parts.items() if part is not None}).save_pretrained(
        folder / "pipeline"
    )
    return folder / "pipeline"
