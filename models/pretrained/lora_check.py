"""Finds what would prevent the LoRA weights of a trained model from being loaded, from the headers of its files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from bootpig.models.pretrained.weight_files import read_safetensors


def lora_problem(folder: Path, info: Mapping[str, Any], base: Path | None) -> str | None:
    """What is wrong with the LoRA weights of a trained model, in one line, or None.

    Args:
        folder: the folder of the trained model.
        info: the content of its `bootpig.json`.
        base: the folder of its base, None if it is not on this disk.

    Raises:
        DamagedFile: a file is missing or damaged.
    """
    from bootpig.models.core.lora import Lora, misfit
    from bootpig.models.pipelines.lora_files import LORA_FILES

    try:
        lora = Lora.from_json(info.get("lora"))
    except ValueError as error:
        return f"{str(folder / 'bootpig.json')!r}: {error}"
    for network in lora.networks:
        file = folder / LORA_FILES[network]
        shapes = {name.removeprefix("unet."): tensor.shape for name, tensor in read_safetensors(file).items()}
        if base is None:
            continue
        if problem := misfit(lora, shapes, _widths(base, network, (base / "unet" / "config.json").stat().st_mtime_ns)):
            return f"the file {str(file)!r} cannot be used: {problem}"
    return None


def target_problem(lora: Any, base: Path, *, whole_base: bool) -> str | None:
    """What is wrong with the settings of LoRA for a base, or None.

    Args:
        lora: a `bootpig.models.core.lora.Lora`.
        base: the folder of the base.
        whole_base: see `bootpig.models.core.adapters.check_targets`.
    """
    from bootpig.models.core.adapters import check_targets

    return check_targets(lora, _unet(base), whole_base=whole_base)


@lru_cache(maxsize=16)
def _widths(base: Path, network: str, state: int) -> dict[str, tuple[int, int]]:
    from bootpig.models.core.lora import layer_widths
    from bootpig.models.core.reference_unet import truncate

    unet = _unet(base)
    return layer_widths(truncate(unet) if network == "reference" else unet)


def _unet(base: Path) -> Any:
    """The UNet of a base, without memory."""
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel

    with init_empty_weights():
        return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(str(base / "unet")))
