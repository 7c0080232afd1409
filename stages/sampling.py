"""Draws pictures with a BootPIG pipeline, in batches: for `generate`, `evaluate` and the samples of a training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bootpig.stages.engine.contract import Progress
from bootpig.stages.engine.slices import halving

if TYPE_CHECKING:
    import torch
    from PIL import Image

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn, as in the paper by default; the guidance scales are those of eq. 4."""

    steps: int = 50
    guidance_scale: float = 7.5
    reference_guidance_scale: float = 5.0
    batch_size: int = 4
    """Pictures drawn at once, as long as memory allows."""
    reference_refresh_steps: int = 1
    """The pipeline's argument of that name."""


@dataclass(frozen=True)
class Seeds:
    """What the noise of one picture depends on, whatever its batch. It is drawn on the CPU, the same for any device."""

    latents: int
    """Seed of the first noise."""
    rest: int | None = None
    """Seed of all later draws, such as the references' noise; None: the first noise's generator goes on."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """One picture."""

    image: Image.Image
    """RGB."""
    known_psnr_db: float | None
    """Inpainting: how well the network itself rendered what it was to keep, before the original was pasted over it."""


def draw_pictures(
    pipeline: Any,
    seeds: Sequence[Seeds],
    inputs: Callable[[Sequence[int]], Mapping[str, Any]],
    sampling: Sampling,
    *,
    setting: str,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Iterator[list[Drawn]]:
    """Draw a picture for each of `seeds`, batch by batch, in order. A batch for which memory runs out is halved, as are
    all after it.

    Args:
        pipeline: a BootPIG pipeline.
        inputs: the pipeline's arguments for the pictures of one batch, by their places in `seeds`: prompts or embeds,
            references, and what else it takes.
        setting: what sets the batch size, to name in a warning.
        size: (height, width) in pixels; None: the UNet's own resolution.
        progress: is told denoising steps, counted for each picture.

    Raises:
        FatalError: memory runs out with a single picture.
        ValueError: the pipeline cannot use the inputs.
    """
    import torch

    total = len(seeds) * sampling.steps
    options: dict[str, Any] = {} if size is None else {"height": size[0], "width": size[1]}
    furthest = 0

    def advance(steps: int) -> None:
        nonlocal furthest
        furthest = max(furthest, steps)  # a halved batch begins again
        if progress is not None:
            progress(furthest, total, "")

    def paint(batch: Sequence[int]) -> list[Drawn]:
        def count(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            # some schedulers take more steps than they are asked for
            advance(batch[0] * sampling.steps + min(step + 1, sampling.steps) * len(batch))
            return {}

        latents, generators = _noise([seeds[place] for place in batch], latent_shape(pipeline, size))
        output = pipeline(
            **inputs(batch),
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            reference_guidance_scale=sampling.reference_guidance_scale,
            reference_refresh_steps=sampling.reference_refresh_steps,
            latents=torch.cat(latents).to(pipeline.unet.device, pipeline.unet.dtype),
            generator=generators,
            callback_on_step_end=None if progress is None else count,
            **options,
        )
        advance((batch[-1] + 1) * sampling.steps)
        psnr = getattr(output, "known_psnr_db", [None] * len(batch))
        return [Drawn(image, known) for image, known in zip(output.images, psnr, strict=True)]

    def halved(pictures: int) -> None:
        _LOG.warning("out of memory; going on with %d at once (%s)", pictures, setting)

    yield from halving(range(len(seeds)), sampling.batch_size, paint, halved)


def latent_shape(pipeline: Any, size: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
    """(1, C, h, w) of one picture of `size`, (height, width) in pixels; None: at the UNet's own resolution."""
    own = pipeline.unet.config.sample_size
    height, width = (own, own) if isinstance(own, int) else own
    if size is not None:
        height, width = (side // pipeline.vae_scale_factor for side in size)
    return 1, pipeline.unet.config.in_channels, height, width


def _noise(
    seeds: Sequence[Seeds], shape: tuple[int, int, int, int]
) -> tuple[list[torch.Tensor], list[torch.Generator]]:
    """The first noise of each picture, and the generator of all that it draws after it."""
    import torch

    latents, generators = [], []
    for each in seeds:
        generator = torch.Generator().manual_seed(each.latents)
        latents.append(torch.randn(shape, generator=generator))
        generators.append(generator if each.rest is None else torch.Generator().manual_seed(each.rest))
    return latents, generators
