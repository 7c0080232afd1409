"""Pictures as bytes: PNG with fixed settings, so that equal pixels are equal bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

PNG_LEVEL = 4
"""zlib level: a third slower to write than level 1 and a tenth smaller."""

_THREADS = min(8, os.cpu_count() or 1)
_DECODERS = ThreadPoolExecutor(_THREADS, "decode")


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


def decode_pngs(files: Sequence[bytes]) -> list[Image.Image]:
    """`decode_png` of each, on up to eight cores: Pillow lets go of the interpreter's lock while it decodes.

    A picture of 512 pixels takes ten milliseconds, for which a GPU would wait.

    Raises:
        OSError: one of them is no whole PNG file.
    """
    size = max(1, -(-len(files) // _THREADS))
    shares = [files[begin : begin + size] for begin in range(0, len(files), size)]
    decoded = _DECODERS.map(lambda share: [decode_png(data) for data in share], shares)
    return [picture for pictures in decoded for picture in pictures]


def decode_cut_out(files: Mapping[str, bytes]) -> Image.Image:
    """What segment leaves, `png` and `mask.png` → RGBA, the subject's mask as alpha.

    Raises:
        OSError: one of the two is no whole PNG file.
    """
    picture = decode_png(files["png"]).convert("RGB")
    picture.putalpha(decode_png(files["mask.png"]))
    return picture
