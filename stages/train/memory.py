"""How much device memory a training needs: from a table of computed peaks, see `stages.train.peak`. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bootpig.models.pretrained.source import local_path
from bootpig.stages.engine.memory import UNKNOWN, Memory
from bootpig.stages.train.config import TrainConfig, micro_batch
from bootpig.storage.jsonio import parse_json

TABLE = Path(__file__).parent / "memory.json"
"""Base → its UNet's settings, pixels of a picture, and per method the fields of `stages.train.peak.Peak`, with
activations by checkpointing (`plain`, `checkpointing`). Made by `python -m benchmarks memory`."""

RANK = 16
"""The rank of the adapters in the table."""


@cache
def table() -> dict[str, Any]:
    """The bases of `TABLE`."""
    found: dict[str, Any] = parse_json(TABLE.read_bytes())["bases"]
    return found


def training_memory(config: TrainConfig, pixels: float) -> tuple[Memory, str]:
    """The peak memory of an update on one device, and in one line what the figure assumes or why there is none.

    Args:
        pixels: height times width of a picture.
    """
    base = _base(config.model)
    if base is None:
        return UNKNOWN, "train: memory is computed only for UNets of SD 1.5, SD 2.1 and SDXL"
    if reason := _not_in_table(config):
        return UNKNOWN, f"train: memory is not computed for {reason}"
    facts = table()[base]
    method = facts["methods"][config.method]
    scale = config.lora_rank / RANK if config.method == "lora" else 1.0
    trained = method["trained"] * scale
    held = method["frozen"] + 2 * trained + method["moments"][config.optimizer] * scale
    processes = config.num_processes if isinstance(config.num_processes, int) else 1
    held += trained * ((config.ema_decay is not None) + (processes > 1))  # the average; DDP's copy of the gradients
    references = config.references_per_sample[1]
    batch = micro_batch(config.global_batch_size // processes, config.per_device_batch_size)
    work = batch * pixels / facts["pixels"]
    lines = method["activations"]["checkpointing" if config.gradient_checkpointing else "plain"]
    # several references repeat the Reference UNet's part, which is about half
    activations = max(constant + each * work for constant, each in lines) * (1 + references) / 2
    exact = pixels == facts["pixels"] and scale == 1.0 and references == 1
    kind = "the UNet of" if local_path(config.model) else "taken for"
    line = (
        f"train: memory of {batch} samples at once in bf16, {kind} {base}, gradients accumulated, attention without "
        "its matrix, no validation or sample pictures"
    )
    return Memory(held + activations, "computed" if exact else "scaled"), line


def _not_in_table(config: TrainConfig) -> str:
    """The first setting that the table does not know."""
    defaults = TrainConfig(model="-")
    if config.mixed_precision != "bf16":
        return "mixed_precision: no"
    if config.shard != "none":
        return "shard: fsdp"
    if config.trainable != defaults.trainable:
        return "this choice of trainable"
    if config.lora_targets != defaults.lora_targets:
        return "these lora_targets"
    return ""


def _base(model: str) -> str | None:
    """The base in the table with the same UNet. A model that is not on this disk is recognised by its name."""
    folder = local_path(model)
    if folder is None:
        name = model.lower()
        return "SDXL" if "xl" in name else "SD 1.5" if "v1" in name else "SD 2.1"
    try:
        own = parse_json((folder / "unet" / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return next((name for name, facts in table().items() if _same(own, facts["unet"])), None)


def _same(own: object, unet: Mapping[str, Any]) -> bool:
    """Whether a UNet has the layers and widths of one in the table."""
    usual = {"transformer_layers_per_block": 1, "layers_per_block": 2}
    names = ("block_out_channels", "down_block_types", "cross_attention_dim", *usual)
    if not isinstance(own, dict):
        return False
    return all(own.get(name, usual.get(name)) == unet.get(name, usual.get(name)) for name in names)
