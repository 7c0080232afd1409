"""Saves and loads the LoRA weights of a trained model: one safetensors file per network, as diffusers writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from bootpig.models.core.lora import Lora, adapter_state, layer_widths, merge, misfit
from bootpig.models.core.reference_unet import copy_as_reference

LORA_FILES = {"reference": "reference_lora.safetensors", "base": "base_lora.safetensors"}
"""Network → its file. Names in it begin with `unet.`, so that `load_lora_weights` of diffusers reads it too."""


def save_lora_files(
    folder: Path, networks: Mapping[str, UNet2DConditionModel], lora: Lora, dtype: torch.dtype | None
) -> None:
    """Write the LoRA weights of each of `lora.networks`. `networks` holds both UNets, by the names `reference`, `base`.

    Raises:
        ValueError: a network has no LoRA weights.
    """
    for name in lora.networks:
        tensors = adapter_state(networks[name])
        if not tensors:
            raise ValueError(f"save_bootpig: the {name} UNet has no LoRA weights; leave lora out to save all weights")
        layers = sorted({tensor.rpartition(".lora_")[0] for tensor in tensors})
        # diffusers reads the scale from here; a second key would be written in any order
        settings = {"unet.r": lora.rank, "unet.lora_alpha": lora.alpha, "unet.target_modules": layers}
        save_file(
            {f"unet.{key}": tensor.to("cpu", dtype).contiguous() for key, tensor in tensors.items()},
            folder / LORA_FILES[name],
            {"lora_adapter_metadata": json.dumps(settings, sort_keys=True)},
        )


def read_lora_files(folder: Path, info: Mapping[str, Any]) -> tuple[Lora, dict[str, dict[str, Tensor]]]:
    """The LoRA weights in the folder of a trained model, for each network that has any: on the CPU, named without
    `unet.`. `info` is the content of its `bootpig.json`.

    Raises:
        ValueError: `info` does not describe LoRA weights, or a file is missing.
        SafetensorError: a file is damaged.
    """
    lora = Lora.from_json(info.get("lora"))
    files = {}
    for name in lora.networks:
        file = folder / LORA_FILES[name]
        if not file.is_file():
            raise ValueError(f"{folder}: {file.name} is missing; give the folder of a trained BootPIG model")
        files[name] = {key.removeprefix("unet."): tensor for key, tensor in load_file(file).items()}
    return lora, files


def load_lora_files(folder: Path, unet: UNet2DConditionModel, info: Mapping[str, Any]) -> UNet2DConditionModel:
    """Merge the LoRA weights of a trained model into its base and into a copy of it.

    No adapters are left in the networks: they are as fast as without, and what diffusers does to adapters (loading,
    unloading, fusing) does not concern them.

    Args:
        folder: the folder of the trained model.
        unet: the base UNet. Its weights change in place.
        info: the content of `bootpig.json`.

    Returns:
        The truncated Reference UNet, with the base's dtype and device.

    Raises:
        ValueError: a file is missing or does not fit. `unet` is then unchanged.
        SafetensorError: a file is damaged.
    """
    lora, files = read_lora_files(folder, info)
    reference_unet = copy_as_reference(unet)
    networks = {"reference": reference_unet, "base": unet}
    for name, tensors in files.items():
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        if problem := misfit(lora, shapes, layer_widths(networks[name])):
            raise ValueError(f"{folder / LORA_FILES[name]}: {problem}")
    for name, tensors in files.items():
        merge(networks[name], tensors, lora.scale())
    return reference_unet
