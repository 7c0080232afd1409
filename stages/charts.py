"""The loss curve as coordinates that a template draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

POINTS = 400
"""Points of a curve at most: more than that are averaged in even groups."""


@dataclass(frozen=True)
class Tick:
    """A label and its place along its axis, in percent from the left or the top."""

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


def loss_curve(points: Sequence[tuple[int, float]]) -> Curve | None:
    """A curve of (step, loss) in order of steps; None of fewer than two finite points.

    The running mean forgets over a thirtieth of the curve. The axis spans it and all but the highest 2 % of the values,
    so that a few outliers at the start do not flatten the rest.
    """
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if len(finite) < 2:
        return None
    thinned = _thinned(finite)
    keep = 1 - 1 / max(1.0, len(thinned) / 30)
    smooth, mean = [], thinned[0][1]
    for step, value in thinned:
        mean = keep * mean + (1 - keep) * value
        smooth.append((step, mean))
    ordered = sorted(value for _, value in thinned)
    top = max(ordered[math.ceil(len(ordered) * 0.98) - 1], max(value for _, value in smooth))
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
        last=mean,
    )


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    size = -(-len(points) // POINTS)
    groups = [points[begin : begin + size] for begin in range(0, len(points), size)]
    return [(sum(s for s, _ in group) / len(group), sum(v for _, v in group) / len(group)) for group in groups]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, evenly apart, that enclose [low, high]: three to six of them."""
    span = high - low or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= span / 4)
    begin, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(begin, max(end, begin + 1) + 1)]
