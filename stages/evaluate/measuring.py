"""Measures the drawn pictures: one feature after the other, each with its own models on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from bootpig.models.memory import free_memory
from bootpig.stages.engine.share import Share
from bootpig.stages.evaluate.embedding import OpenPieces, find_masks, read_share
from bootpig.stages.evaluate.gallery import DrawnPictures, PictureFiles
from bootpig.stages.evaluate.judges import Judges
from bootpig.stages.evaluate.measures.background import Surroundings
from bootpig.stages.evaluate.measures.config import Measured
from bootpig.stages.evaluate.measures.identity import SubjectParts
from bootpig.stages.evaluate.measures.masks import MaskFiles, Masks
from bootpig.stages.evaluate.measures.measure import Features
from bootpig.stages.evaluate.measures.names import MASKED, MEASURES, features_of
from bootpig.stages.evaluate.scoring import Scores


class Measuring:
    """The pictures and models of one evaluation. In memory at once are the vectors of one feature, and one picture."""

    def __init__(
        self,
        measured: Measured,
        judges: Judges,
        pictures: Mapping[str, DrawnPictures],
        scores: Scores,
        share: Share,
        open_pieces: OpenPieces,
        device: torch.device,
        scratch: Path,
    ) -> None:
        """
        Args:
            judges: the models of `measured`, but for those that segment.
            pictures: by method; in other ranks than the first, only their own.
            scores: of the first rank, gets the values.
            scratch: an empty local folder for masks.
        """
        self.measured = measured
        self.judges = judges
        self.pictures = pictures
        self.scores = scores
        self.share = share
        self.open_pieces = open_pieces
        self.device = device
        self.masks = MaskFiles(scratch)

    def measure(self, names: Sequence[str]) -> None:
        """Measure `names`. In other ranks than the first, their part of the features goes to the pieces.

        Raises:
            FatalError, ModelError, RuntimeError: as in `read_share`; a model that segments cannot be loaded.
        """
        features = features_of(names)
        if any(feature in MASKED for feature in features):
            self._find_masks()
        for feature in features:
            self._measure(feature, [name for name in names if MEASURES[name].feature == feature])

    def _measure(self, feature: str, names: Sequence[str]) -> None:
        with self.judges.on(self.device, *self.measured.encoders[feature]):
            parts = self._parts(feature)
            found = read_share(feature, self._reader(feature, parts), self.pictures, self.share, self.open_pieces)
            if not self.share.rank:
                for name in names:
                    self.scores.add(name, self.judges.measure(name, parts, self.masks), found)

    def _parts(self, feature: str) -> SubjectParts | None:
        if feature != "identity":
            return None
        return SubjectParts(self.judges.encoders[self.measured.config.parts_model], self.masks)

    def _reader(self, feature: str, parts: SubjectParts | None) -> Callable[[str, list[int], PictureFiles], Features]:
        if feature not in MASKED:
            (model,) = self.measured.encoders[feature]
            encoder = self.judges.encoders[model]
            return lambda method, rows, pictures: Features.whole(encoder.images(pictures))
        reader = parts or Surroundings(self.judges.encoders["clip"], self.masks)

        def read(method: str, rows: list[int], pictures: PictureFiles) -> Features:
            drawings = [self.scores.rows[row] for row in rows]
            keys = [self.masks.drawn_key(method, drawing) for drawing in drawings]
            return reader.read(drawings, keys, pictures)

        return read

    def _find_masks(self) -> None:
        stage = self.measured.segment(str(self.device))
        stage.setup()
        try:
            masks = Masks(stage, self.masks)
            masks.real(self.scores.subjects)
            find_masks(masks, self.pictures, self.share, self.open_pieces)
        finally:
            stage.teardown()
            free_memory()
