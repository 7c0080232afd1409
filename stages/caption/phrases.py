"""Parses captions of the form `A photo of a <object>, <position> <scene>` (BootPIG, section 3.3)."""

from __future__ import annotations

import re
import unicodedata

from bootpig.models.pipelines.reference_captions import object_end

_BEHIND = re.compile(
    r"about|above|after|against|among|around|as|at|before|behind|below|beneath|beside|between|by|carrying|covered|"
    r"decorated|featuring|filled|for|from|full|holding|in|inside|into|like|made|near|of|off|on|onto|outside|over|"
    r"painted|resting|shaped|sitting|standing|that|through|to|topped|under|upon|wearing|which|with|without"
)
"""Words that may follow the noun of an object phrase."""

OPENING = r"(?:an?\s+|the\s+)?(?:close-?up\s+)?(?:photo(?:graph)?|picture|image)\s+of\s+"
"""How a caption begins, to be matched without regard to case."""

_FORM = re.compile(rf"\s*{OPENING}(?:an?\s+|the\s+|some\s+|one\s+)?", re.IGNORECASE)


def object_phrase(caption: str) -> str | None:
    """The object that a caption names, without its article, or None if the caption has another form.

    It is what is between `A photo of` and the comma in front of position and scene. Commas between adjectives belong
    to it: `small, red boat` for `A photo of a small, red boat, on a lake`.
    """
    match = _FORM.match(caption)
    if match is None:
        return None
    end = object_end(caption)
    if end is None or end <= match.end() or not caption[end:].strip(" ,，、､"):
        return None
    phrase = " ".join(caption[match.end() : end].split())
    names = re.search(r"[^\W_]", phrase) or any(unicodedata.category(character) == "So" for character in phrase)
    return phrase if names and phrase.casefold() not in ("a", "an", "the") else None


def head_noun(phrase: str) -> str:
    """The noun of an object phrase in lower case: `camera` for `faded Polaroid camera on legs`.

    This is the last word before the first preposition or participle, a rule that works for such captions.
    """
    words = re.findall(r"\w+(?:['’-]\w+)*[+#]*", phrase.casefold())
    if not words:  # a picture in place of a word: 🦊
        return "".join(character for character in phrase if unicodedata.category(character) == "So")
    end = next((k for k, word in enumerate(words) if k and _BEHIND.fullmatch(word)), len(words))
    return words[end - 1]
