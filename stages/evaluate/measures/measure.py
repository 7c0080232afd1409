"""The base class of measures, and what they get and give: features of pictures, and one value per picture."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load, save

from bootpig.stages.evaluate.drawing import Drawing
from bootpig.stages.evaluate.gallery import PictureFiles
from bootpig.stages.evaluate.metrics import aligned_cosine
from bootpig.stages.evaluate.subjects import Subject
from bootpig.stages.picture_files.reader import on_white, read_picture
from bootpig.storage.jsonio import parse_json

Vectors = NDArray[np.float32]

REASONS: Mapping[str, str] = {
    "no_other_real_picture": "the subject has no real picture besides the reference to compare with",
    "no_other_picture": "there is no other finite picture of the same caption",
    "no_scene": "the caption names no scene, only the subject",
    "no_background": "the subject fills the picture",
    "no_real_subject": "the segmenter finds the subject in none of its real pictures",
}
"""Code → meaning, for values that are missing. Others are reasons of the segment stage."""


class ImageEncoder(Protocol):
    """Maps pictures to vectors, see `bootpig.models.pretrained.embedders`."""

    def images(self, images: Sequence[Image.Image]) -> Vectors: ...


class TextEncoder(ImageEncoder, Protocol):
    """Also maps captions to vectors in the same space."""

    def texts(self, texts: Sequence[str]) -> Vectors: ...


@dataclass(frozen=True)
class Features:
    """What was read of some pictures, in order."""

    vectors: Vectors
    """N×d. A row of NaN where there is a reason."""
    reasons: tuple[str, ...]
    """Why a picture has none; empty where it has."""

    @classmethod
    def of(cls, found: Sequence[NDArray[np.floating[Any]] | str]) -> Self:
        """From one vector or one reason per picture."""
        width = next((len(row) for row in found if not isinstance(row, str)), 1)
        lost = np.full(width, np.nan, np.float32)
        rows = [lost if isinstance(row, str) else np.asarray(row, np.float32) for row in found]
        return cls(np.stack(rows), tuple(row if isinstance(row, str) else "" for row in found))

    @classmethod
    def whole(cls, vectors: Vectors) -> Self:
        """Of pictures that all have a vector."""
        return cls(vectors, ("",) * len(vectors))

    @classmethod
    def join(cls, parts: Sequence[Features]) -> Self:
        """All in order. A part without any vector may have another width."""
        width = max(part.vectors.shape[1] for part in parts)
        rows = [
            part.vectors if part.vectors.shape[1] == width else np.full((len(part.vectors), width), np.nan, np.float32)
            for part in parts
        ]
        return cls(np.concatenate(rows), tuple(reason for part in parts for reason in part.reasons))

    def pack(self) -> bytes:
        reasons = np.frombuffer(json.dumps(self.reasons).encode(), np.uint8)
        return save({"vectors": np.ascontiguousarray(self.vectors), "reasons": reasons})

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        members = load(data)
        return cls(members["vectors"], tuple(parse_json(members["reasons"].tobytes())))


@dataclass(frozen=True)
class Values:
    """One value per picture. NaN and a reason where there is none."""

    values: NDArray[np.float64]
    reasons: tuple[str, ...]

    @classmethod
    def of(cls, found: Sequence[float | str]) -> Self:
        """From one value or one reason per picture."""
        values = [np.nan if isinstance(value, str) else float(value) for value in found]
        return cls(np.array(values, np.float64), tuple(value if isinstance(value, str) else "" for value in found))


class RealVectors:
    """Vectors of the subjects' real pictures and references by one encoder, each computed once."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self.encoder = encoder
        self._known: dict[tuple[str, str], Vectors] = {}

    def real(self, subject: Subject) -> Vectors:
        """Of the pictures that drawn ones are compared with, M×d."""
        return self._vectors(subject, "real")

    def references(self, subject: Subject) -> Vectors:
        """Of the references, on white, K×d."""
        return self._vectors(subject, "references")

    def _vectors(self, subject: Subject, which: str) -> Vectors:
        key = subject.name, which
        if key not in self._known:
            paths = subject.real if which == "real" else subject.references
            self._known[key] = self.encoder.images(photos(subject, paths))
        return self._known[key]


class TextVectors:
    """Vectors of texts by one encoder. Each is computed once and alone, so that it does not depend on the others."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self._known: dict[str, Vectors] = {}

    def of(self, text: str) -> Vectors:
        """The vector of a text, 1×d."""
        if text not in self._known:
            self._known[text] = self.encoder.texts([text])
        return self._known[text]

    def cosine(self, vector: NDArray[np.float32], text: str) -> float:
        """The cosine of a picture's vector (d) with a text."""
        return float(aligned_cosine(vector, self.of(text))[0])


class Measure(ABC):
    """Turns features of pictures into one value per picture."""

    @abstractmethod
    def drawn(self, rows: Sequence[Drawing], features: Features) -> Values:
        """The values of one method's pictures.

        Args:
            rows: the drawings that have a picture.
            features: one row for each.
        """

    def real(self, subject: Subject) -> float | None:
        """The same for the subject's real pictures, to compare with. None if it cannot be measured or means nothing."""
        return None


def by_row(
    rows: Sequence[Drawing], features: Features, value: Callable[[Drawing, NDArray[np.float32]], float | str]
) -> Values:
    """`value` of each drawing and its vector, or a reason. A picture without a vector keeps its reason."""
    return Values.of(
        [
            reason or value(row, vector)
            for row, vector, reason in zip(rows, features.vectors, features.reasons, strict=True)
        ]
    )


def photos(subject: Subject, paths: Sequence[Any]) -> PictureFiles:
    """Real pictures of a subject, RGB, transparent ones on white. Each is read when it is needed."""
    return PictureFiles(list(paths), lambda path: on_white(read_picture(path, f"{subject.section}.subjects")))
