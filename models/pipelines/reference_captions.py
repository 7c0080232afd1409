"""Selects the text for the Reference UNet: the whole caption, or only the part that names the object."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

ReferenceCaption = Literal["caption", "object"]
"""The whole caption (the paper), or only its `object_caption` (the published code)."""


_COMMA = re.compile(r"\s*(?:,(?!\d{3}(?!\d))|[，、､])\s*")
"""A comma, also a full-width one, but not one within a number such as 1,000."""

_ADJECTIVE = re.compile(
    r"(?:.*\b)?(?:"
    r"small|tiny|little|miniature|mini|big|large|huge|giant|massive|tall|short|long|wide|narrow|thick|thin|slim|slender|"
    r"flat|round|square|oval|curved|deep|shallow|heavy|light|lightweight|sturdy|old|new|ancient|antique|vintage|retro|modern|"
    r"young|elderly|fresh|red|orange|yellow|green|blue|purple|violet|pink|brown|black|white|grey|gray|beige|cream|turquoise|"
    r"teal|crimson|scarlet|golden|silver|bronze|pale|dark|bright|vivid|dull|matte|clear|glossy|shiny|sleek|smooth|rough|soft|"
    r"hard|fluffy|fuzzy|furry|hairy|shaggy|woolly|dusty|rusty|dirty|clean|wet|dry|empty|full|open|plain|simple|ornate|elegant|"
    r"fancy|cute|adorable|beautiful|pretty|lovely|happy|sad|friendly|playful|sleepy|grumpy|funny|quirky|cozy|cosy|warm|cold|"
    r"cool|hot|strange|rare|rustic|wooden|woollen|metallic|plastic|ceramic|leather|striped|spotted|dotted|checkered|"
    r"hand-?made|hand-?painted|\w+(?:ous|less|ful|ished|oured|ored|thered|iled|aded|ated|ided|ushed|acked|apped|ipped|nted|"
    r"rved|ised|ized|tted|ssed|ched|shed|rned|eled)|\w+-(?:\w+ed|coloured|colored|legged|eyed|haired|sized|shaped)"
    r")",
    re.IGNORECASE,
)
"""Text that ends in an adjective. The object's name then continues after the comma."""


_PLACE = (
    r"(?:about|above|across|against|along|among|around|as|at|before|behind|below|beneath|beside|between|by|during|floating|"
    r"for|from|high|in|inside|into|near|next|of|off|on|onto|over|through|to|towards?|under|underneath|upon|with|without)\b"
)
_POSITION = re.compile(
    rf"{_PLACE}|(?:here|there|left|right|centered|centred|outdoors|indoors|outside|alone)\b|"
    rf"\w+(?:ing|ed|en|[^aeiou\W]t)\s+(?:\w+ly\s+|right\s+|just\s+|high\s+)?{_PLACE}",
    re.IGNORECASE,
)
"""The start of the part after the object, which says where the object is."""


def object_end(caption: str) -> int | None:
    """The position at which the object of a caption ends: the first comma after a noun. None if there is no such comma.

    In `A photo of a small, red boat, on a lake` the first comma is part of the object. In `A photo of an orange, on a
    plate` it is not.
    """
    begin = 0
    for comma in _COMMA.finditer(caption):
        describes = _ADJECTIVE.fullmatch(caption[begin : comma.start()].strip())
        if not describes or _POSITION.match(caption, comma.end()):
            return comma.start()
        begin = comma.end()
    return None


def object_caption(caption: str) -> str:
    """The part of a caption that names its object, such as `A photo of a teapot`."""
    return caption[: object_end(caption)].strip()


def reference_captions(
    reads: ReferenceCaption, prompts: Sequence[str] | None, given: str | Sequence[str] | None, count: int
) -> list[str] | None:
    """The text for the Reference UNet for each of `count` prompts. None means that it gets the prompt embeds.

    Args:
        reads: the setting that the model was trained with.
        prompts: the prompts. None if only embeds were given.
        given: texts to use instead. A single text applies to all prompts.
        count: number of prompts.

    Raises:
        ValueError: `given` has the wrong number of texts, or there is no prompt to take the object from.
    """
    if given is not None:
        captions = [given] * count if isinstance(given, str) else list(given)
        if len(captions) != count:
            raise ValueError(f"reference_prompt: {len(captions)} for {count} prompts; give one per prompt")
        return captions
    if prompts is None:
        if reads == "object":
            raise ValueError("reference_prompt: this model reads object captions; give one along with prompt_embeds")
        return None
    return [object_caption(prompt) for prompt in prompts] if reads == "object" else list(prompts)
