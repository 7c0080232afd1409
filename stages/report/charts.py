"""Curves of a training: as coordinates for the report's template, and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from bootpig.stages.train.curves import CHARTS, Chart

POINTS = 400
"""Maximum number of points of a curve. More points are averaged in groups of equal size."""

COLUMNS = 2
PANEL_WIDTH, PANEL_HEIGHT = 420, 220
"""Of a chart in a picture, in pixels."""


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
    """A curve of (step, value) in order of steps; None of fewer than two finite points at different steps.

    The running mean is over a twentieth of the curve around each point. The axis leaves out the highest 2 % of the
    values, so that a few outliers at the start do not flatten the rest.
    """
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if len(finite) < 2 or finite[0][0] == finite[-1][0]:
        return None
    thinned = _thinned(finite)
    half = max(1, len(thinned) // 40)
    windows = [thinned[max(0, index - half) : index + half + 1] for index in range(len(thinned))]
    smooth = [(step, _mean([v for _, v in near])) for (step, _), near in zip(thinned, windows, strict=True)]
    ordered = sorted(value for _, value in thinned)
    top = ordered[math.ceil(len(ordered) * 0.98) - 1]
    y = ticks(ordered[0], top)
    low, high = y[0], y[-1]
    first, last = finite[0][0], finite[-1][0]

    def path(line: Sequence[tuple[float, float]]) -> str:
        places = (
            f"{(step - first) / (last - first) * 100:.2f} {(high - min(value, high)) / (high - low) * 100:.2f}"
            for step, value in line
        )
        return "M" + " L".join(places)

    x = [tick for tick in ticks(first, last) if first <= tick <= last]
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


def ticks(low: float, high: float) -> list[float]:
    """Three to six evenly spaced round numbers that enclose [low, high]."""
    span = high - low or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= span / 4)
    begin, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(begin, max(end, begin + 1) + 1)]


def charts(curves: Mapping[str, Sequence[tuple[int, float]]]) -> list[tuple[Chart, Curve]]:
    """The charts of a training's values by name, without those that make no curve."""
    drawn = [(chart, curve(curves.get(name, ()))) for name, chart in CHARTS.items()]
    return [(chart, line) for chart, line in drawn if line is not None]


def picture(drawn: Sequence[tuple[Chart, Curve]]) -> str:
    """Charts as one SVG picture, `COLUMNS` beside each other; it needs no style sheet and is white below."""
    rows = -(-len(drawn) // COLUMNS)
    size = f"{COLUMNS * PANEL_WIDTH} {rows * PANEL_HEIGHT}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" width="{COLUMNS * PANEL_WIDTH}" '
        f'height="{rows * PANEL_HEIGHT}" font-family="sans-serif" font-size="11" fill="#555">'
        '<rect width="100%" height="100%" fill="#fff"/>'
    ]
    width, height = PANEL_WIDTH - 90, PANEL_HEIGHT - 70  # of a plot; labels are left of it and below
    for number, (chart, line) in enumerate(drawn):
        left, top = number % COLUMNS * PANEL_WIDTH + 64, number // COLUMNS * PANEL_HEIGHT + 36
        parts.append(f'<g transform="translate({left} {top})">')
        parts.append(f'<text y="-14" font-size="13" font-weight="bold" fill="#111">{escape(chart.title)}</text>')
        for tick in line.y:
            y = tick.at / 100 * height
            parts.append(f'<path d="M0 {y:.1f} H{width}" stroke="#ddd"/>')
            parts.append(f'<text x="-8" y="{y + 4:.1f}" text-anchor="end">{tick.label}</text>')
        for tick in line.x:
            parts.append(
                f'<text x="{tick.at / 100 * width:.1f}" y="{height + 18}" text-anchor="middle">{tick.label}</text>'
            )
        parts.append(f'<g transform="scale({width / 100} {height / 100})" fill="none" stroke="#2563eb">')
        for path, opacity, stroke in ((line.raw, 0.3, 1), (line.smooth, 1, 2)):
            style = f'stroke-opacity="{opacity}" stroke-width="{stroke}" vector-effect="non-scaling-stroke"'
            parts.append(f'<path d="{path}" {style}/>')
        parts.append("</g></g>")
    return "".join([*parts, "</svg>"])
