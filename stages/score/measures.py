"""Scores that need no model: how sharp a picture is, where in it the subject is, how well the mask fits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

BLUR = 9
"""Pixels of the filter that `sharpness` compares with, as in its source."""
MARGIN = 0.1
"""Added around the subject's box on each side, as a fraction of the box, so that its outline takes part."""

FAR = 6
"""`outline` compares with edges up to this many times as far away."""


def sharpness(grey: NDArray[np.floating]) -> float:
    """How much of the picture's variation is lost if it is blurred again: near 1 for a sharp one, near 0 for a blurred
    one, 0 for a plain one. 1 minus the blur annoyance of Crete et al., "The blur effect", 2007, eq. 3 to 5.

    Unlike the variance of the Laplacian, it depends little on contrast and content.

    Args:
        grey: HW float.
    """
    kept = []
    for axis in (0, 1):
        before = np.abs(np.diff(grey, axis=axis))
        after = np.abs(np.diff(ndimage.uniform_filter1d(grey, BLUR, axis=axis, mode="nearest"), axis=axis))
        total = float(before.sum())
        kept.append(float(np.maximum(0, before - after).sum()) / total if total else 0.0)
    return min(kept)


def around_subject(image: Image.Image, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The picture's luminance in the box of the mask and a margin: HW float64 in [0, 255].

    Args:
        image: RGB.
        mask: HW bool of the same size, not empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    across, down = round((right - left) * MARGIN), round((bottom - top) * MARGIN)
    box = (
        max(0, left - across),
        max(0, top - down),
        min(image.width, right + across),
        min(image.height, bottom + down),
    )
    return np.asarray(image.crop(box).convert("L"), np.float64)


def centre(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """The centre of mass of a HW mask that is not empty, as fractions of width and height: (0.5, 0.5) is the middle."""
    height, width = mask.shape
    total = np.count_nonzero(mask)
    across = (mask.sum(axis=0) * (np.arange(width) + 0.5)).sum() / total
    down = (mask.sum(axis=1) * (np.arange(height) + 0.5)).sum() / total
    return float(across / width), float(down / height)


def outline(image: Image.Image, mask: NDArray[np.bool_]) -> float:
    """How much stronger the picture's edges are on the mask's outline than around it: near 1 or below for a mask that
    has nothing to do with the picture, above for one that follows what is in it.

    The mean gradient within 1/64 of the picture's side of the outline, divided by that within 6/64 of it. 0 for a
    picture without any edge there.

    Args:
        image: RGB.
        mask: HW bool of the same size, not empty.
    """
    near = max(1, round(max(mask.shape) / 64))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    reach = FAR * near + 1
    box = (
        slice(max(0, int(rows[0]) - reach), int(rows[-1]) + 1 + reach),
        slice(max(0, int(columns[0]) - reach), int(columns[-1]) + 1 + reach),
    )
    pixels, subject = np.asarray(image)[box].astype(np.float32), mask[box]
    gradient = np.sqrt(sum(ndimage.sobel(pixels, axis=axis) ** 2 for axis in (0, 1)).sum(axis=2))
    if subject.all():  # no outline in the picture
        return 0.0
    distance = np.where(
        subject,
        ndimage.distance_transform_cdt(subject, metric="taxicab"),
        ndimage.distance_transform_cdt(~subject, metric="taxicab"),
    )
    around = float(gradient[distance <= FAR * near].mean())
    return float(gradient[distance <= near].mean()) / around if around else 0.0
