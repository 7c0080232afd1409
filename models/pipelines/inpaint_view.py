"""Chooses the part of a picture that an inpainting network sees, and the cells of the latents to repaint."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

Pixels = np.ndarray[Any, np.dtype[Any]]
Box = tuple[int, int, int, int]
"""xyxy in a picture's pixels. May extend beyond the picture."""


def view_box(picture: tuple[int, int], mask: Box | None, size: tuple[int, int]) -> Box:
    """The box in a picture that the network sees: it has the aspect ratio of `size` and contains the whole mask.

    It is the largest such box within the picture, as close as possible to the centre of the mask. If the mask does not
    fit in it, it is the smallest box around the whole picture, which then extends beyond the picture.

    Args:
        picture: (width, height) of the picture in pixels.
        mask: xyxy box of the white pixels.
        size: (width, height) in pixels at which the network sees the box.
    """
    width, height = picture
    if width * size[1] == height * size[0] or mask is None:
        return 0, 0, width, height
    fits = min(width / size[0], height / size[1])
    part = (round(size[0] * fits), round(size[1] * fits))
    if mask[2] - mask[0] > part[0] or mask[3] - mask[1] > part[1]:
        covers = max(width / size[0], height / size[1])
        part = (max(width, round(size[0] * covers)), max(height, round(size[1] * covers)))
    return _around(mask, part, picture)


def in_proportion(box: Box, picture: tuple[int, int], size: tuple[int, int]) -> Box:
    """The smallest box around `box` with the aspect ratio of `size`, up to rounding. May extend beyond the picture.

    Args:
        box: xyxy.
        picture: (width, height) of the picture in pixels.
        size: (width, height) in pixels.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    if abs(width * size[1] - height * size[0]) <= max(size):
        return box
    covers = max(width / size[0], height / size[1])
    return _around(box, (max(width, round(size[0] * covers)), max(height, round(size[1] * covers))), picture)


def _around(box: Box, part: tuple[int, int], picture: tuple[int, int]) -> Box:
    """A box of (width, height) `part` around `box`, centred on it as far as the picture's edges allow."""
    corner = []
    for axis in (0, 1):
        spare = picture[axis] - part[axis]
        middle = (box[axis] + box[axis + 2] - part[axis]) // 2
        corner.append(spare // 2 if spare < 0 else min(max(middle, 0), spare))
    return corner[0], corner[1], corner[0] + part[0], corner[1] + part[1]


def repainted_cells(white: Pixels, hit: Pixels) -> Pixels:
    """The cells of the latents that are repainted: those in `hit`, and all cells that a small part of the mask touches.

    A part is a set of connected cells that the mask touches. It is small if `hit` has less than half of its white
    pixels, as for a dot or a thin line, which can fall between the centres of cells.

    Args:
        white: HW bool, the mask in pixels of the picture.
        hit: hw bool, the cells whose centre is white.

    Returns:
        hw bool.
    """
    pixels = _sums(_sums(white.astype(np.int64), hit.shape[0]).T, hit.shape[1]).T
    repainted, left = hit.copy(), pixels > 0
    while left.any():
        part = _flooded(left, tuple(np.argwhere(left)[0]))
        left &= ~part
        if 2 * pixels[part & hit].sum() < pixels[part].sum():
            repainted |= part
    return repainted


def _sums(rows: Pixels, count: int) -> Pixels:
    """The sums over `count` bands of rows. A row that lies in two bands counts in both."""
    height = len(rows)
    bands = [(band * height // count, -(-(band + 1) * height // count)) for band in range(count)]
    return np.stack([rows[begin:end].sum(axis=0) for begin, end in bands])


def _flooded(cells: Pixels, start: tuple[int, ...]) -> Pixels:
    """The cells that are connected to `start` by sides or corners, as hw bool."""
    part = np.zeros_like(cells)
    part[start] = True
    while True:
        wide = np.pad(part, 1)
        height, width = cells.shape
        shifted = [wide[row : row + height, column : column + width] for row in range(3) for column in range(3)]
        grown = np.logical_or.reduce(shifted) & cells
        if np.array_equal(grown, part):
            return part
        part = grown


def crop(picture: Image.Image, box: Box) -> Image.Image:
    """Crop a picture. Outside of it, edge pixels are repeated; outside of a mask (mode L), pixels are black."""
    if box[0] >= 0 and box[1] >= 0 and box[2] <= picture.width and box[3] <= picture.height:
        return picture.crop(box)
    if picture.mode == "L":
        return picture.crop(box)
    columns = np.arange(box[0], box[2]).clip(0, picture.width - 1)
    rows = np.arange(box[1], box[3]).clip(0, picture.height - 1)
    return Image.fromarray(np.asarray(picture)[rows][:, columns])
