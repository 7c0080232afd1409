"""The subject's mask in each picture, by the models of the segment stage. Kept in files while an evaluation runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bootpig.stages.engine.contract import Sample
from bootpig.stages.engine.slices import Slices, in_slices
from bootpig.stages.evaluate.drawing import Drawing
from bootpig.stages.evaluate.measures.measure import photos
from bootpig.stages.evaluate.prompts import fill
from bootpig.stages.evaluate.subjects import Subject
from bootpig.stages.pictures import decode_mask, encode_png
from bootpig.stages.segment.stage import Segment
from bootpig.storage.jsonio import parse_json

PHRASE = "a {object}"
"""What the detector looks for."""


class MaskFiles:
    """Masks, or why there is none, by key, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def drawn_key(method: str, row: Drawing) -> str:
        return f"{method}/{row.file}"

    @staticmethod
    def real_key(subject: Subject, path: Path) -> str:
        return f"real/{subject.name}/{path.name}"

    def put(self, key: str, data: bytes) -> None:
        """Keep a result of `Masks`."""
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def get(self, key: str) -> NDArray[np.bool_] | str:
        """The mask, HW bool and not empty, or the reason."""
        data = (self.folder / key).read_bytes()
        if not data.startswith(b"{"):
            return data.decode()
        height, width = parse_json(data)["size"]
        return decode_mask(data, height, width)


class Masks:
    """Finds subjects. The models are loaded from `setup` to `teardown`."""

    def __init__(self, stage: Segment, files: MaskFiles) -> None:
        self.stage = stage
        self.files = files

    def real(self, subjects: Iterable[Subject]) -> None:
        """Find the subjects in their real pictures, one after the other: their sizes differ."""
        for subject in subjects:
            pictures = photos(subject, subject.real)
            for place, path in enumerate(pictures.paths):
                key = self.files.real_key(subject, path)
                (found,) = self._find([subject], [encode_png(pictures[place])])
                self.files.put(key, found)

    def drawn(self, rows: Sequence[Drawing], paths: Sequence[Path]) -> list[bytes]:
        """A mask (see `stages.pictures.encode_mask`) or the reason for each drawing, from its PNG file."""
        return self._find([row.subject for row in rows], [path.read_bytes() for path in paths])

    def _find(self, subjects: Sequence[Subject], pngs: Sequence[bytes]) -> list[bytes]:
        phrases = [fill(PHRASE, subject.object) for subject in subjects]
        samples = [
            Sample(str(place), 0, {"object": phrase}, {"png": png})
            for place, (phrase, png) in enumerate(zip(phrases, pngs, strict=True))
        ]
        found: dict[int, Sample] = {}
        for places in in_slices(self.stage, samples):
            made = Slices(self.stage, 0).process(self.stage, [samples[place] for place in places])
            found |= dict(zip(places, made, strict=True))
        return [
            found[place].files["mask.json"] if found[place].status == "ok" else found[place].reason.encode()
            for place in range(len(samples))
        ]
