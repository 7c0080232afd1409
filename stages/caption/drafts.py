"""What a caption source hands over."""

from __future__ import annotations

from dataclasses import dataclass

from bootpig.stages.engine.contract import Status


@dataclass(frozen=True)
class Draft:
    """A caption as its source gives it."""

    caption: str
    status: Status = "ok"
    """Not `ok`: the source itself has rejected it, or could not get it."""
    reason: str = ""
    message: str = ""
