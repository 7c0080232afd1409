"""Draws the pictures of an evaluation with all methods, one after the other. Each rank draws its part of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bootpig.models.pretrained.finite import check_trained
from bootpig.models.pretrained.source import loading
from bootpig.stages.engine.contract import Pieces, Progress
from bootpig.stages.engine.share import Share
from bootpig.stages.evaluate.drawing import METHODS, WITH_REFERENCE, Drawing, draw, warn_of_blank
from bootpig.stages.evaluate.gallery import DrawnPictures
from bootpig.stages.sampling import Sampling, fix_of_not_finite


def draw_methods(
    pipeline: Any,
    model: Path,
    rows: Sequence[Drawing],
    references: Mapping[str, Sequence[Image.Image]],
    sampling: Sampling,
    folder: Path,
    open_pieces: Callable[[], Pieces | None],
    share: Share,
    progress: Progress,
) -> dict[str, DrawnPictures]:
    """Draw this rank's batches with each method. The first rank collects those of the others.

    Args:
        pipeline: a `BootPIGPipeline` with the base's weights. Afterwards it has the trained ones.
        model: the folder of the trained model.
        references: by name of the subject.
        folder: where the pictures are written, in a folder for each method.
        open_pieces: the pieces of the unfinished result, as they are now.

    Returns:
        The pictures by method; in other ranks than the first, only their own.

    Raises:
        ModelError: the trained model cannot be loaded.
        FatalError: a method has no picture of a subject that is finite, or pictures of another rank are missing.
        RuntimeError: another rank has died.
    """
    pieces = open_pieces()
    drawn: dict[str, DrawnPictures] = {}
    for number, method in enumerate(METHODS):
        if method == "bootpig":
            with loading("evaluate: the trained model", str(model)):
                pipeline.load_bootpig(model)
                check_trained("evaluate: the trained model", model, pipeline)
        text = method.replace("_", " ")
        pictures = DrawnPictures(method, folder / method, rows, sampling.batch_size, pieces, share, number)
        own = len(pictures)

        def tell(amount: int, told: int, *, number: int = number, text: str = text) -> None:
            progress(number * len(rows) + amount + told, len(METHODS) * len(rows), text)

        share.tell(method, own)
        tell(own, share.told(method))
        for batch in draw(pipeline, pictures.missing, references if method in WITH_REFERENCE else None, sampling):
            pictures.add(batch)
            share.tell(method, len(batch))
            tell(len(pictures), share.told(method))
        drawn[method] = pictures
        if share.rank:
            continue
        if share.count > 1:
            own = len(pictures)
            share.wait(method, len(rows) - own, lambda told, own=own, tell=tell: tell(own, told))  # type: ignore[misc]
            pictures.collect(open_pieces())
        warn_of_blank(method, pictures.blank, len(rows))
        pictures.check_finite(fix_of_not_finite(pipeline.unet.dtype, "evaluate.dtype"))
    return drawn
