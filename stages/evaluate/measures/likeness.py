"""CLIP-I, DINO, DINOv2 and SigLIP-I: the mean cosine of a picture with all real pictures of its subject.

Source: DreamBooth (arXiv 2208.12242), section 4.1: CLIP-I is the average pairwise cosine between CLIP embeddings of
generated and real pictures, DINO the same with the class token of ViT-S/16 DINO.
"""

from __future__ import annotations

from collections.abc import Sequence

from bootpig.stages.evaluate.drawing import Drawing
from bootpig.stages.evaluate.measures.measure import Features, Measure, RealVectors, Values, by_row
from bootpig.stages.evaluate.metrics import mean_cosine, mean_cosine_among
from bootpig.stages.evaluate.subjects import Subject


class Likeness(Measure):
    """In [-1, 1]. Of real pictures: the mean cosine of all pairs of different ones, the ceiling."""

    def __init__(self, vectors: RealVectors) -> None:
        self.vectors = vectors

    def drawn(self, rows: Sequence[Drawing], features: Features) -> Values:
        return by_row(rows, features, lambda row, vector: float(mean_cosine(vector, self.vectors.real(row.subject))[0]))

    def real(self, subject: Subject) -> float | None:
        vectors = self.vectors.real(subject)
        return mean_cosine_among(vectors) if len(vectors) > 1 else None
