"""Draws the pictures of an evaluation with all methods, one after the other. Each rank draws its part of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bootpig.models.pretrained.finite import check_trained
from bootpig.models.pretrained.source import loading
from bootpig.stages.engine.contract import Progress
from bootpig.stages.engine.saved import Pieces
from bootpig.stages.engine.share import Share
from bootpig.stages.evaluate.drawing import METHODS, WITH_REFERENCE, Drawing, draw, warn_of_blank
from bootpig.stages.evaluate.gallery import DrawnPictures, Picture
from bootpig.stages.sampling import Sampling, fix_of_not_finite


@dataclass(frozen=True)
class Easel:
    """What all methods share: the rows to draw, where their pictures are kept, and this rank's part of them."""

    rows: Sequence[Drawing]
    batch_size: int
    folder: Path
    """The pictures are written here, in a folder for each method."""
    open_pieces: Callable[[], Pieces | None]
    """The pieces of the unfinished result, as they are now."""
    earlier: Mapping[str, Picture]
    """Method → its pictures in an earlier result."""
    share: Share
    progress: Progress
    count: int
    """Number of methods."""

    def draw(
        self,
        method: str,
        number: int,
        batches: Callable[[Sequence[Drawing]], Iterator[list[Image.Image | None]]],
        fix: Callable[[], str],
    ) -> DrawnPictures:
        """Draw this rank's batches that do not exist yet. The first rank collects those of the others.

        Args:
            number: which of the methods it is.
            batches: draws rows, in batches of at most `batch_size`. Not called if there are none to draw.
            fix: what to do if pictures are not finite.

        Raises:
            FatalError: no picture of a subject is finite, or pictures of another rank are missing.
            RuntimeError: another rank has died.
        """
        share, rows, text = self.share, self.rows, method.replace("_", " ")
        pictures = DrawnPictures(
            method,
            self.folder / method,
            rows,
            self.batch_size,
            self.open_pieces(),
            share,
            number,
            self.earlier.get(method),
        )

        def tell(amount: int, told: int) -> None:
            self.progress(number * len(rows) + amount + told, self.count * len(rows), text)

        share.tell(method, len(pictures))
        tell(len(pictures), share.told(method))
        if pictures.missing:
            for batch in batches(pictures.missing):
                pictures.add(batch)
                share.tell(method, len(batch))
                tell(len(pictures), share.told(method))
        if share.rank:
            return pictures
        if share.count > 1:
            own = len(pictures)
            share.wait(method, len(rows) - own, lambda told: tell(own, told))
            pictures.collect(self.open_pieces())
        warn_of_blank(method, pictures.blank, len(rows))
        pictures.check_finite(fix())
        return pictures


def draw_methods(
    pipeline: Any,
    model: Path,
    references: Mapping[str, Sequence[Image.Image]],
    sampling: Sampling,
    easel: Easel,
) -> dict[str, DrawnPictures]:
    """Draw with each of our own methods.

    Args:
        pipeline: a `BootPIGPipeline` with the base's weights. Afterwards it has the trained ones.
        model: the folder of the trained model.
        references: by name of the subject.

    Returns:
        The pictures by method; in other ranks than the first, only their own.

    Raises:
        ModelError: the trained model cannot be loaded.
        FatalError, RuntimeError: as in `Easel.draw`.
    """
    drawn: dict[str, DrawnPictures] = {}
    for number, method in enumerate(METHODS):
        if method == "bootpig":
            with loading("evaluate: the trained model", str(model)):
                pipeline.load_bootpig(model)
                check_trained("evaluate: the trained model", model, pipeline)
        shown = references if method in WITH_REFERENCE else None

        def batches(rows: Sequence[Drawing], shown: Any = shown) -> Iterator[list[Image.Image | None]]:
            return draw(pipeline, rows, shown, sampling)

        drawn[method] = easel.draw(
            method, number, batches, lambda: fix_of_not_finite(pipeline.unet.dtype, "evaluate.dtype")
        )
    return drawn
