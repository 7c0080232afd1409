"""Text from outside, made harmless: what an endpoint or a model wrote never reaches a screen or a page as it came."""

from __future__ import annotations

import re
import unicodedata

from bootpig.storage.secrets import mask

_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)?", re.DOTALL)
"""Escape sequences: colours, cursor moves, titles."""
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


def printable(text: str) -> str:
    """`text` without secrets, escape sequences, control, direction and other invisible characters; white space as
    blanks."""
    text = _TERMINAL.sub("", mask(text))
    return "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")


def one_line(text: str, limit: int | None = None) -> str:
    """What is `printable` of `text`, with single blanks.

    Args:
        limit: characters at most; what is cut off is marked by an ellipsis.
    """
    line = " ".join(printable(text).split())
    return line if limit is None or len(line) <= limit else f"{line[: limit - 1]}…"


def markdown(text: str) -> str:
    """`text` as one line that Markdown shows as it stands: no markup, no HTML, no link."""
    return _PUNCTUATION.sub(r"\\\1", one_line(text))
