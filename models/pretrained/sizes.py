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

UNET_PARAMETERS = 865.9e6
XL_UNET_PARAMETERS = 2567e6
REFINER_PARAMETERS = 2260e6
VAE_PARAMETERS = 83.7e6
RSA_SHARE = 49.6 / 865.9
"""Of a UNet's weights, those of its self-attention layers."""

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
