"""Folders of pictures: which files are pictures, their order, and which entries operating systems left there."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from bootpig.stages.picture_files.reader import is_picture_name

_SYSTEM_FOLDERS = {
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "__macosx",
    "__pycache__",
    "lost+found",
    "system volume information",
}
_SYSTEM_FILES = {"desktop.ini", "ehthumbs.db", "thumbs.db"}


def picture_paths(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures of a folder in natural order (`2.png` before `10.png`, `00.png` before `00 (1).png`), and the other
    files. A file is a picture if its suffix says so or, if it has no suffix, its content. No file is decoded.

    Raises:
        OSError: the folder cannot be read.
    """
    files = [path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir()]
    files = [path for path in files if path.name.casefold() not in _SYSTEM_FILES]
    files.sort(key=lambda path: natural_order(path.name))
    pictures = [path for path in files if is_picture_name(path)]
    return pictures, [path for path in files if path not in set(pictures)]


def folders_of_pictures(folder: Path) -> list[Path]:
    """The subfolders of a folder, by name, without hidden ones and system folders such as `__MACOSX`.

    Raises:
        OSError: the folder cannot be read.
    """
    found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted((path for path in found if path.name.casefold() not in _SYSTEM_FOLDERS), key=lambda path: path.name)


def of_systems(path: str) -> bool:
    """Whether a path with `/` is hidden, or something that operating systems left there."""
    *folders, name = path.casefold().split("/")
    hidden = any(part.startswith(".") for part in (*folders, name))
    return hidden or name in _SYSTEM_FILES or not _SYSTEM_FOLDERS.isdisjoint(folders)


def natural_order(name: str) -> tuple[tuple[str | int, ...], ...]:
    """A key that sorts file names as people do: numbers by value, and `a` before `a (1)`."""
    stem, dot, suffix = name.rpartition(".")
    parts = (stem, suffix) if dot and stem else (name, "")
    folded = [unicodedata.normalize("NFC", part).casefold() for part in parts]
    keys = [tuple(int(run) if odd else run for odd, run in _runs(part)) for part in folded]
    return (*keys, (name,))


def _runs(text: str) -> list[tuple[bool, str]]:
    return [(bool(place % 2), run) for place, run in enumerate(re.split(r"([0-9]+)", text))]
