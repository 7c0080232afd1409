"""Reads the picture files that a user gives: references, scenes, masks, subjects. One reader for all of them."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from bootpig.stages.engine.contract import InputError

SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "#recycle"}
"""Made by operating systems and network disks beside a user's own folders."""

SYSTEM_FILES = {"thumbs.db", "desktop.ini", ".ds_store"}

_LIKELY = {".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
_LIKELY |= {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp"}
"""Suffixes of still pictures. Others that Pillow opens, such as fonts, films and PostScript, are not looked at."""

_HEIF = {".heic", ".heif", ".hif"}

_UNKNOWN_WHITE = "whose white is not known; save it with 8 or 16 bits a channel"


def read_picture(path: Path, field: str) -> Image.Image:
    """A picture upright, in sRGB, 8 bits a channel, without metadata: RGBA if a part of it is transparent, else RGB.

    Args:
        field: the setting or option that names the file, for messages.

    Raises:
        InputError: the file is missing, no picture, cut off, or of a kind that cannot be converted.
    """
    with _opened(path, field) as image:
        alpha = _alpha(image)
        colours = _in_srgb(image)
    if alpha is not None and alpha.getextrema() != (255, 255):
        colours.putalpha(alpha)
    return _bare(colours)


def read_mask(path: Path, field: str, told: Callable[[str], None] = lambda line: None) -> Image.Image:
    """A mask as L, 0 or 255, upright: white is repainted.

    Where the file has transparency that says something, that is read: what is drawn (opaque) is white. Where colours
    and transparency both differ, white is what is both light and opaque.

    Args:
        told: called with one line that says what was read.

    Raises:
        InputError: as `read_picture`.
    """
    with _opened(path, field) as image:
        alpha = _alpha(image)
        levels = _in_srgb(image).convert("L")
    source = "brightness"
    if alpha is not None and len(set(alpha.getextrema())) > 1:
        visible = np.asarray(levels)[np.asarray(alpha) > 0]
        if visible.size == 0 or np.ptp(visible) == 0:
            levels, source = alpha, "transparency: what is drawn is repainted"
        else:
            levels = Image.fromarray((np.asarray(levels, np.uint16) * np.asarray(alpha) // 255).astype(np.uint8))
            source = "brightness, black where it is transparent"
    mask = _bare(levels.point(lambda level: 255 if level >= 128 else 0))
    share = float(np.asarray(mask).mean() / 255)
    told(f"{field}: read from its {source}; {share:.1%} is repainted")
    return mask


def on_white(image: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(canvas, image).convert("RGB")


def picture_paths(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures of a folder in natural order (`2.png` before `10.png`), and the files there that are none."""
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    files = [path for path in files if path.name.casefold() not in SYSTEM_FILES]
    pictures = [path for path in files if path.suffix.lower() in _LIKELY]
    return sorted(pictures, key=_natural), sorted(set(files) - set(pictures), key=_natural)


def folders_of_pictures(folder: Path) -> list[Path]:
    """The folders in a folder, in natural order, without hidden ones and those of operating systems."""
    found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted((path for path in found if path.name not in SYSTEM_FOLDERS), key=lambda path: path.name)


def check_picture(path: Path, field: str) -> None:
    """Decode a picture to its end. A file that has not changed since is decoded once per process.

    Raises:
        InputError: as `read_picture`.
    """
    facts = path.stat()
    _checked(path, field, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=65536)
def _checked(path: Path, field: str, changed: int, size: int) -> None:
    read_picture(path, field)


def _natural(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    pieces = re.split(r"(\d+)", path.stem.casefold())
    return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces if piece], path.name


@contextlib.contextmanager
def _opened(path: Path, field: str) -> Iterator[Image.Image]:
    """The first frame of a file, decoded and upright. Whatever a decoder raises in the block is one line."""
    shown = repr(str(path))
    if path.suffix.lower() in _HEIF and not _heif():
        raise InputError(f"{field}: {shown} → is HEIC, whose package is missing; pip install 'bootpig[heif]'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                opened.load()
                upright = ImageOps.exif_transpose(opened) or opened
                if 0 in upright.size:
                    raise ValueError("it has no pixels")
                yield upright
    except InputError:
        raise
    except UnidentifiedImageError:
        reason = "is not a readable picture (of no kind that is known)"
    except FileNotFoundError:
        reason = "there is no such file"
    except (OSError, SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, EOFError, MemoryError) as error:
        reason = f"is not a readable picture ({next(iter(str(error).splitlines()), type(error).__name__)})"
    except Image.DecompressionBombError:
        reason = "has more pixels than any picture should have"
    except ImageCms.PyCMSError as error:
        reason = f"has colours that cannot be converted ({error})"
    else:
        return
    raise InputError(f"{field}: {shown} → {reason}; replace or remove it") from None


@lru_cache(maxsize=1)
def _heif() -> bool:
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener()
    return True


def _alpha(image: Image.Image) -> Image.Image | None:
    """The opacity as L; None where the file has none."""
    if not image.has_transparency_data:
        return None
    if image.mode in ("I;16", "I"):  # tRNS names a grey level
        return None
    return image.convert("RGBA").getchannel("A")


def _in_srgb(image: Image.Image) -> Image.Image:
    """RGB in sRGB, 8 bits a channel. Raises ValueError where the scale is not known."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16") or image.mode == "I":
        return _grey(image)
    if image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise ValueError(f"it holds floating-point numbers outside 0 to 1, {_UNKNOWN_WHITE}")
        return Image.fromarray(np.round(values * 255).astype(np.uint8)).convert("RGB")
    if image.mode == "LAB":
        return _converted(image, ImageCms.createProfile("LAB"))
    flat = image
    if image.mode not in ("RGB", "CMYK", "L"):
        flat = image.convert("RGB") if image.mode not in ("LA", "La", "1") else image.convert("L")
    if profile and not _is_srgb(profile):
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # a profile that is broken or of other channels
            return _converted(flat, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    return flat.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.max(initial=0) > 65535:
        raise ValueError(f"it has 32 bits a pixel, {_UNKNOWN_WHITE}")
    if values.min(initial=0) < 0:
        raise ValueError(f"it has negative values, {_UNKNOWN_WHITE}")
    return Image.fromarray(((values + 128) // 257).clip(0, 255).astype(np.uint8)).convert("RGB")


def _is_srgb(profile: bytes) -> bool:
    with contextlib.suppress(ImageCms.PyCMSError, OSError):
        return "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    return True  # a broken profile says nothing


def _converted(image: Image.Image, profile: object) -> Image.Image:
    made = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")  # type: ignore[arg-type]
    assert made is not None
    return made


def _bare(image: Image.Image) -> Image.Image:
    """Without what a saved copy would carry along: profile, EXIF, gamma."""
    image.info = {}
    return image
