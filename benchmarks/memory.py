"""Computes the peak memory of a training update for the table of `bootpig plan`: `python -m benchmarks memory`.

No device and no weights are needed. Writes stages/train/memory.json and prints its tables for docs/benchmarks.md.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import torch

from bootpig.models.core.lora import Lora
from bootpig.stages.engine.memory import Memory
from bootpig.stages.train.config import TrainConfig
from bootpig.stages.train.lora import lora_of
from bootpig.stages.train.memory import RANK, TABLE
from bootpig.stages.train.peak import Part, peak

UNETS: dict[str, dict[str, Any]] = {
    "SD 1.5": {"sample_size": 64, "cross_attention_dim": 768},
    "SD 2.1": {
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "SDXL": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
"""The bases' settings of `UNet2DConditionModel`, where they are not its defaults."""

METHODS: dict[str, Lora | None] = {
    "full": None,
    "lora": lora_of(TrainConfig(model="-", method="lora", lora_rank=RANK)),
}
BATCHES = (1, 2, 4, 8, 16, 32)
WAYS = {"plain": False, "checkpointing": True}


def run() -> None:
    """Compute all peaks, write them, and print the table. Takes about five minutes on one core."""
    table: dict[str, Any] = {}
    for base, unet in UNETS.items():
        methods: dict[str, Any] = {}
        for method, lora in METHODS.items():
            activations = {}
            for way, checkpointing in WAYS.items():
                found = peak(
                    lambda batch, unet=unet, lora=lora, checkpointing=checkpointing: Part(
                        unet, batch=batch, latents=unet["sample_size"], lora=lora, checkpointing=checkpointing
                    )
                )
                activations[way] = found.activations
                print(base, method, way, f"{found.at(4) / 2**30:.2f} GiB of activations for 4 samples", flush=True)
            facts = {"frozen": found.frozen, "trained": found.trained, "moments": found.moments}
            methods[method] = {**facts, "activations": activations}
        table[base] = {"pixels": (8 * unet["sample_size"]) ** 2, "unet": _layers(unet), "methods": methods}
    TABLE.write_text(json.dumps({"torch": torch.__version__.split("+")[0], "bases": table}, indent=1) + "\n")
    print("\n".join(markdown(table)))


def _layers(unet: dict[str, Any]) -> dict[str, Any]:
    """What tells a base's UNet from others."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        config = UNet2DConditionModel(**unet).config
    names = ("block_out_channels", "down_block_types", "cross_attention_dim", "transformer_layers_per_block")
    return {name: config[name] for name in (*names, "layers_per_block")}


def markdown(bases: dict[str, Any]) -> Iterator[str]:
    """The table for docs/benchmarks.md: GiB per base, method, optimizer and checkpointing, for each batch."""
    yield f"| base | method | optimizer | checkpointing | held | {' | '.join(f'batch {size}' for size in BATCHES)} |"
    yield "|---" * (5 + len(BATCHES)) + "|"
    for (base, facts), way in itertools.product(bases.items(), WAYS):
        for method, found in facts["methods"].items():
            for optimizer, moments in found["moments"].items():
                held = found["frozen"] + 2 * found["trained"] + moments
                lines = found["activations"][way]
                peaks = [held + max(constant + each * batch for constant, each in lines) for batch in BATCHES]
                cells = [method, optimizer, "yes" if WAYS[way] else "no", f"{held / 2**30:.1f}"]
                yield f"| {' | '.join([base, *cells, *(_cell(Memory(peak, 'computed')) for peak in peaks)])} |"


def _cell(size: Memory) -> str:
    """The peak in GiB, and the smallest card that has as much."""
    assert size.bytes is not None
    cards = size.fits()
    return f"{size.bytes / 2**30:.1f} ({cards[0] if cards else '–'})"
