"""Diversity: the mean distance, 1 − cosine, between the pictures of one caption.

Source: DreamBooth (arXiv 2208.12242), section 4.1 (DIV): the average distance between generated pictures of one subject
with one prompt. There it is LPIPS; here it is the distance of DINO's class tokens, which are computed anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bootpig.stages.evaluate.drawing import Drawing
from bootpig.stages.evaluate.measures.measure import Features, Measure, Values
from bootpig.stages.evaluate.metrics import cosines


class Diversity(Measure):
    """Of a picture: its mean distance to the other pictures of its caption, in [0, 2].

    So the mean over the pictures of a caption is the mean over all pairs.
    """

    def drawn(self, rows: Sequence[Drawing], features: Features) -> Values:
        groups: dict[tuple[str, str], list[int]] = {}
        found: list[float | str] = list(features.reasons)
        for place, row in enumerate(rows):
            if not features.reasons[place]:
                groups.setdefault((row.subject.name, row.prompt), []).append(place)
        for places in groups.values():
            near = cosines(features.vectors[places], features.vectors[places])
            for number, place in enumerate(places):
                others = np.delete(near[number], number)
                found[place] = float(1 - others.mean()) if len(others) else "no_other_picture"
        return Values.of(found)
