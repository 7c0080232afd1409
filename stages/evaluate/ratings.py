"""Scores that people gave to pictures of an evaluation, and how well a judge agrees with them.

A CSV file with a header. `subject`, `prompt`, `concept` and `following` are needed; `method` (by default bootpig),
`number` (of the picture among those of its caption, by default 0) and `rater` are optional. Scores are whole numbers
from 0 to 4, or empty. Several rows may rate one picture, one per rater.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bootpig.stages.engine.contract import InputError
from bootpig.stages.evaluate.agreement import krippendorff_alpha
from bootpig.stages.evaluate.vision_judge_config import HIGHEST, QUESTIONS
from bootpig.stages.text_files import read_text

FIELD = "evaluate.judge.ratings"
NEEDED = ("subject", "prompt", *QUESTIONS)
OPTIONAL = {"method": "bootpig", "number": "0", "rater": ""}
"""Column → its value if it is missing."""


class Rated(NamedTuple):
    """A picture."""

    method: str
    subject: str
    prompt: str
    number: int


@dataclass(frozen=True)
class Ratings:
    """Question → picture → the scores that people gave it."""

    scores: Mapping[str, Mapping[Rated, Sequence[int]]]

    @property
    def pictures(self) -> set[Rated]:
        return {picture for scores in self.scores.values() for picture in scores}


def read_ratings(path: str) -> Ratings:
    """Read a file of ratings.

    Raises:
        InputError: it cannot be read, lacks a column, or a row is wrong; one line.
    """
    text = read_text(FIELD, path, "give a UTF-8 CSV file")
    try:
        reader = csv.DictReader(text.splitlines(), strict=True, skipinitialspace=True)
        header = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = header
        if missing := [name for name in NEEDED if name not in header]:
            raise _problem(path, 1, f"has no column {missing[0]!r}; its columns are {', '.join(NEEDED)} and {_more()}")
        scores: dict[str, dict[Rated, list[int]]] = {question: defaultdict(list) for question in QUESTIONS}
        seen: set[tuple[Rated, str]] = set()
        for row in reader:
            line = reader.line_num
            if None in row or None in row.values():
                raise _problem(path, line, f"has not {len(header)} values; put text with commas in quotes")
            values = {name: str(value).strip() for name, value in {**OPTIONAL, **row}.items()}
            number = _whole(path, line, "number", values["number"] or "0", 10**6)
            picture = Rated(values["method"] or "bootpig", values["subject"], values["prompt"], number)
            if (picture, values["rater"]) in seen:
                who = f"rater {values['rater']!r}" if values["rater"] else "a rater without a name"
                raise _problem(path, line, f"rates a picture again for {who}; keep one row, or name the raters")
            seen.add((picture, values["rater"]))
            for question in QUESTIONS:
                if values[question]:
                    scores[question][picture].append(_whole(path, line, question, values[question], HIGHEST))
    except csv.Error as error:
        raise InputError(f"{FIELD}: {path!r} → is no CSV file ({error}); save it as CSV with commas") from None
    if not any(scores.values()):
        raise InputError(f"{FIELD}: {path!r} → has no scores; add rows, or leave ratings out")
    return Ratings(scores)


def check_ratings(path: str, shown: set[tuple[str, str, int]]) -> None:
    """Check that a file rates pictures of an evaluation.

    Args:
        shown: subject, prompt and number of each picture that will be drawn.

    Raises:
        InputError: as in `read_ratings`, or it rates none of them.
    """
    ratings = read_ratings(path)
    if not any(tuple(picture[1:]) in shown for picture in ratings.pictures):
        example = next(iter(sorted(ratings.pictures)))
        raise InputError(
            f"{FIELD}: {path!r} → rates no picture of this evaluation, such as {example.prompt!r} of subject "
            f"{example.subject!r}; subjects and prompts are as in scores.parquet"
        )


def agreement(ratings: Ratings, scores: Mapping[str, Mapping[Rated, int]]) -> dict[str, Any]:
    """How well a judge agrees with people, by question.

    Args:
        scores: question → picture → the judge's score.

    Returns:
        For each question `pictures` (rated by both), `alpha` (Krippendorff's, interval level, of the judge and the
        people's mean), `spearman` (rank correlation of the same) and `people_alpha` (ordinal level, among people).
        null: not defined, for want of pictures or of differences.
    """
    return {question: _agreement(ratings.scores[question], scores[question]) for question in QUESTIONS}


def _agreement(people: Mapping[Rated, Sequence[int]], judge: Mapping[Rated, int]) -> dict[str, Any]:
    both = sorted(people.keys() & judge.keys())
    ours = [float(judge[picture]) for picture in both]
    theirs = [float(np.mean(people[picture])) for picture in both]
    spearman = None
    if len(set(ours)) > 1 and len(set(theirs)) > 1:
        from scipy.stats import spearmanr  # takes half a second to import

        spearman = float(spearmanr(ours, theirs).statistic)
    return {
        "pictures": len(both),
        "alpha": _rounded(krippendorff_alpha(list(zip(ours, theirs, strict=True)), "interval")),
        "spearman": _rounded(spearman),
        "people_alpha": _rounded(krippendorff_alpha(people.values(), "ordinal", range(HIGHEST + 1))),
    }


def _whole(path: str, line: int, column: str, text: str, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) <= most):
        raise _problem(path, line, f"has {column} {text[:40]!r}; give a whole number from 0 to {most}")
    return int(text)


def _problem(path: str, line: int, what: str) -> InputError:
    return InputError(f"{FIELD}: {path!r}, line {line} → {what}")


def _more() -> str:
    return ", ".join(f"({name})" for name in OPTIONAL)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
