"""Pictures as bytes: PNG with fixed settings, so that equal pixels are equal bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

PNG_LEVEL = 4
"""zlib level: a third slower to write than level 1 and a tenth smaller."""


def encode_png(image: Image.Image) -> bytes:
    """A picture of any mode → PNG, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def encode_mask(mask: np.ndarray) -> bytes:
    """HW bool → PNG of one bit a pixel: a third of the time of eight, at 512 pixels."""
    return encode_png(Image.fromarray(mask))


def decode_png(data: bytes) -> Image.Image:
    """PNG → the picture, its pixels loaded.

    Raises:
        OSError: `data` is no whole PNG file.
    """
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    image.load()
    return image


def decode_cut_out(files: Mapping[str, bytes]) -> Image.Image:
    """What segment leaves, `png` and `mask.png` → RGBA, the subject's mask as alpha.

    Raises:
        OSError: one of the two is no whole PNG file.
    """
    picture = decode_png(files["png"]).convert("RGB")
    picture.putalpha(decode_png(files["mask.png"]).convert("L"))
    return picture
