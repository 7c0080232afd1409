"""Draws pictures with a BootPIG pipeline, in batches: for `generate`, `evaluate` and sample pictures in training."""

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
    """Sampling settings. The defaults are the paper's, and the guidance scales are those of its eq. 4."""

    steps: int = 50
    guidance_scale: float = 7.5
    reference_guidance_scale: float = 5.0
    batch_size: int = 4
    """Pictures per batch. Halved when memory runs out."""
    reference_refresh_steps: int = 1
    """Run the Reference UNet every N steps and reuse its features in between."""
    pooling: str | None = None
    """How the outputs for several references are combined, see `bootpig.models.core.rsa.Pooling`. None: as the model
    was trained. Remains set in the pipeline."""


@dataclass(frozen=True)
class Seeds:
    """Seeds of the noise of one picture. Noise is drawn on the CPU and does not depend on the batch or the device."""

    latents: int
    """Seed of the initial noise."""
    rest: int | None = None
    """Seed of all later draws, such as the noise of references. None: continue with the generator of `latents`."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """One picture."""

    image: Image.Image | None
    """RGB. None if it is not finite, which would be stored as black."""
    known_psnr_db: float | None
    """Inpainting: PSNR in dB of the known part as the network rendered it, before the original is pasted over it."""


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
    """Draw one picture for each of `seeds`, batch by batch, in order. When memory runs out, this and all later batches
    are halved.

    Args:
        pipeline: a BootPIG pipeline.
        seeds: the seeds of each picture.
        inputs: returns the pipeline's arguments (prompts or embeds, references, …) for the pictures of one batch, given
            their indices in `seeds`.
        sampling: the sampling settings.
        setting: name of the setting for the batch size, used in a warning.
        size: (height, width) in pixels. None: the UNet's own resolution.
        progress: progress callback. It counts denoising steps, summed over pictures.

    Raises:
        FatalError: memory runs out with a single picture.
        ValueError: the pipeline cannot use the inputs.
    """
    import numpy as np
    import torch

    if sampling.pooling is not None:
        pipeline.register_to_config(pooling=sampling.pooling)
    total = len(seeds) * sampling.steps
    options: dict[str, Any] = {} if size is None else {"height": size[0], "width": size[1]}
    furthest = 0

    def advance(steps: int) -> None:
        nonlocal furthest
        furthest = max(furthest, steps)  # a halved batch starts again
        if progress is not None:
            progress(furthest, total, "")

    def paint(batch: Sequence[int]) -> list[Drawn]:
        def count(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            # some schedulers take more steps than requested
            advance(batch[0] * sampling.steps + min(step + 1, sampling.steps) * len(batch))
            return {}

        latents, generators = _noise([seeds[place] for place in batch], latent_shape(pipeline, size))
        arguments = inputs(batch)
        output = pipeline(
            **arguments,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            reference_guidance_scale=sampling.reference_guidance_scale,
            reference_refresh_steps=sampling.reference_refresh_steps,
            latents=torch.cat(latents).to(pipeline.unet.device, pipeline.unet.dtype),
            generator=generators,
            output_type="pil" if "mask_image" in arguments else "np",
            callback_on_step_end=None if progress is None else count,
            **options,
        )
        advance((batch[-1] + 1) * sampling.steps)
        if "mask_image" in arguments:
            found = zip(output.images, output.known_psnr_db, strict=True)
            return [Drawn(None if np.isnan(known) else image, known) for image, known in found]
        finite = np.isfinite(output.images).all(axis=(1, 2, 3))
        images = pipeline.image_processor.numpy_to_pil(np.nan_to_num(output.images))
        return [Drawn(image if whole else None, None) for image, whole in zip(images, finite, strict=True)]

    def halved(pictures: int) -> None:
        _LOG.warning("out of memory; continuing with batches of %d (%s)", pictures, setting)

    yield from halving(range(len(seeds)), sampling.batch_size, paint, halved)


def fix_of_not_finite(dtype: torch.dtype, setting: str) -> str:
    """What to do about pictures that are not finite, given the dtype of the networks and the name of its setting."""
    name = str(dtype).removeprefix("torch.")
    if name == "float16":
        return f"{name} overflows; set {setting} to bfloat16 or float32"
    if name == "bfloat16":
        return f"set {setting} to float32"
    return "the networks diverge even in float32; lower the guidance scales, or use another scheduler or model"


def latent_shape(pipeline: Any, size: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
    """The shape (1, C, h, w) of the latents of one picture.

    Args:
        size: (height, width) in pixels. None: the UNet's own resolution.
    """
    own = pipeline.unet.config.sample_size
    height, width = (own, own) if isinstance(own, int) else own
    if size is not None:
        height, width = (side // pipeline.vae_scale_factor for side in size)
    return 1, pipeline.unet.config.in_channels, height, width


def _noise(
    seeds: Sequence[Seeds], shape: tuple[int, int, int, int]
) -> tuple[list[torch.Tensor], list[torch.Generator]]:
    """The initial noise of each picture, and the generator for all its later draws."""
    import torch

    latents, generators = [], []
    for each in seeds:
        generator = torch.Generator().manual_seed(each.latents)
        latents.append(torch.randn(shape, generator=generator))
        generators.append(generator if each.rest is None else torch.Generator().manual_seed(each.rest))
    return latents, generators
