"""Sanitises untrusted text, such as an LLM's answer, before it is shown in a terminal or on a page."""

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
    """`printable(text)` as one line with single spaces.

    Args:
        limit: maximum number of characters; longer text is cut and ends with an ellipsis.
    """
    line = " ".join(printable(text).split())
    return line if limit is None or len(line) <= limit else f"{line[: limit - 1]}…"


def markdown(text: str) -> str:
    """`text` as one line, escaped so that Markdown shows it literally: no markup, HTML or links."""
    return _PUNCTUATION.sub(r"\\\1", one_line(text))
