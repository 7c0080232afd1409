"""The tar codec of shards against the standard library's `tarfile`: same members, same bytes, both directions."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from bootpig.stages.pictures import encode_png
from bootpig.storage.fingerprint import canonical_json
from bootpig.storage.shards import read_shard, write_shard

Members = list[tuple[str, bytes]]
Samples = list[tuple[str, dict[str, bytes]]]

SAMPLES, ROUNDS, REPEATS = 64, 15, 3


def members(side: int) -> Members:
    """A shard's worth of pictures of `side` pixels, JSON, and latents of target and four references."""
    generator = np.random.default_rng(0)
    smooth = np.linspace(0, 200, side * side * 3).reshape(side, side, 3)
    noise = generator.integers(0, 32, (side, side, 3))  # as much of it as makes a photo's PNG
    picture = encode_png(Image.fromarray((smooth + noise).astype(np.uint8)))
    latents = {"target": torch.randn(4, side // 8, side // 8), "references": torch.randn(4, 4, side // 8, side // 8)}
    tensors = safetensors.torch.save({name: value.half() for name, value in latents.items()})
    facts = canonical_json({"caption": "A photo of a mug, on the left on a wooden table", "object": "mug"})
    found: Members = []
    for index in range(SAMPLES):
        found += [(f"{index:016x}.json", facts), (f"{index:016x}.png", picture)]
        found += [(f"{index:016x}.safetensors", tensors)]
    return found


def write_by_tarfile(members: Members) -> bytes:
    """What `write_shard` makes, by `tarfile`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(data), 0, 0o644
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read_by_tarfile(data: bytes) -> Samples:
    """What `read_shard` yields, by `tarfile`; links and devices are left to fail."""
    return list(_by_sample(data))


def _by_sample(data: bytes) -> Iterator[tuple[str, dict[str, bytes]]]:
    sample: tuple[str, dict[str, bytes]] | None = None
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for info in archive:
            stream = archive.extractfile(info)
            assert stream is not None
            key, _, extension = info.name.partition(".")
            if sample is None or sample[0] != key:
                if sample is not None:
                    yield sample
                sample = (key, {})
            sample[1][extension] = stream.read()
    if sample is not None:
        yield sample


def _best(ways: tuple[Callable[[], object], Callable[[], object]]) -> tuple[float, float]:
    """The least seconds of a call of each; they take turns."""
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for way, found in zip(ways, spent, strict=True):
            begin = time.perf_counter()
            for _ in range(REPEATS):
                way()
            found.append((time.perf_counter() - begin) / REPEATS)
    return min(spent[0]), min(spent[1])


def write(side: int = 512) -> dict[str, float | str]:
    """Milliseconds to write a shard: `value` (ours), `baseline` (tarfile), and how much faster ours is as `ratio`."""
    content = members(side)
    assert write_shard(content) == write_by_tarfile(content)
    return _measurement(_best((lambda: write_shard(content), lambda: write_by_tarfile(content))))


def read(side: int = 512) -> dict[str, float | str]:
    """Milliseconds to read a shard, as `write`."""
    data = write_shard(members(side))
    assert list(read_shard(data)) == read_by_tarfile(data)
    return _measurement(_best((lambda: list(read_shard(data)), lambda: read_by_tarfile(data))))


def _measurement(best: tuple[float, float]) -> dict[str, float | str]:
    value, baseline = best
    return {"ratio": baseline / value, "value": 1000 * value, "baseline": 1000 * baseline, "unit": "ms a shard"}
