"""Makes stdout and stderr safe to write to: no character and no closed stream ends the program."""

from __future__ import annotations

import codecs
import io
import os
import sys

_ASCII = {"→": "->", "…": "...", "–": "-", "—": "-", "×": "x", "±": "+-", "·": ".", "≤": "<=", "≥": ">="}
"""Our own characters for terminals and pipes that lack them; anything else becomes a question mark."""


def settle_output() -> None:
    """Let the streams of this process take any text. Call it before anything is written or opened."""
    # a file or socket that took the number of a closed stream would get what others write to that stream
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the life of the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    codecs.register_error("bootpig", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="bootpig")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_ASCII.get(character, "?") for character in error.object[error.start : error.end]), error.end
