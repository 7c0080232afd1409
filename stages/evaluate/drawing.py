"""Draws the pictures of an evaluation: every caption with every method, from the same noise."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bootpig.models.pipelines.references import prepare_picture
from bootpig.stages.engine.contract import InputError, sample_seed
from bootpig.stages.evaluate.benchmarks.cut_outs import CutOut, chosen_references
from bootpig.stages.evaluate.subjects import Subject
from bootpig.stages.picture_files.reader import read_picture
from bootpig.stages.sampling import Sampling, Seeds, draw_pictures

METHODS = ("text_only", "untrained", "bootpig", "bootpig_no_reference")
"""The methods that are compared. `text_only`: the base model. `untrained`: BootPIG before training. `bootpig`: BootPIG
after training. `bootpig_no_reference`: the same without references. The order matters, because the trained weights are
loaded before `bootpig`."""

WITH_REFERENCE = ("untrained", "bootpig")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawing:
    """A picture to draw with every method, from the same noise."""

    subject: Subject
    prompt: str
    file: str
    """File name of the picture in each method's folder. Ends with the picture's number among those of its caption."""
    seed: int


def drawings(subjects: Sequence[Subject], images_per_prompt: int, seed: int) -> list[Drawing]:
    """`images_per_prompt` pictures for each caption of each subject. A picture's seed depends only on `seed`, the
    subject's name, the caption, and the picture's number."""
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


def prepared_references(
    subjects: Sequence[Subject], side: int, cut: Mapping[Path, CutOut] | None = None
) -> Iterator[tuple[str, list[Image.Image]]]:
    """Each subject's name and its references in the form that the pipeline takes: RGB, `side`×`side`.

    A picture with transparency is cut out and put on white. One without is used unchanged, with a warning if its
    background is not white.

    Args:
        cut: the masks of a benchmark's references. Of a subject with several references, those that were not cut out
            are left out.

    Raises:
        InputError: a picture is unreadable or unusable.
    """
    on_background = []
    for subject in subjects:
        prepared = []
        for path in chosen_references(subject, cut or {}):
            picture = read_picture(path, f"{subject.section}.subjects")
            if cut is not None and path in cut:
                picture = cut[path].apply(picture)
            elif picture.mode == "RGB" and not _stands_on_white(picture):
                on_background.append(f"{subject.name}/{path.name}")
            prepared.append(_prepared(path, picture, side, subject.section))
        yield subject.name, prepared
    if on_background:
        _LOG.warning(
            "%s.subjects: %d references have a background, which the model was not trained on (%s%s); "
            "cut out the subject (PNG with transparency)",
            subjects[0].section,
            len(on_background),
            ", ".join(on_background[:3]),
            ", …" if len(on_background) > 3 else "",
        )


def draw(
    pipeline: Any,
    rows: Sequence[Drawing],
    references: Mapping[str, Sequence[Image.Image]] | None,
    sampling: Sampling,
    section: str = "evaluate",
) -> Iterator[list[Image.Image | None]]:
    """Draw `rows` in batches, RGB, in order. None in place of a picture that is not finite.

    Args:
        pipeline: a `BootPIGPipeline`.
        rows: the pictures to draw.
        references: by name of the subject. None: the base model alone, with plain classifier-free guidance.
        sampling: the sampling settings.
        section: section of the configuration that has these settings, for messages.
    """

    def inputs(batch: Sequence[int]) -> dict[str, Any]:
        chosen = [rows[place] for place in batch]
        return {
            "prompt": [row.prompt for row in chosen],
            "reference_images": None if references is None else [list(references[row.subject.name]) for row in chosen],
        }

    # The initial noise has its own seed, so that it does not depend on a method's other draws.
    seeds = [Seeds(row.seed, row.seed ^ 1) for row in rows]
    for drawn in draw_pictures(pipeline, seeds, inputs, sampling, setting=f"{section}.batch_size"):
        yield [picture.image for picture in drawn]


def is_blank(picture: Image.Image) -> bool:
    """Whether a picture has a single colour, the result of overflow in half precision or of a safety checker."""
    return bool(np.ptp(np.asarray(picture), axis=(0, 1)).max() == 0)


def warn_of_blank(method: str, blank: int, count: int) -> None:
    """Log a warning if any of a method's pictures are blank."""
    if blank:
        _LOG.warning(
            "evaluate: %d of %d pictures of %s have a single colour; set evaluate.dtype to float32",
            blank,
            count,
            method,
        )


def _prepared(path: Path, picture: Image.Image, side: int, section: str) -> Image.Image:
    try:
        return prepare_picture(picture, side)
    except ValueError as error:
        raise InputError(f"{section}.subjects: {str(path)!r} cannot be a reference ({error}); replace it") from None


def _stands_on_white(picture: Image.Image) -> bool:
    """Whether nine tenths of the outermost pixels are white, up to compression noise."""
    pixels = np.asarray(picture)
    frame = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return bool((frame.min(axis=1) >= 245).mean() >= 0.9)
