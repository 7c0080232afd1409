"""How well several judges agree: Krippendorff's alpha.

Source: K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), University of Pennsylvania, sections C
(any number of judges, missing answers) and D (other levels of measurement).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(
    units: Iterable[Sequence[Hashable]], level: Level = "nominal", values: Sequence[Hashable] | None = None
) -> float | None:
    """Krippendorff's alpha: 1 for perfect agreement, 0 for that of chance, below 0 for less.

    Args:
        units: for each thing that was judged, the answers that it got, in any order. Those with fewer than two answers
            do not count.
        level: nominal: two answers are equal or not. ordinal: answers have an order. interval: they are numbers.
        values: all possible answers, in order. By default those that occur, sorted.

    Returns:
        None if nothing has two answers, or if all answers are the same: agreement is then not defined.
    """
    judged = [list(unit) for unit in units if len(unit) > 1]
    if values is None:
        values = sorted({answer for unit in judged for answer in unit})  # type: ignore[type-var]
    places = {value: place for place, value in enumerate(values)}
    coincidences = np.zeros((len(values), len(values)))
    for unit in judged:
        counts = np.bincount([places[answer] for answer in unit], minlength=len(values)).astype(float)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = coincidences.sum(axis=1)
    differences = _DIFFERENCES[level](totals, values)
    expected = float(totals @ differences @ totals)
    if expected == 0:
        return None
    return 1 - (float(totals.sum()) - 1) * float((coincidences * differences).sum()) / expected


def _nominal(totals: NDArray[np.float64], values: Sequence[Hashable]) -> NDArray[np.float64]:
    return 1 - np.eye(len(values))


def _ordinal(totals: NDArray[np.float64], values: Sequence[Hashable]) -> NDArray[np.float64]:
    # the answers between two values, each of the two by half
    middles = np.cumsum(totals) - totals / 2
    return np.subtract.outer(middles, middles) ** 2


def _interval(totals: NDArray[np.float64], values: Sequence[Hashable]) -> NDArray[np.float64]:
    numbers = np.array(values, dtype=np.float64)
    return np.subtract.outer(numbers, numbers) ** 2


_DIFFERENCES: dict[Level, Callable[[NDArray[np.float64], Sequence[Hashable]], NDArray[np.float64]]] = {
    "nominal": _nominal,
    "ordinal": _ordinal,
    "interval": _interval,
}
