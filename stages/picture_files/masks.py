"""Reads the mask of an inpainting: which pixels of a scene are repainted.

White is repainted. Transparency is used if it carries information: many editors save a mask as strokes on a
transparent layer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bootpig.stages.picture_files.colours import grey_levels, standard
from bootpig.stages.picture_files.reader import PictureError, decode

BLACK, WHITE = 64, 192
"""Grey levels below BLACK count as black, and from WHITE on as white, to tolerate compression noise."""
BRIGHTNESS = "brightness"
TWO_TONES = 0.95
"""The smallest fraction of visible pixels that must be black or white in a mask; with less it is a photo."""


def read_mask(path: Path, field: str, told: Callable[[str], None] = lambda line: None) -> Image.Image:
    """A mask, upright, mode L: 255 is repainted, 0 is kept.

    Args:
        field: name of the setting or option that gives the file, for messages.
        told: called with one line that says what was read and how much is repainted.

    Raises:
        PictureError: the file is not a readable picture, has no white, or the meaning of its transparency is unclear.
    """

    def unclear(why: str) -> PictureError:
        return PictureError(f"{field}: {str(path)!r} → {why}; give it in black and white, white is repainted")

    def read(image: Image.Image) -> tuple[np.ndarray[Any, np.dtype[Any]], str]:
        stored = grey_levels(image)
        if stored is not None and stored.dtype != bool and len(values := np.unique(stored)) == 2 and values[0] == 0:
            source = BRIGHTNESS if values[1] == 255 else f"values, which are 0 and {values[1]:g}"
            return np.where(stored == 0, 0, 255), source
        picture = standard(image)
        if picture.mode == "RGB":
            return np.asarray(picture.convert("L")), BRIGHTNESS
        grey, alpha = np.asarray(picture.convert("RGB").convert("L")), np.asarray(picture.getchannel("A"))
        if alpha.min() == alpha.max():
            return grey, f"{BRIGHTNESS}; it is equally transparent everywhere"
        seen = grey[alpha >= 128]
        if not seen.size:
            raise unclear("is nearly transparent everywhere")
        if seen.max() < 128 or seen.min() >= 128:
            return alpha, "transparency: what is drawn is repainted"
        if np.mean((seen < BLACK) | (seen >= WHITE)) < TWO_TONES:
            raise unclear("is a picture with transparency, which does not tell what to repaint")
        return grey * (alpha / 255.0), f"{BRIGHTNESS}, black where it is transparent"

    levels, source = decode(path, field, read)
    if levels.max() < 128:
        what = f"at its brightest {levels.max():.0f} of 255, below 128" if levels.max() else "black everywhere"
        raise unclear(f"is {what}, there is nothing to repaint")
    white = levels >= 128
    told(f"{field}: read from its {source}; {white.mean():.1%} is repainted")
    return Image.fromarray(np.where(white, 255, 0).astype(np.uint8))
