"""Turns an encoded picture of any kind into a square of one size: the middle of the upright picture, scaled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from bootpig.stages.picture_files.reader import PictureError, PictureTooLarge, on_white, read_picture
from bootpig.stages.pictures import encode_png


@dataclass(frozen=True)
class Square:
    """A picture that can be used, or why it cannot."""

    png: bytes = b""
    """RGB."""
    width: int | None = None
    """Of the picture as it was given, upright, in pixels, as is `height`. None if it cannot be read."""
    height: int | None = None
    reason: str = ""
    """Why it cannot be used: one of the stage's reasons."""
    message: str = ""


def square(data: bytes, name: str, size: int, smallest: int) -> Square:
    """Read a picture and cut it to size.

    Args:
        data: a picture file.
        name: its name, for messages.
        size: side of the result in pixels.
        smallest: the shorter side in pixels that the picture must have.
    """
    try:
        picture = read_picture(data, "pictures.url", name)
    except PictureTooLarge as error:
        return Square(reason="too_large", message=str(error))
    except PictureError as error:
        return Square(reason="unreadable", message=str(error))
    width, height = picture.size
    if min(width, height) < smallest:
        return Square(b"", width, height, "too_small", f"{width}x{height} pixels")
    if picture.mode == "RGBA" and np.asarray(picture.getchannel("A")).max() < 128:
        return Square(b"", width, height, "transparent")
    cut = ImageOps.fit(on_white(picture), (size, size), Image.Resampling.LANCZOS)
    return Square(encode_png(cut), width, height)
