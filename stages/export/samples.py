"""Draws the sample pictures of an export's card: the target, the subject alone, views and references, side by side."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import islice

from PIL import Image, ImageOps

from bootpig.stages.export.records import DataSet, Record
from bootpig.stages.pictures import encode_png

SAMPLES = 4
SIDE = 192
"""Of each picture, in pixels, at most."""
REFERENCES = 3
VIEWS = 2


@dataclass(frozen=True)
class SamplePicture:
    """One sample of the card."""

    caption: str
    png: bytes


def sample_pictures(data: DataSet, count: int = SAMPLES) -> list[SamplePicture]:
    """The first samples of the data set, not selected. Raises CorruptPart."""
    records = (record for unit in data.units if data.ok(unit) for record in data.records(unit))
    return [SamplePicture(record.values["caption"], _strip(record)) for record in islice(records, count)]


def _strip(record: Record) -> bytes:
    image = _open(record.image)
    cut_out = Image.composite(image, Image.new("RGB", image.size, "white"), Image.open(io.BytesIO(record.mask)))
    views = [view.image for view in record.views[:VIEWS]]
    pictures = [image, cut_out, *map(_open, [*views, *record.references[:REFERENCES]])]
    small = [p if max(p.size) <= SIDE else ImageOps.contain(p, (SIDE, SIDE)) for p in pictures]
    strip = Image.new("RGB", (sum(p.width + 4 for p in small) - 4, max(p.height for p in small)), "white")
    left = 0
    for picture in small:
        strip.paste(picture, (left, 0))
        left += picture.width + 4
    return encode_png(strip)


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")
