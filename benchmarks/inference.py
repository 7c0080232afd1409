"""Measures a guided denoising step, compared with the published release at the same weights and result."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from benchmarks.networks import TRUE_LATENTS, TRUE_WIDTH, text_length, unet
from benchmarks.published import published_step, record_whole, use_published_attention
from benchmarks.timing import Measurement, operations, seconds_in_turn
from bootpig.models.core.reference_unet import copy_as_reference
from bootpig.models.core.rsa import install_rsa
from bootpig.models.pipelines.guidance import Denoiser, ReferenceRows

WIDTH, LATENTS = 128, 40
"""0.4 of SD 2.1's at 512 pixels; at this size every part takes its usual share of the work."""

ETA, ETA_IM = 7.5, 5.0


def one_reference() -> Measurement:
    return measure(images=1, references=1, rounds=16)


def four_references() -> Measurement:
    return measure(images=1, references=4, rounds=7)


def subject_batch() -> Measurement:
    """16 prompts about one subject with one reference, whose caption is the object phrase."""
    return measure(images=16, references=1, rounds=2)


def measure(images: int, references: int, rounds: int, width: int = WIDTH, latents: int = LATENTS) -> Measurement:
    """CPU seconds of a guided step for `images` prompts that share `references`.

    Raises:
        RuntimeError: the two implementations do not agree.
    """
    base = unet(width, latents).eval().requires_grad_(False)
    ours, published = denoisers(base, images, references, "cpu")
    x = torch.randn(images, 4, latents, latents, generator=torch.Generator().manual_seed(9))
    timestep = ours.scheduler.timesteps[10]

    def our_step() -> torch.Tensor:
        return ours.predict(x, timestep, 0, ETA, ETA_IM)

    def their_step() -> torch.Tensor:
        return published_step(published, x, timestep, 0, ETA, ETA_IM)

    with torch.no_grad():
        one, other = our_step(), their_step()
        error = float((one - other).abs().max() / other.abs().max())
        if error > 1e-3:
            raise RuntimeError(f"the two implementations differ by {error:.1e} of the largest value")
        value, baseline = seconds_in_turn(our_step, their_step, rounds)
    return {
        "ratio": round(baseline / value, 3),
        "value": round(value, 3),
        "baseline": round(baseline, 3),
        "unit": f"CPU seconds a step of {images} prompts, {references} references; float32, {width} wide, "
        f"{torch.get_num_threads()} threads",
        "operations_ratio": round(operations_ratio(images, references, width, latents), 3),
        "operations_ratio_sd21": round(operations_ratio(images, references), 3),
        "largest_difference": error,
    }


def operations_ratio(images: int, references: int, width: int = TRUE_WIDTH, latents: int = TRUE_LATENTS) -> float:
    """The ratio of operation counts, which limits the speedup. By default at SD 2.1's full size and 512 pixels."""
    with torch.device("meta"):
        base = unet(width, latents)
    ours, published = denoisers(base, images, references, "meta")
    x, timestep = torch.empty(images, 4, latents, latents, device="meta"), torch.tensor(500)
    with torch.no_grad():
        theirs = operations(lambda: published_step(published, x, timestep, 0, ETA, ETA_IM))
        return theirs / operations(lambda: ours.predict(x, timestep, 0, ETA, ETA_IM))


def denoisers(
    base: UNet2DConditionModel, images: int, references: int, device: str, dtype: torch.dtype = torch.float32
) -> Sequence[Denoiser]:
    """Our denoiser and the published one, with the same networks and inputs."""
    latents, width = base.config.sample_size, base.config.cross_attention_dim
    length = text_length(latents)
    torch.manual_seed(1)
    clean = torch.randn(references, 4, latents, latents, device=device, dtype=dtype)
    caption = torch.randn(1, length, width, device=device, dtype=dtype)
    rows = ReferenceRows(
        clean,
        caption.expand(references, -1, -1),
        [str(reference) for reference in range(references)],
        [tuple(range(references))] * images,
    )
    prompts = torch.randn(images, length, width, device=device, dtype=dtype)
    empty = torch.randn(1, length, width, device=device, dtype=dtype).expand(images, -1, -1)
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.set_timesteps(50)
    whole = record_whole(copy.deepcopy(base))
    published = Denoiser(use_published_attention(copy.deepcopy(base)), whole, scheduler, prompts, empty, rows)
    install_rsa(base)
    return Denoiser(base, copy_as_reference(base), scheduler, prompts, empty, rows), published
