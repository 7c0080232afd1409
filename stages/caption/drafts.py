"""The result type of caption sources."""

from __future__ import annotations

from dataclasses import dataclass

from bootpig.stages.engine.contract import Status


@dataclass(frozen=True)
class Draft:
    """A caption from a source, before the caption stage has checked it."""

    caption: str
    status: Status = "ok"
    """Anything but `ok` means that the source rejected the caption or could not get one."""
    reason: str = ""
    message: str = ""
