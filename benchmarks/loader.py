"""The shard loader against plain webdataset: shuffled, decoded, stacked batches from the same cold shards."""

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
"""Of Stable Diffusion 2.1 at 512 pixels with four references: 478 kB a sample."""


def write_shards(folder: Path) -> ReduceInput:
    """`UNITS` shards as encode leaves them."""
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
    """One epoch through our loader, nothing cached. Returns the number of samples."""
    loader = ShardLoader(data, seed=0, batch_size=BATCH, window=UNIT_SIZE * 4, cache_bytes=0)
    return sum(loader.batches(0, UNITS * UNIT_SIZE // BATCH, lambda _, batch: len(batch.ids)))


def theirs(folder: Path) -> int:
    """One epoch through webdataset with a shuffle of the same reach."""
    import webdataset  # a tool for development, which `python -m benchmarks gpu` does without

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
    """Samples a second of both, the median of rounds that take turns.

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
