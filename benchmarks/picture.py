"""Measures a whole picture of 50 steps whose references are read without noise, compared with the published release.

Three parts are timed: our first step, which also reads the references and projects their keys and values; one of our
later steps; and a step of the published release, where all steps cost the same. A picture is the first step and 49
later ones, against 50 of theirs. So the work that we do once per call is counted once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.inference import ETA, ETA_IM, LATENTS, WIDTH, denoisers
from benchmarks.networks import TRUE_LATENTS, TRUE_WIDTH, unet
from benchmarks.published import published_step
from benchmarks.timing import Measurement, operations
from bootpig.models.core.reference_unet import record_features
from bootpig.models.pipelines.clean_references import KeptFeatures

STEPS = 50


def one_reference() -> Measurement:
    return measure(images=1, references=1, rounds=9)


def four_references() -> Measurement:
    return measure(images=1, references=4, rounds=5)


def subject_batch() -> Measurement:
    """16 prompts about one subject with one reference, whose caption is the object phrase."""
    return measure(images=16, references=1, rounds=2)


def measure(images: int, references: int, rounds: int, width: int = WIDTH, latents: int = LATENTS) -> Measurement:
    """CPU seconds of a picture of `STEPS` steps for `images` prompts that share `references`."""
    parts = works(images, references, width, latents, "cpu")
    spent: dict[str, list[float]] = {name: [] for name in parts}
    with torch.no_grad():
        for work in parts.values():
            work()  # warm
        for _ in range(rounds):
            for name, work in parts.items():
                begin = time.process_time()
                work()
                spent[name].append(time.process_time() - begin)
    median = {name: statistics.median(seconds) for name, seconds in spent.items()}
    value, baseline = _pictures(median)
    return {
        "ratio": round(baseline / value, 3),
        "value": round(value, 2),
        "baseline": round(baseline, 2),
        "unit": f"CPU seconds a picture of {STEPS} steps, {images} prompts, {references} references; the first step "
        f"and {STEPS - 1} times a later one; float32, {width} wide, {torch.get_num_threads()} threads",
        "first_step": round(median["first"], 3),
        "later_step": round(median["later"], 3),
        "published_step": round(median["published"], 3),
        "operations_ratio": round(operations_ratio(images, references, width, latents), 3),
        "operations_ratio_sd21": round(operations_ratio(images, references), 3),
    }


def operations_ratio(images: int, references: int, width: int = TRUE_WIDTH, latents: int = TRUE_LATENTS) -> float:
    """The ratio of operation counts, which limits the speedup. By default at SD 2.1's full size and 512 pixels."""
    parts = works(images, references, width, latents, "meta")
    with torch.no_grad():
        value, baseline = _pictures({name: operations(work) for name, work in parts.items()})
    return baseline / value


def works(images: int, references: int, width: int, latents: int, device: str) -> dict[str, Callable[[], torch.Tensor]]:
    """The three parts, by name: `first`, `later`, `published`. `later` needs a call of `first` before it."""
    with torch.device(device):
        base = unet(width, latents).eval().requires_grad_(False)
    ours, published = denoisers(base, images, references, device)
    assert ours.references is not None
    x = torch.randn(images, 4, latents, latents, device=device)
    timestep = torch.tensor(500)

    def later() -> torch.Tensor:
        ours._ready = True  # what identifies the weights is not read again, and cannot be on the meta device
        return ours.predict(x, timestep, 0, ETA, ETA_IM)

    def first() -> torch.Tensor:
        rows = ours.references
        assert rows is not None
        zero = torch.zeros_like(timestep)
        features = record_features(ours.reference_unet, rows.latents, zero, rows.prompt_embeds, rows.attends)
        rows.kept = KeptFeatures(layers=features.layers)
        return later()

    return {
        "first": first,
        "later": later,
        "published": lambda: published_step(published, x, timestep, 0, ETA, ETA_IM),
    }


def _pictures(part: dict[str, float] | dict[str, int]) -> tuple[float, float]:
    """Our cost of a picture and the published release's, from the cost of each part."""
    return part["first"] + (STEPS - 1) * part["later"], STEPS * part["published"]
