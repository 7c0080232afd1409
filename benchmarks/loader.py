"""Compares the shard loader with plain webdataset: shuffled, decoded, stacked batches from the same cold shards."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from bootpig.stages.engine.contract import ReduceInput, Sample, UnitRef
from bootpig.stages.engine.shardio import pack
from bootpig.stages.train.dataset import ShardLoader

UNITS, UNIT_SIZE, BATCH, ROUNDS = 12, 128, 32, 7
SHAPES = {
    "target": (4, 64, 64),
    "references": (4, 4, 64, 64),
    "prompt_embeds": (77, 1024),
    "reference_prompt_embeds": (77, 1024),
}
"""Shapes for Stable Diffusion 2.1 at 512 pixels with four references: 478 kB per sample."""


def write_shards(folder: Path) -> ReduceInput:
    """Write `UNITS` shards in the format of encode."""
    tensors = {name: torch.randn(shape).half() for name, shape in SHAPES.items()}
    data = safetensors.torch.save(tensors)
    units = []
    for unit in range(UNITS):
        samples = [
            Sample(f"{unit:05d}{index:05d}", unit, {"caption": "a photo", "object": "mug"}, {"safetensors": data})
            for index in range(UNIT_SIZE)
        ]
        (folder / f"{unit:05d}.tar").write_bytes(pack(samples))
        units.append(UnitRef(unit, str(unit), UNIT_SIZE))
    return ReduceInput(units, lambda unit: (folder / f"{unit:05d}.tar").read_bytes(), None)


def ours(data: ReduceInput) -> int:
    """One epoch with our loader, without cache. Returns the number of samples."""
    loader = ShardLoader(data, seed=0, batch_size=BATCH, window=UNIT_SIZE * 4, cache_bytes=0)
    return sum(loader.batches(0, UNITS * UNIT_SIZE // BATCH, lambda _, batch: len(batch.ids)))


def theirs(folder: Path) -> int:
    """One epoch with webdataset, with a shuffle buffer of the same size."""
    import webdataset  # a development dependency, not needed for `python -m benchmarks gpu`

    urls = [str(file) for file in sorted(folder.glob("*.tar"))]

    def decode(sample: dict[str, bytes]) -> dict[str, torch.Tensor]:
        return safetensors.torch.load(sample["safetensors"])

    def choose(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        references = tensors["references"]
        return {**tensors, "references": references[int(torch.randint(len(references), ()))]}

    def stack(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([sample[name] for sample in samples]) for name in SHAPES}

    stream = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
        .shuffle(UNIT_SIZE * 4)
        .map(decode)
        .map(choose)
        .batched(BATCH, collation_fn=stack)
    )
    return sum(len(batch["target"]) for batch in stream)


def measure() -> dict[str, float | str]:
    """Samples per second of both, as medians of alternating rounds.

    Returns:
        `value` (ours), `baseline` (webdataset), `ratio` of the two (goal: at least 0.95), `unit`.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = write_shards(Path(folder))
        rates: dict[Callable[[], int], list[float]] = {lambda: ours(data): [], lambda: theirs(Path(folder)): []}
        for _ in range(ROUNDS):
            for way, found in rates.items():
                begin = time.perf_counter()
                samples = way()
                found.append(samples / (time.perf_counter() - begin))
    value, baseline = (statistics.median(found) for found in rates.values())
    return {"ratio": value / baseline, "value": value, "baseline": baseline, "unit": "samples/s"}
