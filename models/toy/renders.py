"""Renders pictures of the toy world as arrays, in parallel, and caches them in the work folder."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bootpig.models.toy.world import KINDS, POSITIONS, SCENES, SIZE, Split, draw_identity, render_scene, render_subject


@dataclass(frozen=True)
class Renders:
    """N pictures of the toy world, one array per property."""

    images: np.ndarray
    """NHWC uint8."""
    masks: np.ndarray
    """NHW bool."""
    boxes: np.ndarray
    """N×4 int64, xyxy pixels."""
    kinds: np.ndarray
    """N int64, index into KINDS."""
    positions: np.ndarray
    scenes: np.ndarray
    identities: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def white_reference(kind: str, identity: int, rng: random.Random) -> np.ndarray:
    """A subject on white with random size, position and flip: HWC uint8, 64×64."""
    side = round(SIZE * 4 * rng.uniform(0.5, 1.0))
    subject = render_subject(kind, identity).resize((side, side), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        subject = subject.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    canvas = Image.new("RGB", (SIZE * 4, SIZE * 4), (255, 255, 255))
    canvas.paste(subject, (rng.randint(0, 4 * SIZE - side), rng.randint(0, 4 * SIZE - side)), subject)
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX))


def _row(task: tuple[str, Split, bool, int]) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    name, split, paired, index = task
    if paired:  # consecutive pairs show one identity in two scenes
        rng = random.Random(f"{name}/pair/{index // 2}")
        kind = rng.choice(KINDS)
        scene = render_scene(f"{name}/{index}", split, kind=kind, identity=draw_identity(rng, kind, split))
    else:
        scene = render_scene(f"{name}/{index}", split)
    facts = (
        *scene.box,
        KINDS.index(scene.kind),
        POSITIONS.index(scene.position),
        SCENES.index(scene.scene),
        scene.identity,
    )
    return scene.image, scene.mask, facts


def _white(task: tuple[str, Split, bool, int]) -> np.ndarray:
    name, split, _, index = task
    rng = random.Random(f"{name}/white/{index}")
    kind = rng.choice(KINDS)
    return white_reference(kind, draw_identity(rng, kind, split), rng)


def _parallel(function: Callable[[Any], Any], tasks: list[Any]) -> list[Any]:
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        return list(pool.map(function, tasks, chunksize=64))


def scenes(name: str, count: int, split: Split, work: Path, *, paired: bool = False) -> Renders:
    """`count` scenes of `split`. With `paired`, consecutive pairs show the same identity."""
    file = work / f"renders-{name}-{count}-{split}{'-paired' if paired else ''}.npz"
    if not file.exists():
        print(f"rendering {count} scenes ({name}, {split})", flush=True)
        rows = _parallel(_row, [(name, split, paired, i) for i in range(count)])
        images, masks, facts = (np.array(column) for column in zip(*rows, strict=True))
        partial = file.with_suffix(".tmp.npz")
        np.savez(partial, images=images, masks=masks, facts=facts)
        partial.replace(file)
    with np.load(file) as stored:
        facts = stored["facts"]
        return Renders(
            images=stored["images"],
            masks=stored["masks"],
            boxes=facts[:, :4],
            kinds=facts[:, 4],
            positions=facts[:, 5],
            scenes=facts[:, 6],
            identities=facts[:, 7],
        )


def whites(name: str, count: int, split: Split, work: Path) -> np.ndarray:
    """`count` subjects of `split` on white: NHWC uint8."""
    file = work / f"whites-{name}-{count}-{split}.npy"
    if not file.exists():
        print(f"rendering {count} subjects on white ({name}, {split})", flush=True)
        partial = file.with_suffix(".tmp.npy")
        np.save(partial, np.array(_parallel(_white, [(name, split, False, i) for i in range(count)])))
        partial.replace(file)
    return np.load(file)
