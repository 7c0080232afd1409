"""How many weights the LoRA adapters of a model have, read from the headers of its base's files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from bootpig.models.pretrained.source import local_path
from bootpig.models.pretrained.weight_files import DamagedFile, read_safetensors

if TYPE_CHECKING:
    from bootpig.models.core.lora import Lora

_USUAL = (207_488, 99_840)
_USUAL_XL = (1_451_520, 665_600)
"""LoRA weights of a UNet per rank, on the projections of all attention layers and of self-attention alone: SD 2.1's and
SDXL's, counted on their classes."""


def lora_parameters(model: str, lora: Lora, *, whole_base: bool) -> float:
    """The number of LoRA weights that both networks have together.

    Args:
        model: the base. If it is not on this disk, it has SD 2.1's size (SDXL's if its name has 'xl').
        whole_base: the base UNet has them on all targets, not only in self-attention.
    """
    folder = local_path(model)
    try:
        every, own = _per_rank(folder / "unet", lora) if folder is not None else (0, 0)
    except (OSError, DamagedFile):
        every, own = 0, 0
    if not every:
        every, own = _USUAL_XL if "xl" in model.lower() else _USUAL
    counts = {"reference": every, "base": every if whole_base else own}
    return float(lora.rank * sum(counts[name] for name in lora.networks))


def _per_rank(unet: Path, lora: Lora) -> tuple[int, int]:
    """The sums of the widths of all target layers, and of those in self-attention."""
    ends = tuple(f".{target}.weight" for target in lora.targets)
    shapes = {
        f".{name}": tensor.shape
        for file in sorted(unet.glob("*.safetensors"))
        for name, tensor in read_safetensors(file).items()
    }
    widths = {
        name: shape[0] + math.prod(shape[1:])
        for name, shape in shapes.items()
        if name.endswith(ends) and len(shape) > 1
    }
    return sum(widths.values()), sum(width for name, width in widths.items() if ".attn1." in name)
