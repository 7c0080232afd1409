"""Read the text files that a user gives: captions, prompts, configurations, lists of subjects."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from bootpig.stages.engine.contract import InputError

_MARKS = [
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
"""Byte order marks and the encodings they stand for; that of UTF-32 begins like that of UTF-16."""

_LINE_END = re.compile(r"\r\n|\n|\r")


def read_text(field: str, path: str | Path, wanted: str = "give a UTF-8 text file") -> str:
    """The text of a file: UTF-8, or what its byte order mark says.

    Args:
        field: the setting or option that names the file, for messages.
        wanted: what to give in its place, for messages.

    Raises:
        InputError: it is missing, unreadable, or no text.
    """
    shown = repr(str(path))
    try:
        data = Path(path).expanduser().read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{field}: {shown} → cannot be read ({reason}); {wanted}") from None
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{field}: {shown}, line {line} → is not UTF-8; save the file as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{field}: {shown}, line {line} → is no text, or UTF-16 without a mark; save it as UTF-8")
    return text


def read_lines(field: str, path: str | Path, wanted: str = "give a UTF-8 text file") -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, stripped, with their numbers from 1.

    Lines end at line feeds and carriage returns only: a U+2028, which editors show as a space, is part of its line.

    Raises:
        InputError: as `read_text`.
    """
    lines = _LINE_END.split(read_text(field, path, wanted))
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
