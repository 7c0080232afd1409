"""Pictures as bytes: PNG with fixed settings, so that equal pixels are equal bytes."""

from __future__ import annotations

import io

from PIL import Image

PNG_LEVEL = 4
"""zlib level: a third slower to write than level 1 and a tenth smaller."""


def encode_png(image: Image.Image) -> bytes:
    """RGB or RGBA → PNG, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def decode_png(data: bytes) -> Image.Image:
    """PNG → the picture, its pixels loaded.

    Raises:
        OSError: `data` is no whole PNG file.
    """
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    image.load()
    return image
