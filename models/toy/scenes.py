"""Draws the eight scenes of the toy world, with random horizon, colours and small details."""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image, ImageDraw

SIDE = 256
"""Side in pixels of the canvas for a scene: four times that of the picture, averaged down at the end."""

Colour = tuple[int, int, int]


class Backdrop:
    """The canvas of a scene, with its horizon and random colours."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.image = Image.new("RGB", (SIDE, SIDE))
        self.draw = ImageDraw.Draw(self.image)
        self.horizon = int(SIDE * rng.uniform(0.50, 0.66))

    def tone(self, r: int, g: int, b: int, spread: int = 14) -> Colour:
        jitter = [max(0, min(255, channel + self.rng.randint(-spread, spread))) for channel in (r, g, b)]
        return jitter[0], jitter[1], jitter[2]

    def gradient(self, top: Colour, bottom: Colour, y0: int, y1: int) -> None:
        for y in range(y0, y1):
            t = (y - y0) / max(1, y1 - y0)
            self.draw.line(
                [(0, y), (SIDE, y)], fill=tuple(int(a + (b - a) * t) for a, b in zip(top, bottom, strict=True))
            )

    def ground(self, colour: Colour) -> None:
        self.draw.rectangle((0, self.horizon, SIDE, SIDE), fill=colour)

    def specks(self, count: int, y0: int, y1: int, radius: int, colours: list[Colour]) -> None:
        for _ in range(count):
            x, y = self.rng.randint(0, SIDE), self.rng.randint(y0, y1)
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=self.rng.choice(colours))


def _table(b: Backdrop) -> None:
    b.gradient(b.tone(232, 222, 205), b.tone(214, 200, 180), 0, b.horizon)
    base = b.tone(150, 98, 52)
    for y in range(b.horizon, SIDE, 14):
        b.draw.rectangle((0, y, SIDE, y + 12), fill=b.tone(*base, 8))
        b.draw.line([(0, y + 13), (SIDE, y + 13)], fill=tuple(int(c * 0.6) for c in base), width=2)


def _beach(b: Backdrop) -> None:
    b.gradient(b.tone(120, 190, 235), b.tone(190, 225, 245), 0, b.horizon - 30)
    b.draw.rectangle((0, b.horizon - 30, SIDE, b.horizon), fill=b.tone(40, 130, 180))
    b.gradient(b.tone(240, 220, 165), b.tone(225, 195, 130), b.horizon, SIDE)


def _meadow(b: Backdrop) -> None:
    b.gradient(b.tone(130, 195, 240), b.tone(205, 230, 248), 0, b.horizon)
    b.gradient(b.tone(110, 185, 75), b.tone(60, 130, 50), b.horizon, SIDE)
    b.specks(14, b.horizon + 5, SIDE, 3, [(255, 255, 255), (250, 220, 60)])


def _snow(b: Backdrop) -> None:
    b.gradient(b.tone(150, 175, 208), b.tone(205, 220, 236), 0, SIDE)
    b.draw.ellipse((-SIDE, b.horizon - 6, 2 * SIDE, b.horizon + 3 * SIDE), fill=b.tone(243, 247, 252, 6))
    b.specks(12, 0, SIDE, 2, [(255, 255, 255)])


def _night(b: Backdrop) -> None:
    b.gradient(b.tone(14, 16, 50), b.tone(46, 44, 96), 0, b.horizon)
    b.ground(b.tone(24, 32, 38, 6))
    b.specks(16, 0, b.horizon, 2, [(250, 248, 215)])


def _bricks(b: Backdrop) -> None:
    brick = b.tone(165, 72, 55)
    b.draw.rectangle((0, 0, SIDE, SIDE), fill=(205, 190, 178))
    for row, y in enumerate(range(0, b.horizon + 20, 20)):
        for x in range(-40 + (row % 2) * 20, SIDE, 40):
            b.draw.rectangle((x + 2, y + 2, x + 37, y + 17), fill=b.tone(*brick, 10))
    b.draw.rectangle((0, b.horizon + 20, SIDE, SIDE), fill=b.tone(150, 150, 150))


def _street(b: Backdrop) -> None:
    b.gradient(b.tone(250, 140, 70), b.tone(255, 205, 130), 0, b.horizon)
    x = 0
    while x < SIDE:
        width, height = b.rng.randint(24, 48), b.rng.randint(40, 110)
        b.draw.rectangle((x, b.horizon - height, x + width, b.horizon), fill=b.tone(70, 55, 80, 8))
        x += width + 4
    b.ground(b.tone(85, 82, 88))


def _carpet(b: Backdrop) -> None:
    b.gradient(b.tone(235, 228, 238), b.tone(222, 214, 226), 0, b.horizon)
    b.ground(b.tone(48, 84, 170))
    b.specks(60, b.horizon, SIDE, 1, [(80, 120, 200)])


PAINTERS: dict[str, Callable[[Backdrop], None]] = {
    "on a wooden table": _table,
    "on a sandy beach": _beach,
    "in a green meadow": _meadow,
    "on a snowy hill": _snow,
    "under a starry night sky": _night,
    "in front of a brick wall": _bricks,
    "on a city street at sunset": _street,
    "on a blue carpet": _carpet,
}

SCENES = tuple(PAINTERS)


def render_backdrop(scene: str, rng: random.Random) -> Image.Image:
    """Draw a scene without a subject: RGB, `SIDE`×`SIDE`. Advances `rng`.

    Raises:
        ValueError: `scene` is not one of `SCENES`.
    """
    if scene not in PAINTERS:
        raise ValueError(f"scene: {scene!r} is not a scene of the toy world; choose one of: {'; '.join(SCENES)}")
    backdrop = Backdrop(rng)
    PAINTERS[scene](backdrop)
    return backdrop.image
