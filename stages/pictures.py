"""Pictures as bytes, and masks: PNG with fixed settings and run lengths, so that equal pixels are equal bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image

from bootpig.storage.fingerprint import canonical_json
from bootpig.storage.jsonio import parse_json

T = TypeVar("T")
R = TypeVar("R")

PNG_LEVEL = 4
"""zlib level: a third slower to write than level 1 and a tenth smaller."""

PNG_BYTES = 1.5
"""A pixel of a photo, on average; for estimates."""

_THREADS = min(8, os.cpu_count() or 1)
_WORKERS = ThreadPoolExecutor(_THREADS, "pictures")


def encode_png(image: Image.Image) -> bytes:
    """A picture of any mode → PNG, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def encode_mask(mask: np.ndarray) -> bytes:
    """HW bool → JSON, `{"counts": [n, …], "size": [H, W]}`: COCO's run lengths, as segment-anything's tools have them.

    Pixels column by column; the first count is of False. Half the time of a PNG with small pictures.
    """
    # segment_anything.utils.amg gives the same counts in 1.5 times the time and imports torch; it decodes in 3.7 times
    # the time (both at 512 and 1024 pixels), and counts that don't add up leave its mask partly uninitialised.
    pixels = mask.ravel(order="F")
    starts = [0, 0] if pixels[0] else [0]
    counts = np.diff(np.concatenate((starts, np.flatnonzero(pixels[1:] != pixels[:-1]) + 1, [pixels.size])))
    return canonical_json({"counts": counts.tolist(), "size": list(mask.shape)})


def decode_mask(data: bytes, height: int, width: int) -> np.ndarray:
    """What `encode_mask` makes → HW bool.

    Raises:
        ValueError: `data` is no mask of `height` by `width` pixels.
    """
    try:
        runs = parse_json(data)
        counts = np.array(runs["counts"], np.int64)
        within = counts.ndim == 1 and np.all((counts >= 0) & (counts <= height * width))
        if runs["size"] != [height, width] or not within or counts.sum() != height * width:
            raise ValueError
    except (KeyError, OverflowError, TypeError, ValueError):
        raise ValueError(f"mask: no run lengths of {width}x{height} pixels") from None
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def decode_png(data: bytes) -> Image.Image:
    """PNG → the picture, its pixels loaded.

    Raises:
        OSError: `data` is no whole PNG file.
    """
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    image.load()
    return image


def decode_pngs(files: Sequence[bytes]) -> list[Image.Image]:
    """RGB pictures, on all cores.

    Raises:
        OSError: one of them is no whole PNG file.
    """
    return on_all_cores(_decode_rgb, files)


def _decode_rgb(data: bytes) -> Image.Image:
    picture = decode_png(data)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def on_all_cores(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`work` on each of `items`, in order, on up to eight cores; it must not call this again.

    For work of Pillow's, which lets go of the interpreter's lock: with 512 pixels a PNG takes thirty milliseconds to
    write and ten to read, for which a GPU would wait.
    """
    size = max(1, -(-len(items) // _THREADS))
    shares = [items[begin : begin + size] for begin in range(0, len(items), size)]
    done = _WORKERS.map(lambda share: [work(item) for item in share], shares)
    return [result for results in done for result in results]


def decode_cut_out(files: Mapping[str, bytes]) -> Image.Image:
    """What segment leaves, `png` and `mask.json` → RGBA, the subject's mask as alpha.

    Raises:
        OSError, ValueError: one of the two is damaged, or the mask has another size.
    """
    picture = decode_png(files["png"]).convert("RGB")
    picture.putalpha(Image.fromarray(decode_mask(files["mask.json"], picture.height, picture.width)))
    return picture
