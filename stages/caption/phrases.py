"""Parses captions of the form `A photo of a <object>, <position> <scene>` (BootPIG, section 3.3)."""

from __future__ import annotations

import re

_BEHIND = re.compile(
    r"about|above|after|against|among|around|as|at|before|behind|below|beneath|beside|between|by|carrying|covered|"
    r"decorated|featuring|filled|for|from|full|holding|in|inside|into|like|made|near|of|off|on|onto|outside|over|"
    r"painted|resting|shaped|sitting|standing|that|through|to|topped|under|upon|wearing|which|with|without"
)
"""Words that may follow the noun of an object phrase."""

_FORM = re.compile(r"\s*a photo of an? ([^,]*[^,\s])\s*,\s*\S", re.IGNORECASE)


def object_phrase(caption: str) -> str | None:
    """The text between `A photo of a` (or `an`) and the first comma, or None if the caption has another form."""
    match = _FORM.match(caption)
    return match[1].strip() if match else None


def object_caption(caption: str) -> str:
    """The text before the first comma, such as `A photo of a teapot`: the published code's reference caption."""
    return caption.split(",", 1)[0].strip()


def head_noun(phrase: str) -> str:
    """The noun of an object phrase in lower case: `camera` for `faded Polaroid camera on legs`.

    This is the last word before the first preposition or participle, a rule that works for such captions.
    """
    words = re.findall(r"\w+(?:['’-]\w+)*", phrase.casefold())
    end = next((k for k, word in enumerate(words) if k and _BEHIND.fullmatch(word)), len(words))
    return words[end - 1] if words else ""
