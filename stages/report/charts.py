"""Curves of a training as coordinates for the report's template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

POINTS = 400
"""Maximum number of points of a curve. More points are averaged in groups of equal size."""


@dataclass(frozen=True)
class Tick:
    """A label and its position on its axis, in percent from the left or the top."""

    label: str
    at: float


@dataclass(frozen=True)
class Curve:
    """A curve in a box of 100×100, (0, 0) its upper left corner."""

    raw: str
    """SVG path of the values."""
    smooth: str
    """SVG path of their running mean."""
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    last: float
    """The running mean at the end."""


def curve(points: Sequence[tuple[int, float]]) -> Curve | None:
    """A curve of (step, value) in order of steps; None of fewer than two finite points.

    The running mean is over a twentieth of the curve around each point. The axis leaves out the highest 2 % of the
    values, so that a few outliers at the start do not flatten the rest.
    """
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if len(finite) < 2:
        return None
    thinned = _thinned(finite)
    half = max(1, len(thinned) // 40)
    windows = [thinned[max(0, index - half) : index + half + 1] for index in range(len(thinned))]
    smooth = [(step, _mean([v for _, v in near])) for (step, _), near in zip(thinned, windows, strict=True)]
    ordered = sorted(value for _, value in thinned)
    top = ordered[math.ceil(len(ordered) * 0.98) - 1]
    y = _ticks(ordered[0], top)
    low, high = y[0], y[-1]
    first, last = finite[0][0], finite[-1][0]

    def path(line: Sequence[tuple[float, float]]) -> str:
        places = (
            f"{(step - first) / (last - first) * 100:.2f} {(high - min(value, high)) / (high - low) * 100:.2f}"
            for step, value in line
        )
        return "M" + " L".join(places)

    x = [tick for tick in _ticks(first, last) if first <= tick <= last]
    return Curve(
        raw=path(thinned),
        smooth=path(smooth),
        x=tuple(Tick(f"{tick:,.0f}", round((tick - first) / (last - first) * 100, 2)) for tick in x),
        y=tuple(Tick(f"{tick:.4g}", round((high - tick) / (high - low) * 100, 2)) for tick in y),
        last=smooth[-1][1],
    )


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    size = -(-len(points) // POINTS)
    groups = [points[begin : begin + size] for begin in range(0, len(points), size)]
    return [(_mean([step for step, _ in group]), _mean([value for _, value in group])) for group in groups]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six evenly spaced round numbers that enclose [low, high]."""
    span = high - low or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= span / 4)
    begin, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(begin, max(end, begin + 1) + 1)]
