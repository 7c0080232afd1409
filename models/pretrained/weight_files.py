"""Reads the table of contents of weight and JSON files without their tensors, and says what is wrong with a file."""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Bits of a number in each dtype of the safetensors format that torch can hold."""

LONGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""


class DamagedFile(ValueError):
    """A file of a model cannot be used. The message is one line: the file, what is wrong, what to do."""

    def __init__(self, file: Path, problem: str, fix: str, absent: bool = False) -> None:
        super().__init__(f"the file {str(file)!r} {problem}; {fix}")
        self.file = file
        self.absent = absent
        """Whether the file is not there at all."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file."""

    dtype: str
    """As in the safetensors format, such as `F32`."""
    shape: tuple[int, ...]


Header = Mapping[str, TensorInfo]
"""Name → tensor."""

_AGAIN = "download it again"


def read_safetensors(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, from its header. Their data must fill the file without gaps, as the format
    demands.

    Raises:
        DamagedFile: it is missing, cut off, or something else.
    """
    size = check_readable(file)
    with file.open("rb") as stream:
        start = stream.read(8)
        (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            begins = start + stream.read(8)
            if 2 <= length <= LONGEST_HEADER and begins[8:9] == b"{":
                raise DamagedFile(file, f"is cut off after {size} bytes, within its header", _AGAIN)
            raise DamagedFile(file, f"is not a safetensors file{_likeness(begins)}", _AGAIN)
        text = stream.read(length)
    try:
        header = json.loads(text)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        found = {name: _tensor(file, name, entry) for name, entry in tensors.items()}
        ends = sorted(tuple(map(int, entry["data_offsets"])) for entry in tensors.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, DamagedFile):
            raise
        raise DamagedFile(file, "has a damaged header", _AGAIN) from None
    data = size - 8 - length
    reached = 0
    for begin, end in ends:
        if begin != reached or end < begin:
            raise DamagedFile(file, "has a damaged header: its tensors overlap or leave gaps", _AGAIN)
        reached = end
    if reached > data:
        raise DamagedFile(file, f"is cut off: {size} of {8 + length + reached} bytes are there", _AGAIN)
    if reached < data:
        surplus = f"has {data - reached} bytes after its last tensor, which readers of the format refuse"
        raise DamagedFile(file, surplus, f"{_AGAIN}, or save it again with safetensors")
    return found


def _tensor(file: Path, name: str, entry: Mapping[str, Any]) -> TensorInfo:
    dtype, shape = str(entry["dtype"]), tuple(int(side) for side in entry["shape"])
    if dtype not in BITS:
        raise DamagedFile(
            file, f"has {name!r} in {dtype}, which cannot be loaded", "give weights in float16 or float32"
        )
    begin, end = entry["data_offsets"]
    if math.prod(shape) * BITS[dtype] != 8 * (end - begin):
        raise DamagedFile(file, f"has a damaged header: the size of {name!r} does not match its shape", _AGAIN)
    return TensorInfo(dtype, shape)


def is_safetensors(file: Path) -> bool:
    """Whether a file is meant as safetensors: by its name, or, with another name or none, by its first bytes.

    A link into a hub cache may lead to a file whose name is a hash.
    """
    if file.suffix.lower() == ".safetensors":
        return True
    with file.open("rb") as stream:
        start = stream.read(9)
    return len(start) == 9 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= LONGEST_HEADER


def check_archive(file: Path) -> bool:
    """Check a file of torch.save by its zip directory, without unpickling.

    Returns:
        False for torch's format before 1.6, which has no directory.

    Raises:
        DamagedFile: it is missing, cut off, or something else.
    """
    check_readable(file)
    with file.open("rb") as stream:
        start = stream.read(16)
    if start[:1] == b"\x80":  # a bare pickle
        return False
    if not start.startswith(b"PK"):
        raise DamagedFile(file, f"is not a checkpoint of torch.save{_likeness(start)}", _AGAIN)
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise DamagedFile(file, "is cut off or damaged: its zip directory cannot be read", _AGAIN) from None
    if not any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        raise DamagedFile(
            file, "is a zip archive, but not one of torch.save", "unpack it, or give the checkpoint itself"
        )
    return True


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, read as diffusers and transformers read it.

    Raises:
        DamagedFile: it is missing, or no object in UTF-8.
    """
    check_readable(file)
    data = file.read_bytes()
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise DamagedFile(
            file, "begins with a byte order mark, which the model's library cannot read", "save it as UTF-8"
        )
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else f"is not JSON{_likeness(data[:16])}"
        raise DamagedFile(file, reason, _AGAIN) from None
    if not isinstance(value, dict):
        raise DamagedFile(file, f"holds a {type(value).__name__} in place of a JSON object", _AGAIN)
    return value


def check_readable(file: Path) -> int:
    """The size of a file in bytes.

    Raises:
        DamagedFile: it is missing, empty, a broken link, a Git LFS pointer, or cannot be read.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(24)
            size = os.fstat(stream.fileno()).st_size
    except FileNotFoundError:
        if file.is_symlink():
            target = str(file.readlink())
            raise DamagedFile(
                file, f"is a link to {target!r}, which does not exist", "restore the link", True
            ) from None
        raise DamagedFile(file, "is missing", "complete the folder, or download the model again", True) from None
    except OSError as error:
        raise DamagedFile(file, f"cannot be read ({error.strerror})", "check its permissions") from None
    if not size:
        raise DamagedFile(file, "is empty", _AGAIN)
    if start.startswith(b"version https://git-lfs"):
        raise DamagedFile(file, "is a Git LFS pointer without the weights", "run `git lfs pull` in that folder")
    return size


def _likeness(start: bytes) -> str:
    """What a file seems to be by its first 16 bytes, in parentheses."""
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return " (it is a web page)"
    if start.startswith(b"PK"):
        return " (it is a zip archive, as torch.save writes)"
    if start.startswith(b"\x80"):
        return " (it is a pickle)"
    if start.startswith(b"GGUF"):
        return " (it is a GGUF file)"
    if start.startswith(b"\x1f\x8b"):
        return " (it is compressed with gzip)"
    if text.startswith((b"{", b"[")):
        return " (it is JSON)"
    if start and not start.strip(b"\0"):
        return " (it begins with zeros, as an unfinished download does)"
    return ""
