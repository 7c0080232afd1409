"""Identity: how alike two subjects are, part by part, whatever is around them.

Patches of both subjects, cut out and put on white, are matched greedily: each patch with the most similar one of the
other subject. The matching and its F-like mean are BERTScore's (arXiv 1904.09675), with patches in place of words.
Comparing cut-out subjects with DINO features is what SynCD does (arXiv 2502.01720, its masked DINOv2-I).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bootpig.models.pretrained.embedders import DinoEmbedder
from bootpig.stages.evaluate.drawing import Drawing
from bootpig.stages.evaluate.measures.masks import MaskFiles
from bootpig.stages.evaluate.measures.measure import Features, Measure, Values, by_row, photos
from bootpig.stages.evaluate.metrics import cosines
from bootpig.stages.evaluate.subjects import Subject

MARGIN = 0.15
"""White around the subject on each side, as a fraction of its longer side. Some processors crop an eighth of a side."""

KEPT_SUBJECTS = 4
"""Subjects whose real patches are kept. Drawings come subject by subject."""


class Identity(Measure):
    """In [-1, 1]. Each picture's vector is its value already, because patches are too large to be kept."""

    def __init__(self, parts: SubjectParts) -> None:
        self.parts = parts

    def drawn(self, rows: Sequence[Drawing], features: Features) -> Values:
        return by_row(rows, features, lambda row, vector: float(vector[0]))

    def real(self, subject: Subject) -> float | None:
        """The mean over pairs of real pictures in which a subject is found."""
        patches = self.parts.real(subject)
        pairs = [match(a, b) for place, a in enumerate(patches) for b in patches[place + 1 :]]
        return float(np.mean(pairs)) if pairs else None


class SubjectParts:
    """Compares the subject of a picture with those of its real pictures."""

    def __init__(self, dino: DinoEmbedder, masks: MaskFiles) -> None:
        self.dino = dino
        self.masks = masks
        self._known: dict[str, list[NDArray[np.float32]]] = {}

    def read(self, rows: Sequence[Drawing], keys: Sequence[str], pictures: Sequence[Image.Image]) -> Features:
        """The mean match with all real pictures of the subject, one value per picture.

        Args:
            rows: the drawings.
            keys: names of their masks.
            pictures: RGB, one per drawing.
        """
        return Features.of([self._value(row, keys[place], pictures[place]) for place, row in enumerate(rows)])

    def real(self, subject: Subject) -> list[NDArray[np.float32]]:
        """The patches of each real picture in which the subject is found, n×d."""
        if subject.name not in self._known:
            while len(self._known) >= KEPT_SUBJECTS:
                self._known.pop(next(iter(self._known)))
            files = photos(subject, subject.real)
            found = []
            for place, path in enumerate(files.paths):
                mask = self.masks.get(self.masks.real_key(subject, path))
                if not isinstance(mask, str):
                    found.append(self._patches(files[place], mask))
            self._known[subject.name] = found
        return self._known[subject.name]

    def _value(self, row: Drawing, key: str, picture: Image.Image) -> NDArray[np.float32] | str:
        mask = self.masks.get(key)
        if isinstance(mask, str):
            return mask
        real = self.real(row.subject)
        if not real:
            return "no_real_subject"
        own = self._patches(picture, mask)
        return np.array([np.mean([match(own, other) for other in real])], np.float32)

    def _patches(self, picture: Image.Image, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        return self.dino.parts(*([each] for each in subject_square(picture, mask)))[0]  # type: ignore[arg-type]


def match(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The mean over all patches of `a` (n×d) and of `b` (m×d) of the cosine with the other's best match: the mean of
    both directions, each of which is a mean over its patches."""
    near = cosines(a, b)
    return float((near.max(axis=1).mean() + near.max(axis=0).mean()) / 2)


def subject_square(picture: Image.Image, mask: NDArray[np.bool_]) -> tuple[Image.Image, NDArray[np.bool_]]:
    """The subject on white in a square around it, with `MARGIN`, and its mask there.

    Args:
        picture: RGB, H×W.
        mask: HW bool, not empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    side = max(8, round(max(height, width) * (1 + 2 * MARGIN)))
    top, left = (side - height) // 2, (side - width) // 2
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    pixels = np.full((side, side, 3), 255, np.uint8)
    inside = np.zeros((side, side), bool)
    inside[top : top + height, left : left + width] = mask[box]
    pixels[top : top + height, left : left + width] = np.where(
        mask[box][..., None], np.asarray(picture)[box], np.uint8(255)
    )
    return Image.fromarray(pixels), inside
