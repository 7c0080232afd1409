"""Reads pictures that users give: references, scenes for inpainting, subjects. The whole project uses this reader.

Every picture that Pillow can open is returned upright, as 8-bit sRGB: RGB, or RGBA if something is transparent.
Otherwise, an error of one line names the setting, the file and the fix.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from bootpig.stages.engine.contract import InputError
from bootpig.stages.picture_files.colours import UnknownPixels, standard
from bootpig.stages.plain_text import one_line

T = TypeVar("T")

MAX_PIXELS = 178_956_970
"""Maximum number of pixels, Pillow's own limit: larger files are attacks, or useless as training pictures."""

TOO_LARGE = "has more pixels than any picture should have; scale it down"
INSTALL_HEIF = "pip install 'bootpig[heif]'"

_NOT_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow recognises but does not decode itself: vector drawings, video, measurements."""
_HEIF_SUFFIXES = {".heic", ".heics", ".heif", ".heifs", ".hif"}
_RAW_SUFFIXES = {".3fr", ".arw", ".cr2", ".cr3", ".dng", ".iiq", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw"}
"""Raw camera files. Many are TIFF files whose first picture is a small preview."""
_STILL = {"HEIF", "ICNS", "ICO", "MPO", "PSD"}
"""Formats whose other images are not frames but previews, sizes, layers or depth maps. The first image is used."""

_LOG = logging.getLogger(__name__)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → the operation that makes the picture upright."""

_SIGNS = (
    (
        re.compile(rb"\s*version https://git-lfs"),
        "a pointer of Git LFS, not the file itself",
        "fetch it with git lfs pull",
    ),
    (re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+)?svg", re.I | re.S), "an SVG drawing", ""),
    (re.compile(rb"\s*<(?:!doctype\s+html|html)", re.I), "a web page", "download the picture itself"),
    (re.compile(rb"%PDF"), "a PDF document", ""),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "a PostScript drawing", ""),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive", "unpack it"),
    (re.compile(rb"....ftyp(?:isom|mp4|M4V|qt  |avc1)", re.S), "a film", "save the frame that is meant as PNG"),
)
"""First bytes of files that users mistake for pictures, what they are, and the fix (empty: export as PNG)."""

_HEIF_BRANDS = re.compile(rb"....ftyp(?:heic|heix|heim|heis|hevc|hevx|mif1|msf1|avif|avis)", re.S)

# This module reports what matters as errors or log lines; `catch_warnings` is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_SETTING_UP = threading.Lock()


class PictureError(InputError):
    """A picture cannot be used. The message is one line: the setting, the file, the reason and the fix."""


class PictureTooLarge(PictureError):
    """A picture has more than `MAX_PIXELS`, or does not fit into memory."""


def read_picture(source: Path | bytes, field: str, name: str | None = None) -> Image.Image:
    """Read a picture: upright, 8-bit sRGB, without metadata, RGB, or RGBA if something is transparent.

    Of an animation or a document, the first frame or page is read, and a line is logged.

    Args:
        source: a file, or its bytes.
        field: name of the setting or option that gives it, for messages.
        name: name of the picture, for messages; by default the file's path.

    Raises:
        PictureError: it does not exist, is not a picture, is damaged or too large, or its value range is unknown.
    """
    return decode(source, field, standard, name)


def decode(source: Path | bytes, field: str, use: Callable[[Image.Image], T], name: str | None = None) -> T:
    """Read a picture and return the result of `use`.

    Args:
        use: called with the loaded, upright image, of any mode, with its colour profile in `info`. May raise
            `UnknownPixels`, or `PictureError` with its own message. Must not keep a reference to its argument.
        source, field, name: as in `read_picture`.

    Raises:
        PictureError: as `read_picture`.
    """
    shown = repr(name if name is not None else str(source) if isinstance(source, Path) else "picture")

    def refused(problem: str, kind: type[PictureError] = PictureError) -> PictureError:
        why, _, fix = problem.partition("; ")
        return kind(f"{field}: {shown} → {why}; {fix or 'replace or remove it'}")

    if problem := _not_a_file(source) or _wrong_kind(source):
        raise refused(problem)
    try:
        with _opened(source) as image:
            if problem := _wrong_size(image):
                raise refused(problem, PictureTooLarge if problem == TOO_LARGE else PictureError)
            if _is_one_of_many(image):
                _say_once(f"{field}: {shown} holds more than one picture; the first is used")
            image.load()
            return use(_upright(image))
    except PictureError:
        raise
    except UnknownPixels as error:
        raise refused(str(error)) from None
    except Image.DecompressionBombError:
        raise refused(TOO_LARGE, PictureTooLarge) from None
    except MemoryError:
        raise refused("does not fit into memory; scale it down", PictureTooLarge) from None
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise refused(f"is not a readable picture ({_reason(error)})") from None


def on_white(image: Image.Image) -> Image.Image:
    """The image as RGB, on a white background."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(canvas, image).convert("RGB")


def is_picture_name(path: Path) -> bool:
    """Whether a file is expected to be a picture, by its suffix or, if it has none, by its content."""
    suffix = path.suffix.lower()
    if suffix:
        return suffix in _suffixes()
    try:
        if _not_a_file(path) or _wrong_kind(path):
            return False
        with _opened(path):
            return True
    except Exception:
        return False


def reference_problem(picture: Image.Image) -> str | None:
    """Why a picture from `read_picture` cannot be a reference, and the fix. None if it can."""
    if min(picture.size) < 8:
        return f"has {picture.width}x{picture.height} pixels; give 8 a side or more"
    if picture.mode == "RGBA" and np.asarray(picture.getchannel("A")).max() < 128:
        return "is transparent everywhere; give one that shows the subject"
    return None


def _opened(source: Path | bytes) -> Image.Image:
    with _SETTING_UP:
        formats = _formats()
        if _HEIF_BRANDS.match(_head(source)) and "HEIF" not in formats and _register_heif():
            _formats.cache_clear()
            formats = _formats()
    return Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=formats)


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(format for format in Image.ID if format not in _NOT_PIXELS)


def _register_heif() -> bool:
    """Register the HEIC plugin with Pillow, if it is installed."""
    with contextlib.suppress(ImportError, OSError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
        return True
    return False


def _upright(image: Image.Image) -> Image.Image:
    turn = None
    with contextlib.suppress(Exception):  # broken EXIF is no reason to refuse good pixels
        turn = _TURNS.get(image.getexif().get(0x0112, 1))
    if turn is None:
        return image
    upright = image.transpose(turn)
    upright.format = image.format
    upright.info = {name: value for name, value in image.info.items() if name != "exif"}
    return upright


def _not_a_file(source: Path | bytes) -> str:
    """Why `source` cannot be read, and the fix. Empty if it can."""
    if isinstance(source, bytes):
        return "" if source else "is empty"
    try:
        mode = os.stat(source)
    except FileNotFoundError:
        return "there is no such file; check the path"
    except (OSError, ValueError) as error:
        return f"cannot be read ({_reason(error)}); check the path and its permissions"
    if stat.S_ISDIR(mode.st_mode):
        return "is a folder; give a picture in it"
    if not stat.S_ISREG(mode.st_mode):
        return "is a device or a pipe; save the picture to a file"
    return "" if mode.st_size else "is empty"


def _wrong_kind(source: Path | bytes) -> str:
    """What kind of file `source` is if it is not a picture, and the fix. Empty if it may be a picture."""
    if isinstance(source, Path) and source.suffix.lower() in _RAW_SUFFIXES:
        return "is a raw file of a camera; export it as PNG, TIFF or JPEG"
    try:
        head = _head(source)
    except OSError as error:
        return f"cannot be read ({_reason(error)}); check its permissions"
    for sign, kind, fix in _SIGNS:
        if sign.match(head):
            return f"is {kind}; {fix or 'export it as PNG'}"
    if _HEIF_BRANDS.match(head):
        avif = re.search(rb"avi[fs]", head[8:64]) is not None  # the first brand may be mif1 with both
        if avif and "AVIF" not in _formats():
            return "is AVIF, which this Pillow cannot read; pip install 'pillow>=11.3'"
        if not avif and "HEIF" not in _formats() and not _can_import_heif():
            return f"is HEIC, whose package is missing; {INSTALL_HEIF}"
    return ""


def _can_import_heif() -> bool:
    try:
        import pillow_heif  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def _wrong_size(image: Image.Image) -> str:
    if min(image.size) < 1:
        return "is not a readable picture (it has no pixels)"
    return TOO_LARGE if image.width * image.height > MAX_PIXELS else ""


def _is_one_of_many(image: Image.Image) -> bool:
    """Whether the file has further frames or pages with other content."""
    if image.format in _STILL or not getattr(image, "is_animated", False):
        return False
    if image.format != "TIFF":
        return True
    try:
        for page in range(1, 64):
            image.seek(page)
            if not image.tag_v2.get(254, 0) & 1:  # type: ignore[attr-defined]  # NewSubfileType: the same, made smaller
                return True
    except EOFError:
        pass
    finally:
        image.seek(0)
    return False


@functools.lru_cache(maxsize=1024)
def _say_once(line: str) -> None:
    _LOG.warning("%s", line)


@functools.cache
def _suffixes() -> frozenset[str]:
    """Suffixes of files that are expected to be pictures, such as `.png`."""
    formats = set(_formats())
    known = {suffix for suffix, format in Image.registered_extensions().items() if format in formats}
    return frozenset({*known, *_HEIF_SUFFIXES, ".avif", ".avifs"})


def _head(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:1024]
    with source.open("rb") as file:
        return file.read(1024)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no format that is known"
    if isinstance(error, OSError) and error.strerror:
        return one_line(error.strerror, 120)
    return one_line(str(error), 120).replace("; ", ", ") or type(error).__name__
