"""Figures as SVG: points with intervals, and curves. They need no style sheet and are white below."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from bootpig.stages.report.charts import ticks as round_ticks

WIDTH = 760
ROW = 26
COLOURS = ("#2563eb", "#c2410c", "#15803d", "#7c3aed", "#a16207")


@dataclass(frozen=True)
class Point:
    """A measured mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def points(title: str, axis: str, rows: Sequence[tuple[str, Point | None]]) -> str:
    """One row per label, with a mean and its interval. None: not measured.

    Args:
        title: title of the figure.
        axis: what is measured.
        rows: label and value, from top to bottom.
    """
    known = [value for _, value in rows if value is not None]
    ticks = round_ticks(min((p.low for p in known), default=0.0), max((p.high for p in known), default=1.0))
    left, top, right = 270, 44, 30
    width, height = WIDTH - left - right, ROW * len(rows)
    low, high = ticks[0], ticks[-1]

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * width

    parts = _head(title, top + height + 44)
    for tick in ticks:
        parts.append(f'<path d="M{x(tick):.1f} {top} V{top + height}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{top + height + 16}" text-anchor="middle">{tick:.4g}</text>')
    parts.append(f'<text x="{left + width / 2:.0f}" y="{top + height + 34}" text-anchor="middle">{escape(axis)}</text>')
    for number, (label, value) in enumerate(rows):
        y = top + ROW * (number + 0.5)
        parts.append(f'<text x="{left - 10}" y="{y + 4:.1f}" text-anchor="end" fill="#111">{escape(label)}</text>')
        if value is None:
            parts.append(f'<text x="{left + 6}" y="{y + 4:.1f}" font-style="italic">not measured</text>')
            continue
        ends = f"M{x(value.low):.1f} {y:.1f} H{x(value.high):.1f}"
        parts.append(f'<path d="{ends}" stroke="{COLOURS[0]}" stroke-width="2"/>')
        parts.append(f'<circle cx="{x(value.mean):.1f}" cy="{y:.1f}" r="4" fill="{COLOURS[0]}"/>')
    return "".join([*parts, "</svg>\n"])


def curves(title: str, x_axis: str, y_axis: str, lines: Mapping[str, Sequence[tuple[float, Point]]]) -> str:
    """Curves of means with intervals over positive numbers on a logarithmic axis.

    Args:
        title: title of the figure.
        x_axis, y_axis: what is on the axes.
        lines: name → (x, value), by rising x.
    """
    known = [pair for line in lines.values() for pair in line]
    places = sorted({place for place, _ in known}) or [1.0]
    ticks = round_ticks(min((p.low for _, p in known), default=0.0), max((p.high for _, p in known), default=1.0))
    left, top, right, height = 70, 44, 190, 260
    width = WIDTH - left - right
    first, last = math.log(places[0]), math.log(places[-1])

    def x(place: float) -> float:
        return left + (width / 2 if last == first else (math.log(place) - first) / (last - first) * width)

    def y(value: float) -> float:
        return top + (ticks[-1] - value) / (ticks[-1] - ticks[0]) * height

    parts = _head(title, top + height + 50)
    for tick in ticks:
        parts.append(f'<path d="M{left} {y(tick):.1f} H{left + width}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for place in places:
        parts.append(f'<text x="{x(place):.1f}" y="{top + height + 18}" text-anchor="middle">{place:,.6g}</text>')
    middle = left + width / 2
    parts.append(f'<text x="{middle:.0f}" y="{top + height + 38}" text-anchor="middle">{escape(x_axis)}</text>')
    parts.append(f'<text x="{left}" y="{top - 8}">{escape(y_axis)}</text>')
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " L".join(f"{x(place):.1f} {y(value.mean):.1f}" for place, value in line)
        if len(line) > 1:
            parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for place, value in line:
            bar = f"M{x(place):.1f} {y(value.low):.1f} V{y(value.high):.1f}"
            parts.append(f'<path d="{bar}" stroke="{colour}" stroke-width="1.5"/>')
            parts.append(f'<circle cx="{x(place):.1f}" cy="{y(value.mean):.1f}" r="4" fill="{colour}"/>')
        at = top + 10 + 20 * number
        parts.append(f'<circle cx="{left + width + 22}" cy="{at}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{left + width + 32}" y="{at + 4}">{escape(name)}</text>')
    return "".join([*parts, "</svg>\n"])


def _head(title: str, height: int) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12" fill="#555"><rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="14" y="22" font-size="14" font-weight="bold" fill="#111">{escape(title)}</text>'
    ]
