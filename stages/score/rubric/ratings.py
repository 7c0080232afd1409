"""Reads the ratings in what a vision model wrote. The text is untrusted, and reading never raises."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from bootpig.stages.caption.llm.answers import quoted, read_text
from bootpig.stages.caption.llm.requests import Filled
from bootpig.stages.score.rubric.config import RubricConfig

Ratings = tuple[float, ...]
"""One number per question, in order."""

OUT_OF_RANGE = "out_of_range"

LONGEST = 20_000
"""Characters of an answer that are read."""
TRIED = 50
"""Maximum number of opening braces at which JSON is looked for."""

_NUMBER = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*(?:(?:/|out of)\s*(-?\d+(?:\.\d+)?))?\s*")


def read_ratings(body: str, config: RubricConfig) -> Filled[Ratings]:
    """The ratings in the body of a chat completion: of the last JSON object in it that answers all questions."""
    written = read_text(body)
    if written.fault:
        return Filled(fault=written.fault, message=written.message)
    found = list(_objects(written.text[:LONGEST]))
    if not found:
        code = "truncated" if written.cut else "invalid_json" if written.text.strip() else "empty"
        return _fault(code, f"no JSON object in {quoted(written.text)}")
    complete = [answers for answers in found if config.questions.keys() <= answers.keys()]
    if not complete:
        lacking = next(name for name in config.questions if name not in found[-1])
        return _fault("truncated" if written.cut else "short", f"no rating for {lacking!r} in {quoted(written.text)}")
    ratings = []
    for name in config.questions:
        value = _number(complete[-1][name], config.highest)
        if value is None:
            return _fault("invalid_json", f"the rating for {name!r} is not a number in {quoted(written.text)}")
        if not config.lowest <= value <= config.highest:
            limits = f"not from {config.lowest:g} to {config.highest:g}"
            return _fault(OUT_OF_RANGE, f"the rating for {name!r} is {value:g}, {limits}")
        ratings.append(value)
    return Filled([tuple(ratings)])


def _fault(code: str, message: str) -> Filled[Ratings]:
    return Filled(fault=code, message=f"{code}: {message}")


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, whatever is around them."""
    decoder, place = json.JSONDecoder(), 0
    for _ in range(TRIED):
        place = text.find("{", place)
        if place < 0:
            return
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
            continue
        if isinstance(value, dict):
            yield value


def _number(value: Any, highest: float) -> float | None:
    """A rating that is a number, or a text such as `7` or, with 10 as the best rating, `7/10`."""
    if isinstance(value, str) and (match := _NUMBER.fullmatch(value)) is not None:
        of = None if match[2] is None else float(match[2])
        return float(match[1]) if of is None or of == highest else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
