"""Renders the toy world: seeded 64×64 pictures of one subject in one scene, with mask, box, caption and identity.

A caption specifies kind, position and scene, but not the subject's colours, pattern or proportions, which can only be
seen in a reference. This is the personalization problem, with ground truth. Identities are split by hash; the
`held_out` ones are in no training data.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from bootpig.models.toy.scenes import SCENES, SIDE, render_backdrop
from bootpig.models.toy.subjects import KINDS, render_subject

__all__ = [
    "KINDS",
    "POSITIONS",
    "SCENES",
    "SIZE",
    "Scene",
    "Split",
    "caption",
    "draw_identity",
    "render_reference",
    "render_scene",
    "render_subject",
    "split_of",
    "with_article",
]

SIZE = 64
"""Side of every picture, in pixels."""

POSITIONS = ("on the left", "in the center", "on the right")
_CENTRES = {"on the left": 0.30, "in the center": 0.50, "on the right": 0.70}
_MARGIN = 4  # on the canvas of SIDE pixels; subjects never touch the frame

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Scene:
    """A picture of the toy world with its ground truth."""

    image: np.ndarray
    """HWC uint8 RGB, 64×64."""
    mask: np.ndarray
    """HW bool, 64×64: the subject, without its shadow."""
    box: tuple[int, int, int, int]
    """xyxy pixels of the mask, right and bottom exclusive."""
    caption: str
    kind: str
    identity: int
    position: str
    scene: str


def split_of(kind: str, identity: int) -> Split:
    """The split of an identity. One in eight is held out."""
    return "held_out" if hashlib.sha256(f"{kind}/{identity}".encode()).digest()[0] < 32 else "train"


def draw_identity(rng: random.Random, kind: str, split: Split) -> int:
    """Draw an identity of `kind` that belongs to `split`."""
    while True:
        identity = rng.randrange(1 << 30)
        if split_of(kind, identity) == split:
            return identity


def with_article(kind: str) -> str:
    """`a mug`, `an umbrella`."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def caption(kind: str, position: str, scene: str) -> str:
    """The caption grammar: `A photo of a teapot, on the left on a sandy beach`."""
    return f"A photo of {with_article(kind)}, {position} {scene}"


def render_reference(kind: str, identity: int, fill: float = 0.8) -> Image.Image:
    """A subject on white: RGB, 64×64. `fill` is the side of the subject's canvas as a fraction of the picture's."""
    side = round(SIDE * fill)
    subject = render_subject(kind, identity).resize((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    canvas.paste(subject, ((SIDE - side) // 2, (SIDE - side) // 2), subject)
    return canvas.resize((SIZE, SIZE), Image.Resampling.BOX)


def render_scene(
    seed: int | str,
    split: Split = "train",
    *,
    kind: str | None = None,
    identity: int | None = None,
    position: str | None = None,
    scene: str | None = None,
) -> Scene:
    """Render one picture. Arguments that are not given are drawn at random, seeded by `seed`.

    Raises:
        ValueError: unknown kind, position or scene.
    """
    rng = random.Random(f"scene/{split}/{seed}")
    kind = kind or rng.choice(KINDS)
    identity = draw_identity(rng, kind, split) if identity is None else identity
    scene = scene or rng.choice(SCENES)
    position = position or rng.choice(POSITIONS)
    if position not in _CENTRES:
        raise ValueError(f"position: {position!r} is not a position of the toy world; choose one of {POSITIONS}")

    picture = render_backdrop(scene, rng)
    side = int(SIDE * rng.uniform(0.56, 0.68))
    subject = render_subject(kind, identity).resize((side, side), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        subject = subject.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    centre_x = (_CENTRES[position] + rng.uniform(-0.02, 0.02)) * SIDE
    centre_y = rng.uniform(0.54, 0.62) * SIDE
    x, y = (max(_MARGIN, min(SIDE - side - _MARGIN, int(c - side / 2))) for c in (centre_x, centre_y))

    shadow = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(shadow).ellipse((x + side * 0.15, y + side * 0.88, x + side * 0.85, y + side * 1.02), fill=90)
    picture.paste((20, 20, 25), (0, 0), shadow.filter(ImageFilter.GaussianBlur(6)))
    picture.paste(subject, (x, y), subject)
    cover = Image.new("L", (SIDE, SIDE), 0)
    cover.paste(subject.getchannel("A"), (x, y))

    mask = np.asarray(cover.resize((SIZE, SIZE), Image.Resampling.BOX)) >= 128
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return Scene(
        image=np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX)),
        mask=mask,
        box=(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1),
        caption=caption(kind, position, scene),
        kind=kind,
        identity=identity,
        position=position,
        scene=scene,
    )
