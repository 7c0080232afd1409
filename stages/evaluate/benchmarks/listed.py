"""What a published benchmark lists: its subjects with their kind, prompts and pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bootpig.stages.engine.contract import InputError

Kind = Literal["object", "living", "style"]

SHOWN_PROBLEMS = 20
"""Maximum number of lines about one benchmark. For more, their number is shown."""

_LIVING = re.compile(
    r"(.*\s)?(animal|baby|bear|bird|boy|bull|cat|chicken|child|cow|deer|dog|dolphin|duck|elephant|fish|fox|girl|goat|"
    r"horse|human|kitten|lion|man|monkey|mouse|owl|panda|parrot|penguin|person|pet|pig|puppy|rabbit|sheep|squirrel|"
    r"tiger|turtle|whale|wolf|woman)"
)
"""Classes that get the prompts for living subjects."""
_MADE = re.compile(r"\b(stuffed|toy|plush|plushie|cartoon|wooden|porcelain|rubber|teddy)\b")
"""In classes that are things all the same, such as `stuffed animal`."""


@dataclass(frozen=True)
class Listed:
    """One subject of a benchmark."""

    name: str
    object: str
    """The class word."""
    kind: Kind
    templates: tuple[str, ...]
    """The prompts, with `{object}` in place of the class. One in which the class was not found has none."""
    prompts: tuple[str, ...]
    """The prompts as they are drawn and scored, in the same order."""
    pictures: tuple[Path, ...]
    """At least one, in natural order."""


def kind_of(noun: str) -> Kind:
    """Whether a class is a living subject or an object: `black cat` is living, `stuffed animal` is not."""
    words = noun.lower()
    return "living" if _LIVING.fullmatch(words) and not _MADE.search(words) else "object"


def refuse(problems: Sequence[str] | Iterable[str]) -> None:
    """Raises InputError with one line per problem, if there are any."""
    lines = list(problems)
    if not lines:
        return
    shown = lines[:SHOWN_PROBLEMS]
    if len(lines) > len(shown):
        shown.append(f"{lines[0].partition(':')[0]}: {len(lines) - len(shown)} more subjects have problems")
    raise InputError("\n".join(shown))
