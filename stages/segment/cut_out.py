"""Cuts a subject out of a plain photo with the models of the segment stage."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from bootpig.stages.engine.contract import InputError, Sample
from bootpig.stages.engine.slices import Slices
from bootpig.stages.pictures import decode_cut_out, encode_png
from bootpig.stages.segment.stage import Segment, SegmentConfig


def of_photos(config: SegmentConfig) -> SegmentConfig:
    """The same without the border and area filters: in a photo, the subject may touch the frame and have any size."""
    return config.model_copy(update={"border": 0.0, "min_area": 0.0, "max_area": 1.0})


def cut_out(
    pictures: Sequence[Image.Image], names: Sequence[str], phrase: str, config: SegmentConfig
) -> list[Image.Image]:
    """Cut the subject out of each picture. Returns RGBA pictures that are transparent except for the subject.

    Args:
        pictures: RGB pictures.
        names: names of the pictures, for messages.
        phrase: names the subject, such as "a mug".
        config: models and filters. Its border and area filters are ignored, see `of_photos`.

    Raises:
        InputError: the detector or SAM finds no subject in a picture, or fails on it.
        ModelError: a model cannot be used.
        FatalError: memory runs out.
    """
    stage = Segment(of_photos(config), seed=0)
    if problems := stage.check_models():
        raise InputError("\n".join(problems))
    stage.setup()
    found = []
    try:
        for picture, name in zip(pictures, names, strict=True):
            sample = Sample(name, 0, {"object": phrase}, {"png": encode_png(picture)})
            (judged,) = Slices(stage, 0).process(stage, [sample])
            if judged.status == "failed":
                raise InputError(f"--ref: {name!r} → cannot be cut out ({judged.message}); give a cut-out PNG")
            if judged.status != "ok":
                problem = f"{stage.reasons[judged.reason]} ({phrase!r})"
                raise InputError(f"--ref: {name!r} → {problem}; name it with --object, or give a cut-out PNG")
            found.append(decode_cut_out(judged.files))
    finally:
        stage.teardown()
    return found
