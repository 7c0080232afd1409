"""Pixels of any mode, depth and colour profile that Pillow knows, as 8-bit sRGB with or without transparency."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

OPAQUE = 250
"""Alpha from which a pixel counts as opaque: lossy formats leave a little noise in an alpha channel without a hole."""

GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
"""Modes of 16-bit grey."""

_PLAIN = ("1", "L", "RGB", "CMYK")
"""Modes to which a colour profile can be applied as they are."""
_CONVERTED = {"P": "RGB", "RGBX": "RGB", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB"}
_WITH_ALPHA = {"LA": "L", "La": "L", "PA": "RGB", "RGBA": "RGB", "RGBa": "RGB"}

_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""Pillow's modes by the names of profiles' colour spaces."""
_SAME = 2
"""Levels of 255 by which a profile may differ from sRGB and still be taken for it, so that pixels stay as they are."""


_UNKNOWN_WHITE = "whose white is not known; save it with 8 or 16 bits a channel"


class UnknownPixels(ValueError):
    """The pixels cannot be read as 8-bit sRGB. The message has two parts, joined by `; `: why, and what to do."""


def standard(image: Image.Image) -> Image.Image:
    """A loaded image of any mode → RGB, or RGBA where something is transparent; 8-bit sRGB without any metadata.

    16-bit grey and floats in [0, 1] are scaled. Colour profiles are applied; a broken one is taken for sRGB.

    Raises:
        UnknownPixels: integers or floats whose range the file does not tell, or a mode that is not known.
    """
    colours, alpha = _split(image)
    rgb = _to_srgb(colours, image.info.get("icc_profile"))
    if alpha is not None and np.asarray(alpha).min() < OPAQUE:
        rgb.putalpha(alpha)
    rgb.info = {}
    return rgb


def grey_levels(image: Image.Image) -> np.ndarray[Any, np.dtype[Any]] | None:
    """The stored values of an image with one channel and no transparency, HW of any numeric dtype; else None."""
    if image.mode in ("1", "L", "I", "F", *GREY_16) and "transparency" not in image.info:
        return np.asarray(image)
    return None


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours, in one of the plain modes, and the alpha as L."""
    mode = image.mode
    if mode in GREY_16 or mode in ("I", "F"):
        levels = np.asarray(image)
        key = image.info.get("transparency")
        alpha = None if not isinstance(key, int) else Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8))
        return Image.fromarray(_eight_bits(image, levels)), alpha
    if mode in _WITH_ALPHA:
        premultiplied = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}
        straight = image.convert(premultiplied[mode]) if mode in premultiplied else image
        return straight.convert(_WITH_ALPHA[mode]), straight.getchannel("A")
    if "transparency" in image.info and mode in ("1", "L", "RGB", "P"):
        straight = image.convert("LA" if mode in ("1", "L") else "RGBA")
        return straight.convert(_WITH_ALPHA[straight.mode]), straight.getchannel("A")
    if mode in _PLAIN:
        return image, None
    if mode in _CONVERTED:
        return image.convert(_CONVERTED[mode]), None
    raise UnknownPixels(f"has pixels of mode {mode}, which is not known; save it as RGB with 8 bits a channel")


def _eight_bits(image: Image.Image, levels: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """Grey of more than 8 bits → HW uint8."""
    if image.mode == "F":
        if not np.isfinite(levels).all():
            raise UnknownPixels("has floating-point pixels that are no numbers; save it with 8 or 16 bits a channel")
        if levels.min() < 0 or levels.max() > 1:
            span = f"{levels.min():g} to {levels.max():g}"
            raise UnknownPixels(f"has floating-point pixels from {span}, {_UNKNOWN_WHITE}")
        scaled = levels * 255.0
    elif image.mode in GREY_16 or image.format == "PPM":  # Pillow scales a PPM of any depth to 16 bits
        highest = _highest(image)
        if levels.max() > highest or levels.min() < 0:
            raise UnknownPixels(f"has pixels beyond {highest}, the white of its depth; save it again")
        scaled = levels * (255.0 / highest)
    else:
        raise UnknownPixels(f"has whole numbers of 32 bits, or signed ones, as pixels, {_UNKNOWN_WHITE}")
    grey = np.rint(scaled).astype(np.uint8)
    return 255 - grey if _tiff_tag(image, 262) == 0 else grey  # PhotometricInterpretation: 0 is white


def _highest(image: Image.Image) -> int:
    depth = _tiff_tag(image, 258)  # BitsPerSample
    bits = depth[0] if isinstance(depth, tuple) and depth else depth
    return 2**bits - 1 if isinstance(bits, int) and 8 < bits < 16 else 65535


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    return image.tag_v2.get(tag) if image.format == "TIFF" and hasattr(image, "tag_v2") else None


def _to_srgb(image: Image.Image, profile: Any) -> Image.Image:
    """`image`, in one of the plain modes, as RGB; `profile` is an ICC profile's bytes, or anything else for none."""
    if image.mode == "1":
        image = image.convert("L")
    if isinstance(profile, bytes) and profile:
        for mode in dict.fromkeys((image.mode, "RGB")):  # some writers give grey the profile of its colours
            if (transform := _transform(profile, mode)) is not None:
                converted = ImageCms.applyTransform(image.convert(mode), transform)
                assert converted is not None
                return converted
    return image.convert("RGB")


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From `mode` in the space of `profile` to sRGB; None: the profile is of another space, broken, or sRGB itself."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if opened.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(
            opened,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode != "CMYK":
            samples = _samples(mode)
            moved = np.asarray(ImageCms.applyTransform(samples, transform), int) - np.asarray(
                samples.convert("RGB"), int
            )
            if np.abs(moved).max() <= _SAME:
                return None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return None
    return transform


def _samples(mode: str) -> Image.Image:
    """Colours from all over a space."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1)
    return Image.fromarray(cube.reshape(1, -1, 3))
