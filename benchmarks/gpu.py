"""Measures training and inference at SD 2.1's full size on a CUDA device (bf16): `python -m benchmarks gpu`."""

from __future__ import annotations

import gc
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import inference, networks, train_step
from benchmarks.published import published_step

RESULTS = Path(__file__).parent / "gpu.json"

STEP_TFLOP = 4.5
"""Operations of a training step per sample at full size."""

Row = dict[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Setup:
    """What to measure. The defaults are the full size."""

    device: str = "cuda"
    width: int = networks.TRUE_WIDTH
    latents: int = networks.TRUE_LATENTS
    vae_width: int = 128
    batches: Sequence[int] = (4, 8, 16, 32)
    images: Sequence[int] = (1, 4, 16)
    options: Sequence[tuple[bool, bool, bool]] = tuple(itertools.product((False, True), repeat=3))
    """(gradient checkpointing, compile, channels_last)."""
    matmul: int = 8192
    steps: int = 50
    updates: int = 10
    warm_up: int = 3


def run() -> None:
    """Measure everything, print the tables and write `benchmarks/gpu.json`.

    Raises:
        SystemExit: there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise SystemExit("gpu: this machine has no CUDA device; run this benchmark on a machine with one")
    torch.backends.cuda.matmul.allow_tf32 = True
    setup = Setup()
    rate = matmul_rate(setup)
    facts = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "diffusers": diffusers.__version__,
        "matmul_tflops": round(rate, 1),
    }
    tables: dict[str, list[Row]] = {"training": [], "inference": []}
    for name, rows in (("training", training(setup, rate)), ("inference", denoising(setup))):
        for row in rows:
            tables[name].append(row)
            RESULTS.write_text(json.dumps({**facts, **tables}, indent=2) + "\n")
    console = Console(width=160)
    console.print(facts)
    for name, found in tables.items():
        table = Table(*found[0], title=name)
        for row in found:
            table.add_row(*("–" if value is None else str(value) for value in row.values()))
        console.print(table)


def matmul_rate(setup: Setup) -> float:
    """TFLOP/s of a square bf16 matrix multiplication."""
    a, b = torch.randn(2, setup.matmul, setup.matmul, device=setup.device, dtype=torch.bfloat16)
    seconds = _seconds(lambda: a @ b, setup)
    return 2 * setup.matmul**3 / seconds / 1e12


def training(setup: Setup, rate: float) -> Iterator[Row]:
    """Samples per second and peak memory of an update by batch size and options, for us and the published loop."""
    for batch in setup.batches:
        yield _training_row(setup, batch, "published", None, rate)
        for option in setup.options:
            yield _training_row(setup, batch, "ours", option, rate)


def _training_row(setup: Setup, size: int, way: str, option: tuple[bool, bool, bool] | None, rate: float) -> Row:
    checkpointing, compiled, channels_last = option or (False, False, False)
    row: Row = {
        "way": way,
        "batch": size,
        "checkpointing": checkpointing,
        "compile": compiled,
        "channels_last": channels_last,
        "samples_per_second": None,
        "peak_gib": None,
        "share_of_matmul": None,
    }
    try:
        batch = train_step.Batch(size, setup.latents, setup.device)
        unet = networks.unet(setup.width, setup.latents).to(setup.device)
        trained: train_step.Ours | train_step.Published
        if option is None:
            encoders = train_step.Encoders(batch, setup.latents, setup.width, setup.vae_width)
            trained = train_step.Published(batch, encoders, unet)
        else:
            trained = train_step.Ours(batch, _stored(batch, setup), unet)
            if checkpointing:
                trained.model.enable_gradient_checkpointing()
            if channels_last:
                trained.model.to(memory_format=torch.channels_last)
            if compiled:
                trained.objective.compile()
        seconds = _seconds(lambda: train_step.update(trained), setup)
        row["samples_per_second"] = round(size / seconds, 2)
        row["share_of_matmul"] = round(STEP_TFLOP * size / seconds / rate, 3)
        row["peak_gib"] = _peak_gib(setup)
    except torch.OutOfMemoryError:
        row["peak_gib"] = "out of memory"
    return row


def denoising(setup: Setup) -> Iterator[Row]:
    """Images per second of a full generation without text encoder and VAE, for us and the published release."""
    for images in setup.images:
        base = networks.unet(setup.width, setup.latents).to(setup.device, torch.bfloat16).eval().requires_grad_(False)
        ours, published = inference.denoisers(base, images, 1, setup.device, torch.bfloat16)
        x = torch.randn(images, 4, setup.latents, setup.latents, device=setup.device, dtype=torch.bfloat16)
        timestep = ours.scheduler.timesteps[10].to(setup.device)
        ways: dict[str, Callable[[], object]] = {
            "ours": lambda ours=ours, x=x, t=timestep: ours.predict(x, t, 0, inference.ETA, inference.ETA_IM),
            "published": lambda published=published, x=x, t=timestep: published_step(
                published, x, t, 0, inference.ETA, inference.ETA_IM
            ),
        }
        for way, step in ways.items():
            with torch.no_grad():
                seconds = _seconds(step, setup) * setup.steps
            rate = round(images / seconds, 3)
            yield {
                "way": way,
                "images": images,
                "steps": setup.steps,
                "images_per_second": rate,
                "peak_gib": _peak_gib(setup),
            }


def _stored(batch: train_step.Batch, setup: Setup) -> train_step.Encoded:
    length, width = networks.text_length(setup.latents), networks.text_width(setup.width)
    latents = torch.randn(2, batch.size, 4, setup.latents, setup.latents, device=setup.device)
    return latents, torch.randn(2, batch.size, length, width, device=setup.device)


def _seconds(work: Callable[[], object], setup: Setup) -> float:
    """Mean seconds of a call, with device synchronisation. Also resets the peak memory."""
    for _ in range(setup.warm_up):
        work()
    gc.collect()
    cuda = setup.device.startswith("cuda")
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(setup.updates):
        work()
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / setup.updates


def _peak_gib(setup: Setup) -> float | None:
    """Peak memory reserved by PyTorch's allocator, in GiB."""
    return round(torch.cuda.max_memory_reserved() / 2**30, 1) if setup.device.startswith("cuda") else None
