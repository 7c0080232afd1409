"""CLIP-T and SigLIP-T: the cosine of a picture with its caption.

Source: DreamBooth (arXiv 2208.12242), section 4.1. The value is a cosine: neither CLIPScore's 2.5 · max(cosine, 0)
(arXiv 2104.08718) nor torchmetrics' 100 · max(cosine, 0), and no probability for SigLIP.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bootpig.stages.evaluate.drawing import Drawing
from bootpig.stages.evaluate.measures.measure import (
    Features,
    Measure,
    RealVectors,
    TextVectors,
    Values,
    by_row,
    photos,
)
from bootpig.stages.evaluate.subjects import Subject


class Fidelity(Measure):
    """In [-1, 1]. Of real pictures: with their own captions, where those are known."""

    def __init__(self, vectors: RealVectors, texts: TextVectors) -> None:
        self.vectors = vectors
        self.texts = texts

    def drawn(self, rows: Sequence[Drawing], features: Features) -> Values:
        return by_row(rows, features, lambda row, vector: self.texts.cosine(vector, row.prompt))

    def real(self, subject: Subject) -> float | None:
        known = [path for path in subject.real if path.name in subject.captions]
        if not known:
            return None
        vectors = self.vectors.encoder.images(photos(subject, known))
        captions = [subject.captions[path.name] for path in known]
        return float(np.mean([self.texts.cosine(row, text) for row, text in zip(vectors, captions, strict=True)]))
