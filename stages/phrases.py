"""The caption form `A photo of a <object>, <position> <scene>` (BootPIG, section 3.3) and its parts."""

from __future__ import annotations

import re

_FORM = re.compile(r"\s*a photo of an? ([^,]*[^,\s])\s*,\s*\S", re.IGNORECASE)


def object_phrase(caption: str) -> str | None:
    """What stands between `A photo of a` (or `an`) and the first comma, or None if the caption has another form."""
    match = _FORM.match(caption)
    return match[1].strip() if match else None


def object_caption(caption: str) -> str:
    """What stands before the first comma: `A photo of a teapot`. The published code's reference caption."""
    return caption.split(",", 1)[0].strip()
