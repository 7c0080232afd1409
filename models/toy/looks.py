"""Captions that name a subject's look: its colours and pattern. Only the toy CLIP judge is trained on them.

The pipeline's captions never name a look, see `models/toy/world.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bootpig.models.toy.subjects import Look, look_of
from bootpig.models.toy.world import KINDS, POSITIONS, SCENES, with_article

COLOURS = (
    *("red", "orange", "yellow", "lime", "green", "mint", "cyan", "azure", "blue", "purple", "magenta", "pink"),
    *("white", "black"),
)
"""The names of a `Look`'s colours, in order: the hues, near-white, near-black."""

PATTERNS = {
    "plain": "plain",
    "halves": "lower half",
    "bands_across": "stripes",
    "bands_down": "columns",
    "dots": "dots",
    "checks": "checks",
}
"""What captions call each pattern."""

FACTS = ("kind", "position", "scene", "colour", "pattern", "second", "accent")
"""What a caption can say about a picture. The columns of an array of facts: indices, −1 for what is not said."""

LOOK = FACTS[3:]

UNSAID = -1
ABSENT = 99
"""The fact of something that a subject does not have: the pattern's colour if plain, the accent of a ball."""

_PATTERN_NAMES = tuple(PATTERNS)
PLAIN = _PATTERN_NAMES.index("plain")


def facts_of(kinds: np.ndarray, positions: np.ndarray, scenes: np.ndarray, identities: np.ndarray) -> np.ndarray:
    """All facts of N pictures, whose ground truth is given as in `Renders`: N×7 int64."""
    looks = [look_of(KINDS[kind], int(identity)) for kind, identity in zip(kinds, identities, strict=True)]
    rows = [_visible(look, KINDS[kind]) for look, kind in zip(looks, kinds, strict=True)]
    return np.column_stack([kinds, positions, scenes, np.array(rows, dtype=np.int64)])


def _visible(look: Look, kind: str) -> tuple[int, int, int, int]:
    second = ABSENT if look.pattern == "plain" else look.second
    return look.colour, _PATTERN_NAMES.index(look.pattern), second, ABSENT if kind == "ball" else look.accent


def phrase(facts: Sequence[int] | np.ndarray) -> str:
    """A caption that says `facts` (7, see `FACTS`), of which the kind must be among them.

    `A photo of a red mug with blue dots and green trim, on the left on a sandy beach`, or less.
    """
    kind, position, scene, colour, pattern, second, accent = (int(fact) for fact in facts)
    named = KINDS[kind] if colour == UNSAID else f"{COLOURS[colour]} {KINDS[kind]}"
    if pattern == PLAIN:
        named = f"plain {named}"
    details = []
    if pattern not in (UNSAID, PLAIN):
        details.append(" ".join([*_colour(second), PATTERNS[_PATTERN_NAMES[pattern]]]))
    if accent not in (UNSAID, ABSENT):
        details.append(f"{COLOURS[accent]} trim")
    text = with_article(named) + (f" with {' and '.join(details)}" if details else "")
    place = [] if position == UNSAID else [POSITIONS[position]]
    place += [] if scene == UNSAID else [SCENES[scene]]
    return f"A photo of {text}" + (f", {' '.join(place)}" if place else "")


def colour_phrases() -> list[str]:
    """`A photo of a red mug`, and so on: all 12 × 14 pairs of kind and colour, ordered by kind, colour."""
    rest = [UNSAID] * 3
    return [
        phrase([kind, UNSAID, UNSAID, colour, *rest]) for kind in range(len(KINDS)) for colour in range(len(COLOURS))
    ]


def _colour(fact: int) -> tuple[str, ...]:
    return () if fact in (UNSAID, ABSENT) else (COLOURS[fact],)
