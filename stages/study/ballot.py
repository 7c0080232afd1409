"""What one judge sees: all pairs in an order of their own, sides at random, under names that tell nothing.

Order, sides and names come from the study's secret and the judge's id. So they are the same after a restart, and nobody
can guess them. A judge has answered a first part of the order: the pair after it, and those before, are handed out.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from dataclasses import dataclass
from typing import Literal

from bootpig.stages.study.study import Study
from bootpig.stages.study.votes import Answer, Judge, Vote

Side = Literal[0, 1, 2]
"""1: the left picture. 2: the right one. 0: cannot say."""


@dataclass(frozen=True)
class Sheet:
    """A pair as one judge sees it."""

    pair: int
    name: str
    left: Literal["first", "other"]
    pictures: tuple[str, ...]
    """Names of the left picture, the right one, and the references."""


class Ballot:
    """The pairs as one judge sees them."""

    def __init__(self, study: Study, judge: Judge) -> None:
        self.judge = judge
        self._key = f"{study.secret}/{judge.id}".encode()
        draws = random.Random(self._key)
        order = list(range(len(study.pairs)))
        draws.shuffle(order)
        self.sheets: list[Sheet] = []
        """In the judge's order."""
        self._places: dict[str, int] = {}
        self._files: dict[str, tuple[int, str]] = {}
        """Name of a picture → the place of its pair in the order, and its file."""
        for place, number in enumerate(order):
            pair = study.pairs[number]
            left: Literal["first", "other"] = "first" if draws.random() < 0.5 else "other"
            files = [pair.first_file, pair.other_file] if left == "first" else [pair.other_file, pair.first_file]
            files += pair.references
            names = [self._name(number, slot) for slot in range(len(files))]
            self._files |= {name: (place, file) for name, file in zip(names, files, strict=True)}
            sheet = Sheet(number, self._name(number, "pair"), left, tuple(names))
            self._places[sheet.name] = place
            self.sheets.append(sheet)

    def _name(self, *what: object) -> str:
        text = "/".join(map(str, what)).encode()
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()[:32]

    @property
    def done(self) -> int:
        """Number of pairs that the judge has answered: the first ones of the order."""
        votes = self.judge.votes
        return next((place for place, sheet in enumerate(self.sheets) if sheet.pair not in votes), len(self.sheets))

    def handed(self, place: int) -> Sheet | None:
        """The pair at a place of the order, if it was handed out."""
        return self.sheets[place] if 0 <= place < len(self.sheets) and place <= self.done else None

    def named(self, name: str) -> tuple[int, Sheet] | None:
        """The pair with this name and its place, if it was handed out."""
        place = self._places.get(name)
        sheet = None if place is None else self.handed(place)
        return None if place is None or sheet is None else (place, sheet)

    def file(self, name: str) -> str | None:
        """The file of a picture, if its pair was handed out."""
        place, file = self._files.get(name, (-1, ""))
        return None if self.handed(place) is None else file

    def answers(self, sheet: Sheet) -> dict[str, Side] | None:
        """What the judge has said of a pair. None if nothing yet."""
        vote = self.judge.votes.get(sheet.pair)
        if vote is None:
            return None
        return {"truer": _side(sheet, vote.truer), "follows": _side(sheet, vote.follows)}

    def vote(self, sheet: Sheet, truer: Side, follows: Side) -> Vote:
        """Two answers as a vote."""
        return Vote(sheet.pair, _answer(sheet, truer), _answer(sheet, follows), sheet.left)


def _answer(sheet: Sheet, side: Side) -> Answer:
    if side == 0:
        return "neither"
    return "first" if (side == 1) == (sheet.left == "first") else "other"


def _side(sheet: Sheet, answer: Answer) -> Side:
    if answer == "neither":
        return 0
    return 1 if answer == sheet.left else 2
