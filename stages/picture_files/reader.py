"""Reads pictures from outside: references, scenes to paint into, subjects. One reader for the whole project.

Whatever Pillow opens comes out upright, as 8-bit sRGB: RGB, or RGBA where something is transparent. Anything else ends
in one line that names the setting, the file and what to do.
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
"""Pixels of the largest picture that is read, Pillow's own limit: more is an attack, or no picture to learn from."""

TOO_LARGE = "has more pixels than any picture should have; scale it down"
INSTALL_HEIF = "pip install 'bootpig[heif]'"

_NOT_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow knows but does not decode itself: drawings, films, measurements."""
_HEIF_SUFFIXES = {".heic", ".heics", ".heif", ".heifs", ".hif"}
_RAW_SUFFIXES = {".3fr", ".arw", ".cr2", ".cr3", ".dng", ".iiq", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw"}
"""Raw files of cameras. Many are TIFF files whose first picture is a small preview."""
_STILL = {"HEIF", "ICNS", "ICO", "MPO", "PSD"}
"""Formats whose further pictures are no frames: previews, sizes, layers, depth maps. The first is the picture."""

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
"""EXIF's orientation → what makes the picture upright."""

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
"""How files begin that are taken for pictures, what they are, and what to do if that is not to export them as PNG."""

_HEIF_BRANDS = re.compile(rb"....ftyp(?:heic|heix|heim|heis|hevc|hevx|mif1|msf1|avif|avis)", re.S)

# What matters of these is an error or a line of ours; `catch_warnings` is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_SETTING_UP = threading.Lock()


class PictureError(InputError):
    """A picture from outside cannot be used. One line: the setting, the file, why, what to do."""


def read_picture(source: Path | bytes, field: str, name: str | None = None) -> Image.Image:
    """A picture upright, 8-bit sRGB, without metadata: RGB, or RGBA where something is transparent.

    Of an animation or a document it is the first frame or page; a line is logged.

    Args:
        source: a file, or its bytes.
        field: the setting or option that names it, for messages.
        name: of the picture, for messages; by default the file's path.

    Raises:
        PictureError: it is not there, not a picture, damaged, too large, or of a range that is not known.
    """
    return decode(source, field, standard, name)


def decode(source: Path | bytes, field: str, use: Callable[[Image.Image], T], name: str | None = None) -> T:
    """What `use` makes of a picture that is loaded and upright, of any mode, its colour profile in `info`.

    Args:
        use: may raise `UnknownPixels`, or `PictureError` with a line of its own; keeps no reference to its argument.
        source, field, name: as in `read_picture`.

    Raises:
        PictureError: as `read_picture`.
    """
    shown = repr(name if name is not None else str(source) if isinstance(source, Path) else "picture")

    def refused(problem: str) -> PictureError:
        why, _, fix = problem.partition("; ")
        return PictureError(f"{field}: {shown} → {why}; {fix or 'replace or remove it'}")

    if problem := _not_a_file(source) or _wrong_kind(source):
        raise refused(problem)
    try:
        with _opened(source) as image:
            if problem := _wrong_size(image):
                raise refused(problem)
            if _is_one_of_many(image):
                _say_once(f"{field}: {shown} holds more than one picture; the first is used")
            image.load()
            return use(_upright(image))
    except PictureError:
        raise
    except UnknownPixels as error:
        raise refused(str(error)) from None
    except Image.DecompressionBombError:
        raise refused(TOO_LARGE) from None
    except MemoryError:
        raise refused("does not fit into memory; scale it down") from None
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise refused(f"is not a readable picture ({_reason(error)})") from None


def on_white(image: Image.Image) -> Image.Image:
    """RGB; what is transparent turns white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(canvas, image).convert("RGB")


def is_picture_name(path: Path) -> bool:
    """Whether a file is expected to be a picture: told by its suffix, without one by its content."""
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
    """Why a picture from `read_picture` cannot be a reference, and what to do; None: it can."""
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
    """Let Pillow open HEIC, if the package for it is installed."""
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
    """Why nothing can be read from `source`, and what to do; empty: something can."""
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
    """What kind of file `source` is, if that is none of pictures, and what to do."""
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
    """Whether further pictures in the file show something else: frames or pages."""
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
    """Suffixes of files that are expected to be pictures, `.png` and the like."""
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
