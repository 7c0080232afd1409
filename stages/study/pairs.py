"""Chooses the pairs of pictures that judges compare, and makes their pictures look alike in all but what they show."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from bootpig.stages.engine.contract import InputError
from bootpig.stages.picture_files.reader import on_white, read_picture
from bootpig.stages.study.evaluations import Contestant, Evaluation, Shown

LARGEST = 1024
"""Maximum side of a picture that judges see, in pixels."""
MOST_REFERENCES = 4
"""Maximum number of references that judges see."""
THUMBNAIL = 16
"""Side of the pictures by which references are compared, in pixels."""
MOST_APART = 12.0
"""Mean absolute difference of two thumbnails of one reference, from 0 to 255: pictures that were scaled to other sizes
differ by less than 3."""


@dataclass(frozen=True)
class Pair:
    """Two pictures to compare: that of the first contestant, and that of another, by its place in the list."""

    other: int
    shown: Shown


def choose_pairs(found: Sequence[Contestant], count: int | None, seed: int) -> list[Pair]:
    """The pairs of the first contestant with each of the others.

    Args:
        found: the contestants.
        count: number of pairs with each of the others, drawn at random. None: all.
        seed: of the draw.

    Raises:
        InputError: a contestant has no common pair with the first, or fewer than `count`.
    """
    first, *others = found
    same: dict[tuple[int, str], bool] = {}
    pairs: list[Pair] = []
    for place, other in enumerate(others, 1):
        common = sorted(first.pictures.keys() & other.pictures.keys())
        for subject in {shown.subject for shown in common}:
            same[place, subject] = same_reference(first.evaluation, other.evaluation, subject)
        alike = [shown for shown in common if same[place, shown.subject]]
        if not alike:
            a, b = (f"{one.method} of {one.evaluation.label!r}" for one in (first, other))
            why = ", because their references show other subjects" if common else ""
            raise InputError(
                f"RUN: {a} and {b} → have no pair of pictures of one subject and caption{why}; evaluate both with the "
                "same evaluate.subjects and evaluate.prompts"
            )
        if count is not None:
            if count > len(alike):
                raise InputError(
                    f"--pairs: {count} → there are only {len(alike)} pairs with {other.method} of "
                    f"{other.evaluation.label!r}; give at most that many, or leave it out for all"
                )
            alike = sorted(random.Random(f"{seed}/{place}").sample(alike, count))
        pairs += [Pair(place, shown) for shown in alike]
    return pairs


def same_reference(a: Evaluation, b: Evaluation, subject: str) -> bool:
    """Whether two evaluations drew a subject from the same first reference, which may have been scaled."""
    if a is b:
        return bool(a.references(subject))
    thumbnails = []
    for evaluation in (a, b):
        names = evaluation.references(subject)[:1]
        if not names:
            return False
        picture = _read(evaluation.fetch(names) / names[0])
        thumbnails.append(np.asarray(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.float64))
    return float(np.abs(thumbnails[0] - thumbnails[1]).mean()) <= MOST_APART


@dataclass(frozen=True)
class PairFiles:
    """The files of a pair, by contestant, and of the subject's references, all in local folders."""

    first: Path
    other: Path
    references: tuple[Path, ...]


def pair_files(found: Sequence[Contestant], pairs: Sequence[Pair]) -> list[PairFiles]:
    """The files of `pairs`, fetched from where the evaluations are. Of each evaluation, all at once.

    Raises:
        InputError: a file is missing or damaged.
    """
    wanted: dict[int, set[str]] = {id(one.evaluation): set() for one in found}
    references: dict[str, list[str]] = {}
    for pair in pairs:
        subject = pair.shown.subject
        if subject not in references:
            references[subject] = found[0].evaluation.references(subject)[:MOST_REFERENCES]
            wanted[id(found[0].evaluation)].update(references[subject])
        for one in (found[0], found[pair.other]):
            wanted[id(one.evaluation)].add(one.pictures[pair.shown])
    folders: Mapping[int, Path] = {
        id(evaluation): evaluation.fetch(wanted[id(evaluation)])
        for evaluation in {id(one.evaluation): one.evaluation for one in found}.values()
    }

    def file(one: Contestant, name: str) -> Path:
        return folders[id(one.evaluation)] / name

    return [
        PairFiles(
            file(found[0], found[0].pictures[pair.shown]),
            file(found[pair.other], found[pair.other].pictures[pair.shown]),
            tuple(file(found[0], name) for name in references[pair.shown.subject]),
        )
        for pair in pairs
    ]


def alike(paths: Sequence[Path]) -> list[Image.Image]:
    """Read pictures as RGB of one size, so that a judge cannot tell methods by sizes: the largest width and height, at
    most `LARGEST`. Smaller pictures are enlarged. Those of another shape are put on white.

    Raises:
        InputError: a picture cannot be read.
    """
    pictures = [_read(path) for path in paths]
    width, height = (max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    scale = min(1.0, LARGEST / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return [
        picture
        if picture.size == size
        else ImageOps.pad(picture, size, Image.Resampling.LANCZOS, color=(255, 255, 255))
        for picture in pictures
    ]


def _read(path: Path) -> Image.Image:
    return on_white(read_picture(path, "RUN"))
