"""How large a diffusion pipeline's networks are: their weights, their widths, and the operations of a forward pass.

Read from the headers of local files. A model that is not on this disk is taken for SD 2.1 (SDXL if its name has 'xl').
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from bootpig.models.pretrained.source import local_path

UNET_TFLOP = 0.80
"""One forward pass of SD 2.1's UNet per sample of 512 px, in 10^12 operations; likewise the figures below."""
VAE_ENCODE_TFLOP = 1.1
VAE_DECODE_TFLOP = 2.5
XL_UNET_TFLOP = 6.76 / 4
"""SDXL's, of 6.76 at 1024 px. Both UNets and the refiner (7.29) counted by torch's FlopCounterMode."""
REFINER_TFLOP = 7.29 / 4

EMBEDDING_TFLOP = {"clip": 0.03, "dino": 0.01, "dinov2": 0.05, "siglip": 0.04}
"""Models that judge pictures, per picture at their own size, 224 px. About those of CLIP ViT-B/32 with a caption, DINO
ViT-S/16, DINOv2 ViT-B/14 and SigLIP ViT-B/16."""

UNET_PARAMETERS = 865.9e6
XL_UNET_PARAMETERS = 2567e6
REFINER_PARAMETERS = 2260e6
VAE_PARAMETERS = 83.7e6
RSA_SHARE = 49.6 / 865.9
"""Of a UNet's weights, those of its self-attention layers."""

TEXT_PARAMETERS = 340.4e6
XL_TEXT_PARAMETERS = 817.7e6
"""SD 2.1's text encoder, and both of SDXL's."""

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Of a weight, by dtype."""

UNET_ROW_BYTES = 261.0
"""Activations of a forward pass without gradients, per sample and pixel of the picture, in bfloat16; likewise below.
Computed on SD 2.1's classes with `bootpig.stages.train.peak.Allocated`."""
VAE_ENCODE_BYTES = 1286.0
VAE_DECODE_BYTES = 1536.0

MEMORY_ASSUMPTION = (
    "memory of stages that draw or encode: weights and a rough figure for activations, as Stable Diffusion's, without "
    "judges; transformers need more"
)

ASSUMPTION = (
    "operations grow with the number of weights and of latent pixels; a model that is not on this disk has its "
    "published size if that is known here, else SD 2.1's (SDXL's if its name has 'xl')"
)


def unet_tflop(model: str, pixels: float) -> float:
    """A forward pass of a pipeline's UNet per sample of `pixels` pixels, in 10^12 operations; likewise those below."""
    usual = (XL_UNET_TFLOP, XL_UNET_PARAMETERS) if _is_xl(model) else (UNET_TFLOP, UNET_PARAMETERS)
    return _scaled(model, "unet", *usual, pixels)


def refiner_tflop(model: str, pixels: float) -> float:
    return _scaled(model, "unet", REFINER_TFLOP, REFINER_PARAMETERS, pixels)


def vae_encode_tflop(model: str, pixels: float) -> float:
    return _scaled(model, "vae", VAE_ENCODE_TFLOP, VAE_PARAMETERS, pixels)


def vae_decode_tflop(model: str, pixels: float) -> float:
    return _scaled(model, "vae", VAE_DECODE_TFLOP, VAE_PARAMETERS, pixels)


def transformer_parameters(model: str) -> float:
    """The number of weights of a pipeline's transformer; 0 if it has none or is not on this disk."""
    return _parameters(model, "transformer", 0.0)


def unet_parameters(model: str) -> float:
    """The number of weights of a pipeline's UNet."""
    return _parameters(model, "unet", XL_UNET_PARAMETERS if _is_xl(model) else UNET_PARAMETERS)


def unet_bytes(model: str, dtype: str) -> float:
    """The memory of the weights of a pipeline's UNet."""
    return BYTES[dtype] * unet_parameters(model)


def pipeline_bytes(model: str, dtype: str) -> float:
    """The memory of the weights of all networks of a pipeline: UNet or transformer, text encoders and VAE."""
    text = XL_TEXT_PARAMETERS if _is_xl(model) else TEXT_PARAMETERS
    encoders = sum(_parameters(model, part, 0.0) for part in ("text_encoder", "text_encoder_2", "text_encoder_3"))
    denoiser = transformer_parameters(model) or unet_parameters(model)
    return BYTES[dtype] * (denoiser + (encoders or text) + _parameters(model, "vae", VAE_PARAMETERS))


def drawing_bytes(model: str, dtype: str, pictures: int, rows: int, pixels: float) -> float:
    """The memory for drawing with a pipeline: weights, and activations of the UNet or of the VAE, whichever are more.

    Args:
        pictures: that are drawn at once.
        rows: samples in a call of the UNet: more than pictures with guidance.
        pixels: height times width of a picture.
    """
    activations = max(rows * UNET_ROW_BYTES, pictures * VAE_DECODE_BYTES)
    return pipeline_bytes(model, dtype) + BYTES[dtype] / 2 * pixels * activations


def encoding_bytes(model: str, dtype: str, pictures: int, pixels: float) -> float:
    """The memory for encoding pictures at once and texts: the pipeline without its UNet, and activations of the VAE."""
    weights = pipeline_bytes(model, dtype) - unet_bytes(model, dtype)
    return weights + BYTES[dtype] / 2 * pixels * pictures * VAE_ENCODE_BYTES


def unet_config(model: str) -> dict[str, Any]:
    """`in_channels`, `cross_attention_dim` and `addition_embed_type` of a pipeline's UNet."""
    folder = local_path(model)
    width = 2048 if _is_xl(model) else 768 if "v1" in model.lower() else 1024
    usual = {
        "in_channels": 4,
        "cross_attention_dim": width,
        "addition_embed_type": "text_time" if _is_xl(model) else None,
    }
    try:
        found = json.loads((folder / "unet" / "config.json").read_bytes()) if folder is not None else {}
    except (OSError, ValueError, RecursionError):
        found = {}
    return {**usual, **{name: found[name] for name in usual if name in found}}


def _is_xl(model: str) -> bool:
    return "xl" in model.lower()


def _scaled(model: str, part: str, tflop: float, parameters: float, pixels: float) -> float:
    return tflop * _parameters(model, part, parameters) / parameters * pixels / 512**2


def _parameters(model: str, part: str, usual: float) -> float:
    """The weights of a pipeline's part, from the headers of its safetensors files; `usual` if it is not here."""
    folder = local_path(model)
    files = sorted((folder / part).glob("*.safetensors")) if folder is not None else []
    try:
        return float(sum(_weights(file) for file in files)) or usual
    except (OSError, ValueError, KeyError, struct.error, RecursionError):
        return usual


def _weights(file: Path) -> int:
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(min(size, 100_000_000)))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
