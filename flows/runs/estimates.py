"""What stages take before anything is measured: operations and bytes, by the sizes of models and pictures."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from bootpig.models.pretrained.source import local_path
from bootpig.stages.caption.llm.spending import TOKENS_PER_CAPTION
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.checkpoints import KEEP
from bootpig.stages.engine.survey import make_stage
from bootpig.stages.evaluate.stage import Evaluate
from bootpig.stages.registry import MAP_STAGES
from bootpig.storage.jsonio import parse_json

UNET_TFLOP = 0.80
"""One forward pass of SD 2.1's UNet at 512 px, a sample; likewise the figures below (METHOD's operation counts)."""
TRAIN_TFLOP = 4.5
VAE_ENCODE_TFLOP = 1.1
VAE_DECODE_TFLOP = 2.5
SAM_TFLOP = {"vit_b": 1.0, "vit_l": 3.0, "vit_h": 6.0, "vit_toy": 0.001}
DETECTOR_TFLOP = 0.4
XL_UNET_TFLOP = 6.76 / 4
"""SDXL's, of 6.76 at 1024 px. Both UNets and the refiner (7.29) counted by torch's FlopCounterMode."""
REFINER_TFLOP = 7.29 / 4

UNET_PARAMETERS = 865.9e6
XL_UNET_PARAMETERS = 2567e6
REFINER_PARAMETERS = 2260e6
VAE_PARAMETERS = 83.7e6
RSA_SHARE = 49.6 / 865.9
"""Of a UNet's weights, those of its self-attention layers."""

PNG_BYTES = 1.5
REFERENCE_PNG_BYTES = 0.6
"""A pixel; a reference is white around its subject."""
CAPTION_BYTES = 150
TOKENS = 77
POOLED = 1280

GPU_TFLOP_PER_SECOND = 0.4 * 800.0
USD_PER_GPU_HOUR = 2.5

ASSUMPTIONS = (
    f"one H100 at 40 % of {GPU_TFLOP_PER_SECOND / 0.4:.0f} TFLOP/s, {USD_PER_GPU_HOUR:.2f} USD an hour",
    "operations grow with the number of weights and of latent pixels; a model that is not on this disk has SD 2.1's "
    "size (SDXL's if its name has 'xl')",
    "no sample is rejected, so every stage sees all of them",
    f"bytes: this store's own units, where it has any; else PNG at {PNG_BYTES} bytes a pixel, {REFERENCE_PNG_BYTES} "
    f"for references, float16 latents and embeds of {TOKENS} tokens, trained weights in float32 and {KEEP} checkpoints",
    "seconds: this store's own logs of the same stage and settings, where it has any",
)


def caption_assumptions(config: PipelineConfig, llm: dict[str, Any] | None) -> list[str]:
    """What the cost of captions is reckoned from.

    Args:
        llm: see `bootpig.stages.caption.llm.spending.estimate`; None where no LLM is asked.
    """
    settings = config.caption.openai
    if settings is None or llm is None:
        return ["captions cost nothing"]
    tokens = f"{llm['requests']} requests, {llm['input_tokens']} prompt and {llm['output_tokens']} answer tokens"
    lines = [f"captions: {tokens} of {settings.model!r}, {TOKENS_PER_CAPTION:g} tokens a caption, no answer twice"]
    if llm["cost_usd"] is None:
        return [*lines, "captions cost nothing, as caption.openai.price_input and price_output are not given"]
    share = ", half of it in a batch" if settings.batch else ""
    lines[0] += f", {settings.price_input:g} and {settings.price_output:g} USD per million tokens{share}"
    if settings.cap_usd is not None and llm["cost_usd"] > settings.cap_usd:
        lines.append(
            f"captions: caption.openai.cap_usd {settings.cap_usd:g} is less than that; units above it stay pending"
        )
    return lines


def operations(config: PipelineConfig, name: str) -> float:
    """Operations a sample of a map stage takes, or the one result of a reduce stage, in TFLOP."""
    s = config.synthesize
    side = config.augment.size or min(s.height, s.width)
    if name == "synthesize":
        passes = 2 if s.guidance_scale > 1 else 1
        pixels = s.height * s.width
        share = 1.0 if s.refiner is None else s.refiner_from
        step = share * _unet(s.model, pixels)
        if s.refiner is not None:
            step += (1 - share) * _scaled(s.refiner, "unet", REFINER_TFLOP, REFINER_PARAMETERS, pixels)
        return s.steps * passes * step + _vae(s.model, VAE_DECODE_TFLOP, pixels)
    if name == "segment":
        return SAM_TFLOP[config.segment.sam_type] + (0.0 if config.segment.sam_type == "vit_toy" else DETECTOR_TFLOP)
    if name == "encode":
        return (1 + _references(config)) * _vae(config.encode.model, VAE_ENCODE_TFLOP, side**2)
    if name == "train":
        t = config.train
        again = 4 / 3 if t.gradient_checkpointing else 1.0
        return t.steps * t.global_batch_size * _unet(t.model, side**2) * TRAIN_TFLOP / UNET_TFLOP * again
    if name == "evaluate":
        # twelve passes a step over the four methods: 2 each without a reference, 3 and the Reference UNet's with one
        return _pictures(config) * config.evaluate.steps * 12 * _unet(config.train.model, side**2)
    return 0.0


def store_bytes(config: PipelineConfig, name: str) -> float:
    """Bytes a sample of a map stage leaves in the store, or the one result of a reduce stage."""
    s = config.synthesize
    scale = 1.0 if s.resize is None else s.resize / min(s.height, s.width)
    target = s.height * s.width * scale**2
    size = config.augment.size
    framed = target if size is None else float(size**2)
    if name == "caption":
        return CAPTION_BYTES
    if name in ("synthesize", "segment"):
        return PNG_BYTES * target
    if name == "augment":
        return framed * (PNG_BYTES + _references(config) * REFERENCE_PNG_BYTES)
    if name == "encode":
        unet = _unet_config(config.encode.model)
        latents = (1 + _references(config)) * unet["in_channels"] * framed / 64
        pooled = POOLED if unet["addition_embed_type"] else 0
        return 2 * (latents + 2 * (TOKENS * unet["cross_attention_dim"] + pooled))
    if name == "train":
        t = config.train
        weights = _parameters(t.model, "unet", XL_UNET_PARAMETERS if _is_xl(t.model) else UNET_PARAMETERS)
        base = {"none": 0.0, "rsa": RSA_SHARE, "all": 1.0}[t.trainable.base]
        trained = weights * (base + (1.0 if t.trainable.reference else 0.0))
        return 4 * weights * (1 + max(base, RSA_SHARE)) + KEEP * 12 * trained
    assert name not in MAP_STAGES
    return 4 * _pictures(config) * PNG_BYTES * framed


def _references(config: PipelineConfig) -> int:
    return config.augment.references if config.augment.enabled else 1


def _pictures(config: PipelineConfig) -> int:
    """Pictures a method draws; the DreamBooth benchmark's 30 × 25 captions where the folder is missing."""
    stage = make_stage(config, "evaluate")
    assert isinstance(stage, Evaluate)
    try:
        captions = sum(len(subject.prompts) for subject in stage.subjects())
    except ValueError:
        captions = 30 * 25
    return captions * config.evaluate.images_per_prompt


def _is_xl(model: str) -> bool:
    return "xl" in model.lower()


def _unet(model: str, pixels: float) -> float:
    usual = (XL_UNET_TFLOP, XL_UNET_PARAMETERS) if _is_xl(model) else (UNET_TFLOP, UNET_PARAMETERS)
    return _scaled(model, "unet", *usual, pixels)


def _vae(model: str, tflop: float, pixels: float) -> float:
    return _scaled(model, "vae", tflop, VAE_PARAMETERS, pixels)


def _scaled(model: str, part: str, tflop: float, parameters: float, pixels: float) -> float:
    return tflop * _parameters(model, part, parameters) / parameters * pixels / 512**2


def _unet_config(model: str) -> dict[str, Any]:
    folder = local_path(model)
    width = 2048 if _is_xl(model) else 768 if "v1" in model.lower() else 1024
    usual = {
        "in_channels": 4,
        "cross_attention_dim": width,
        "addition_embed_type": "text_time" if _is_xl(model) else None,
    }
    try:
        found = parse_json((folder / "unet" / "config.json").read_bytes()) if folder is not None else {}
    except (OSError, ValueError):
        found = {}
    return {name: found.get(name, value) for name, value in usual.items()}


def _parameters(model: str, part: str, usual: float) -> float:
    """The weights of a pipeline's part, from the headers of its safetensors files; `usual` if it is not here."""
    folder = local_path(model)
    files = sorted((folder / part).glob("*.safetensors")) if folder is not None else []
    try:
        return float(sum(_weights(file) for file in files)) or usual
    except (OSError, ValueError, KeyError, struct.error):
        return usual


def _weights(file: Path) -> int:
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        header = parse_json(stream.read(min(size, 100_000_000)))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
