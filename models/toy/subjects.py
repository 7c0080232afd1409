"""Draws the twelve kinds of subject. Each identity has its own random colours, pattern and proportions."""

from __future__ import annotations

import colorsys
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

CANVAS = 160
"""Side in pixels of the canvas for a subject, before it is scaled into a scene."""

PATTERNS = ("plain", "plain", "halves", "bands_across", "bands_down", "dots", "checks")

Colour = tuple[int, int, int]

HUES = 12
NEAR_WHITE, NEAR_BLACK = HUES, HUES + 1


@dataclass(frozen=True)
class Look:
    """An identity's colours and pattern. A colour is a hue, counted from 0, or `NEAR_WHITE` or `NEAR_BLACK`."""

    colour: int
    second: int
    """The pattern's colour; not visible if the pattern is `plain`."""
    accent: int
    """The colour of handles, roofs, fins; a ball has none."""
    pattern: str
    """One of `PATTERNS`."""


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * r), round(255 * g), round(255 * b)


def _draw_colour(rng: random.Random, away_from: int | None = None) -> tuple[int, Colour]:
    """A random colour: one of 12 hues with jitter, near-white or near-black; at least 3 steps from `away_from`."""
    while True:
        index = rng.randrange(HUES + 2)
        if away_from is None:
            break
        apart = abs(index - away_from)
        if index < HUES and away_from < HUES:
            apart = min(apart, HUES - apart)
        elif index != away_from:
            apart = HUES  # near-white and near-black are far from all other colours
        if apart >= 3:
            break
    if index == NEAR_WHITE:
        return index, _rgb(0, 0, rng.uniform(0.90, 0.97))
    if index == NEAR_BLACK:
        return index, _rgb(0, 0, rng.uniform(0.12, 0.20))
    return index, _rgb(index / HUES + rng.uniform(-0.015, 0.015), rng.uniform(0.75, 0.95), rng.uniform(0.78, 0.95))


class Sketch:
    """Canvas and colours for drawing one identity: RGBA image, body pattern, accent colour, dark colour.

    `body` fills a shape with the pattern. Shapes are functions of an `ImageDraw` and a fill value.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        first, self.colour = _draw_colour(rng)
        second, self.second = _draw_colour(rng, away_from=first)
        accent, self.accent = _draw_colour(rng)
        self.dark: Colour = tuple(int(channel * 0.35) for channel in self.colour)  # type: ignore[assignment]
        pattern = rng.choice(PATTERNS)
        self.look = Look(first, second, accent, pattern)
        self.texture = self._pattern(pattern, CANVAS // rng.choice((4, 5)))
        self.image = Image.new("RGBA", (CANVAS, CANVAS), (0, 0, 0, 0))

    def _pattern(self, name: str, period: int) -> Image.Image:
        texture = Image.new("RGB", (CANVAS, CANVAS), self.colour)
        draw, fill = ImageDraw.Draw(texture), self.second
        starts = range(0, CANVAS + period, period)
        if name == "halves":
            draw.rectangle((0, int(CANVAS * 0.58), CANVAS, CANVAS), fill=fill)
        elif name == "bands_across":
            for y in starts[::2]:
                draw.rectangle((0, y, CANVAS, y + period), fill=fill)
        elif name == "bands_down":
            for x in starts[::2]:
                draw.rectangle((x, 0, x + period, CANVAS), fill=fill)
        elif name == "dots":
            radius = period * 0.42
            for row, y in enumerate(starts):
                for x in starts[row % 2 :: 2]:
                    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        elif name == "checks":
            for row, y in enumerate(starts):
                for x in starts[row % 2 :: 2]:
                    draw.rectangle((x, y, x + period - 1, y + period - 1), fill=fill)
        return texture

    def between(self, low: float, high: float) -> float:
        """A random size of this identity in canvas pixels."""
        return self.rng.uniform(low, high)

    def body(self, shape: Callable[[ImageDraw.ImageDraw, int], object]) -> None:
        stencil = Image.new("L", (CANVAS, CANVAS), 0)
        shape(ImageDraw.Draw(stencil), 255)
        self.image.paste(self.texture, (0, 0), stencil)

    def ellipse(self, box: Sequence[float], fill: Colour | None = None, ring: Colour | None = None) -> None:
        ImageDraw.Draw(self.image).ellipse(tuple(box), fill=fill, outline=ring, width=9 if ring else 0)

    def rectangle(self, box: Sequence[float], fill: Colour, radius: float = 0) -> None:
        ImageDraw.Draw(self.image).rounded_rectangle(tuple(box), radius, fill=fill)

    def polygon(self, points: Sequence[tuple[float, float]], fill: Colour) -> None:
        ImageDraw.Draw(self.image).polygon(list(points), fill=fill)

    def line(self, points: Sequence[tuple[float, float]], fill: Colour, width: int) -> None:
        ImageDraw.Draw(self.image).line(list(points), fill=fill, width=width)


def _mug(s: Sketch) -> None:
    w, h = s.between(34, 46), s.between(44, 60)
    s.ellipse((66 + w, 58, 106 + w, 102), ring=s.accent)
    s.body(lambda d, f: d.rounded_rectangle((80 - w, 80 - h, 80 + w, 80 + h), 10, fill=f))
    s.ellipse((80 - w, 72 - h, 80 + w, 88 - h), s.dark)


def _vase(s: Sketch) -> None:
    w, n = s.between(30, 50), s.between(12, 22)

    def shape(d: ImageDraw.ImageDraw, f: int) -> None:
        d.ellipse((80 - w, 60, 80 + w, 150), fill=f)
        d.polygon([(80 - n, 15), (80 + n, 15), (80 + n * 0.8, 80), (80 - n * 0.8, 80)], fill=f)

    s.body(shape)
    s.ellipse((74 - n, 8, 86 + n, 24), s.accent)


def _ball(s: Sketch) -> None:
    r = s.between(50, 66)
    s.body(lambda d, f: d.ellipse((80 - r, 80 - r, 80 + r, 80 + r), fill=f))


def _house(s: Sketch) -> None:
    w, top = s.between(44, 58), s.between(10, 26)
    s.body(lambda d, f: d.rectangle((80 - w, 70, 80 + w, 146), fill=f))
    s.polygon([(68 - w, 72), (92 + w, 72), (80, top)], s.accent)
    s.rectangle((70, 105, 92, 146), s.dark)


def _car(s: Sketch) -> None:
    roof = s.between(34, 48)

    def shape(d: ImageDraw.ImageDraw, f: int) -> None:
        d.rounded_rectangle((8, 70, 152, 116), 14, fill=f)
        d.polygon([(36, 72), (56, roof), (108, roof), (130, 72)], fill=f)

    s.body(shape)
    s.polygon([(58, 68), (67, roof + 8), (99, roof + 8), (112, 68)], (190, 225, 240))
    for x in (24, 98):
        s.ellipse((x, 96, x + 38, 134), (30, 30, 34))
        s.ellipse((x + 11, 107, x + 27, 123), s.accent)


def _fish(s: Sketch) -> None:
    h = s.between(30, 46)
    s.polygon([(116, 80), (154, 80 - h), (154, 80 + h)], s.accent)
    s.body(lambda d, f: d.ellipse((6, 80 - h, 128, 80 + h), fill=f))
    s.ellipse((26, 62, 44, 80), (250, 250, 250))
    s.ellipse((30, 66, 40, 76), (20, 20, 20))


def _umbrella(s: Sketch) -> None:
    depth = s.between(120, 160)
    s.rectangle((76, 60, 84, 142), s.dark)
    ImageDraw.Draw(s.image).arc((76, 125, 104, 154), 0, 180, fill=s.dark, width=8)
    s.body(lambda d, f: d.pieslice((8, 10, 152, 10 + depth), 180, 360, fill=f))
    s.ellipse((73, 0, 87, 14), s.accent)


def _teapot(s: Sketch) -> None:
    r = s.between(38, 50)
    s.polygon([(108, 92), (150, 50), (159, 62), (116, 118)], s.accent)
    s.ellipse((4, 60, 58, 120), ring=s.accent)
    s.body(lambda d, f: d.ellipse((74 - r, 92 - r, 86 + r, 92 + r), fill=f))
    s.ellipse((54, 84 - r, 106, 100 - r), s.dark)
    s.ellipse((71, 68 - r, 89, 86 - r), s.accent)


def _boot(s: Sketch) -> None:
    top, toe = s.between(12, 34), s.between(130, 150)

    def shape(d: ImageDraw.ImageDraw, f: int) -> None:
        d.rectangle((46, top, 100, 128), fill=f)
        d.rounded_rectangle((46, 84, toe, 134), 20, fill=f)

    s.body(shape)
    s.rectangle((44, 129, toe, 145), s.dark)
    s.rectangle((42, top - 2, 104, top + 17), s.accent)


def _robot(s: Sketch) -> None:
    w = s.between(34, 46)
    for x in (80 - w - 21, 80 + w + 2):
        s.rectangle((x, 76, x + 19, 122), s.dark)
    for x in (52, 88):
        s.rectangle((x, 138, x + 20, 157), s.dark)
    s.rectangle((77, 4, 83, 24), s.dark)
    s.body(lambda d, f: d.rounded_rectangle((80 - w, 70, 80 + w, 142), 8, fill=f))
    s.rectangle((48, 20, 112, 66), s.accent, radius=8)
    for x in (58, 86):
        s.ellipse((x, 33, x + 17, 50), (255, 255, 255))


def _balloon(s: Sketch) -> None:
    r = s.between(44, 56)
    for x, end in ((80 - r * 0.6, 66), (80 + r * 0.6, 94)):
        s.line([(x, 94), (end, 132)], s.dark, 4)
    s.body(lambda d, f: d.ellipse((80 - r, 4, 80 + r, 112), fill=f))
    s.rectangle((60, 126, 100, 156), s.accent, radius=4)


def _mushroom(s: Sketch) -> None:
    w, stem = s.between(50, 70), s.between(16, 26)
    s.rectangle((80 - stem, 74, 80 + stem, 150), (240, 228, 205), radius=12)
    s.body(lambda d, f: d.pieslice((80 - w, 12, 80 + w, 142), 180, 360, fill=f))
    s.rectangle((84 - w, 75, 76 + w, 83), s.accent)


DRAWERS: dict[str, Callable[[Sketch], None]] = {
    "mug": _mug,
    "vase": _vase,
    "ball": _ball,
    "house": _house,
    "car": _car,
    "fish": _fish,
    "umbrella": _umbrella,
    "teapot": _teapot,
    "boot": _boot,
    "robot": _robot,
    "balloon": _balloon,
    "mushroom": _mushroom,
}

KINDS = tuple(DRAWERS)


def look_of(kind: str, identity: int) -> Look:
    """The look of an identity that `render_subject` draws. `kind` is one of `KINDS`."""
    return Sketch(_draws(kind, identity)).look


def _draws(kind: str, identity: int) -> random.Random:
    return random.Random(f"subject/{kind}/{identity}")


def render_subject(kind: str, identity: int) -> Image.Image:
    """Draw one identity on a transparent canvas, lit from the upper left.

    Args:
        kind: one of `KINDS`.
        identity: any integer; together with `kind` it determines colours, pattern and proportions.

    Returns:
        RGBA, `CANVAS`×`CANVAS`.

    Raises:
        ValueError: `kind` is not one of `KINDS`.
    """
    if kind not in DRAWERS:
        raise ValueError(f"kind: {kind!r} is not a kind of the toy world; choose one of {', '.join(KINDS)}")
    sketch = Sketch(_draws(kind, identity))
    DRAWERS[kind](sketch)
    pixels = np.asarray(sketch.image).astype(np.float32)
    y, x = np.mgrid[0:CANVAS, 0:CANVAS] / CANVAS
    pixels[..., :3] *= (1.12 - 0.175 * (x + y))[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGBA")
