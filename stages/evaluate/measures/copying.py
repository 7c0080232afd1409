"""Copy-paste: how much nearer a picture is to its reference than other real pictures of the subject are.

A model that repeats the reference, with its pose and its light, gets a high CLIP-I and DINO without having drawn the
subject again. Real pictures of one subject say how near to each other pictures of it are that nobody copied. The
measure is defined here; DreamBooth (arXiv 2208.12242) and IP-Adapter (arXiv 2308.06721) show the problem.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bootpig.stages.evaluate.drawing import Drawing
from bootpig.stages.evaluate.measures.measure import Features, Measure, RealVectors, Values, by_row
from bootpig.stages.evaluate.metrics import cosines
from bootpig.stages.evaluate.subjects import Subject


class CopyPaste(Measure):
    """The maximum over the references r of cos(picture, r) − mean over real pictures y ≠ r of cos(y, r).

    In [-2, 2], lower is better. 0: as near to the reference as other real pictures are.
    """

    def __init__(self, vectors: RealVectors) -> None:
        self.vectors = vectors
        self._usual: dict[str, NDArray[np.float64]] = {}

    def drawn(self, rows: Sequence[Drawing], features: Features) -> Values:
        def value(row: Drawing, vector: NDArray[np.float32]) -> float | str:
            usual = self._usual_nearness(row.subject)
            if np.isnan(usual).all():
                return "no_other_real_picture"
            return float(np.nanmax(cosines(vector, self.vectors.references(row.subject))[0] - usual))

        return by_row(rows, features, value)

    def _usual_nearness(self, subject: Subject) -> NDArray[np.float64]:
        """For each reference, the mean cosine of the other real pictures with it. NaN if there is no other."""
        if subject.name not in self._usual:
            self._usual[subject.name] = np.array(
                [self._nearness(subject, number) for number in range(len(subject.references))]
            )
        return self._usual[subject.name]

    def _nearness(self, subject: Subject, number: int) -> float:
        others = [place for place, path in enumerate(subject.real) if path != subject.references[number]]
        if not others:
            return float("nan")
        reference = self.vectors.references(subject)[number]
        return float(cosines(reference, self.vectors.real(subject)[others]).mean())
