"""What evaluate draws: every caption by every method, from the same noise."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bootpig.models.pipelines.references import prepare_picture
from bootpig.stages.engine.contract import InputError, sample_seed
from bootpig.stages.engine.slices import halving
from bootpig.stages.evaluate.subjects import Subject, read_picture

METHODS = ("text_only", "untrained", "bootpig", "bootpig_no_reference")
"""What draws. `text_only`: the base model; `untrained`: BootPIG before training; `bootpig_no_reference`: the trained
base model alone. The trained weights are loaded on the way, so the order matters."""

WITH_REFERENCE = ("untrained", "bootpig")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawing:
    """One picture to draw, by every method from the same noise."""

    subject: Subject
    prompt: str
    file: str
    """Name of the picture in each method's folder; ends with the picture's number among those of its caption."""
    seed: int


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn, see the fields of the same names in `EvaluateConfig`."""

    steps: int
    guidance_scale: float
    reference_guidance_scale: float
    batch_size: int
    reference_refresh_steps: int = 1
    """The pipeline's argument of that name."""


def drawings(subjects: Sequence[Subject], images_per_prompt: int, seed: int) -> list[Drawing]:
    """`images_per_prompt` pictures of each caption of each subject; a picture's seed hangs on nothing else."""
    return [
        Drawing(
            subject,
            prompt,
            f"{subject.name}-{number:02d}-{image:02d}.png",
            sample_seed(seed, "evaluate", f"{subject.name}/{prompt}/{image}"),
        )
        for subject in subjects
        for number, prompt in enumerate(subject.prompts)
        for image in range(images_per_prompt)
    ]


def prepared_references(subjects: Sequence[Subject], side: int) -> Iterator[tuple[str, list[Image.Image]]]:
    """Each subject's name and its references as the pipeline takes them: RGB, `side`×`side`.

    A picture with transparency is cut out and put on white; one without is taken as it is, and said so if it does not
    stand on white.

    Raises:
        InputError: one is unreadable or unusable.
    """
    scenes = []
    for subject in subjects:
        prepared = []
        for path in subject.references:
            picture = read_picture(path)
            if picture.mode == "RGB" and not _stands_on_white(picture):
                scenes.append(f"{subject.name}/{path.name}")
            prepared.append(_prepared(path, picture, side))
        yield subject.name, prepared
    if scenes:
        _LOG.warning(
            "evaluate.subjects: %d references show a background, which the model was not trained on (%s%s); "
            "cut the subject out (PNG with transparency)",
            len(scenes),
            ", ".join(scenes[:3]),
            ", …" if len(scenes) > 3 else "",
        )


def draw(
    pipeline: Any,
    rows: Sequence[Drawing],
    references: Mapping[str, Sequence[Image.Image]] | None,
    sampling: Sampling,
) -> Iterator[list[Image.Image]]:
    """Draw `rows` in batches, RGB, in order.

    Args:
        pipeline: a `BootPIGPipeline`.
        references: by the subject's name; None: the base alone, with plain classifier-free guidance.
    """

    def paint(batch: Sequence[Drawing]) -> list[Image.Image]:
        # The first noise is drawn here, on the CPU, so that no method's other draws can shift it.
        latents = torch.cat([torch.randn(latent_shape(pipeline), generator=_generator(row.seed)) for row in batch])
        images: list[Image.Image] = pipeline(
            prompt=[row.prompt for row in batch],
            reference_images=None if references is None else [list(references[row.subject.name]) for row in batch],
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            reference_guidance_scale=sampling.reference_guidance_scale,
            reference_refresh_steps=sampling.reference_refresh_steps,
            latents=latents.to(pipeline.unet.device, pipeline.unet.dtype),
            generator=[_generator(row.seed ^ 1) for row in batch],
        ).images
        return images

    def halved(size: int) -> None:
        _LOG.warning("evaluate: out of memory; going on with %d at once (evaluate.batch_size)", size)

    yield from halving(rows, sampling.batch_size, paint, halved)


def latent_shape(pipeline: Any) -> tuple[int, int, int, int]:
    """(1, C, h, w) at the UNet's own resolution."""
    size = pipeline.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return 1, pipeline.unet.config.in_channels, height, width


def is_blank(picture: Image.Image) -> bool:
    """Whether it is of a single colour: what half precision or a safety checker leaves of a failure."""
    return bool(np.ptp(np.asarray(picture), axis=(0, 1)).max() == 0)


def warn_of_blank(method: str, blank: int, count: int) -> None:
    """Say how many of a method's pictures are blank."""
    if blank:
        _LOG.warning(
            "evaluate: %d of %d pictures of %s are of a single colour; set evaluate.dtype to float32",
            blank,
            count,
            method,
        )


def _prepared(path: Path, picture: Image.Image, side: int) -> Image.Image:
    try:
        return prepare_picture(picture, side)
    except ValueError as error:
        raise InputError(f"evaluate.subjects: {str(path)!r} cannot be a reference ({error}); replace it") from None


def _stands_on_white(picture: Image.Image) -> bool:
    """Whether nine tenths of the frame's outermost pixels are white but for compression noise."""
    pixels = np.asarray(picture)
    frame = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return bool((frame.min(axis=1) >= 245).mean() >= 0.9)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
