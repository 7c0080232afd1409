"""Measures CLIP-T, CLIP-I and DINO of drawn pictures, per picture, subject and method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from bootpig.stages.evaluate.drawing import Drawing
from bootpig.stages.evaluate.gallery import NOT_FINITE, PictureFiles
from bootpig.stages.evaluate.metrics import METRICS, aligned_cosine, collect, gap_closed, mean_cosine, mean_cosine_among
from bootpig.stages.evaluate.subjects import Subject
from bootpig.stages.picture_files.reader import on_white, read_picture


class ImageEmbedder(Protocol):
    """Maps pictures to vectors, see `bootpig.models.pretrained.embedders`."""

    def images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]: ...


class TextEmbedder(ImageEmbedder, Protocol):
    """Also maps captions to vectors in the same space."""

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]: ...


@dataclass
class Scores:
    """The values measured so far: per method and picture, and per subject for real pictures."""

    subjects: Sequence[Subject]
    rows: Sequence[Drawing]
    pictures: Mapping[str, PictureFiles]
    """Method → one picture per row."""
    not_finite: Mapping[str, Set[int]] = field(default_factory=dict)
    """Method → rows without a picture, because it was not finite. They have no scores."""
    embed: Callable[[ImageEmbedder], Mapping[str, NDArray[np.float32]]] | None = None
    """Method → one vector per row with a picture. None: read and embed `pictures`."""

    def __post_init__(self) -> None:
        self.drawn: dict[str, dict[str, NDArray[np.float64]]] = {method: {} for method in self.pictures}
        """Method → metric → one value per row; NaN without a picture."""
        self._rows = {
            method: np.array([row for row in range(len(self.rows)) if row not in self.not_finite.get(method, ())], int)
            for method in self.pictures
        }
        """Method → the rows with a picture."""
        self.real: dict[str, list[float]] = {}
        """Metric → one value per subject."""
        self._embedder: ImageEmbedder | None = None
        self._vectors: Mapping[str, NDArray[np.float32]] = {}

    def _embedded(self, embedder: ImageEmbedder) -> Mapping[str, NDArray[np.float32]]:
        """Method → one vector per row with a picture. Each picture is read once per embedder."""
        if self._embedder is not embedder:
            self._vectors = self.embed(embedder) if self.embed else self._embed(embedder)
            self._embedder = embedder
        return self._vectors

    def _embed(self, embedder: ImageEmbedder) -> dict[str, NDArray[np.float32]]:
        return {
            method: embedder.images(PictureFiles([files.paths[row] for row in self._rows[method]]))
            for method, files in self.pictures.items()
        }

    def add_likeness(self, metric: str, embedder: ImageEmbedder) -> None:
        """Measure `clip_i` or `dino`: the mean cosine with all real pictures of the subject, and of those with each
        other."""
        real = {subject.name: embedder.images(_photos(subject.real, subject.section)) for subject in self.subjects}
        for method, vectors in self._embedded(embedder).items():
            drawings = [self.rows[row] for row in self._rows[method]]
            values = [
                mean_cosine(row, real[drawing.subject.name])[0] for row, drawing in zip(vectors, drawings, strict=True)
            ]
            self._keep(method, metric, np.array(values))
        # a benchmark with one picture per subject has none to compare it with
        self.real[metric] = [mean_cosine_among(embeddings) for embeddings in real.values() if len(embeddings) > 1]

    def add_fidelity(self, metric: str, embedder: TextEmbedder) -> None:
        """Measure `clip_t`: the cosine with the caption. For real pictures, with their own captions if known."""
        captions = embedder.texts([drawing.prompt for drawing in self.rows])
        for method, vectors in self._embedded(embedder).items():
            self._keep(method, metric, aligned_cosine(vectors, captions[self._rows[method]]))
        self.real[metric] = []
        for subject in self.subjects:
            known = [path for path in subject.real if path.name in subject.captions]
            if known:
                photos = embedder.images(_photos(known, subject.section))
                texts = embedder.texts([subject.captions[path.name] for path in known])
                self.real[metric].append(float(aligned_cosine(photos, texts).mean()))

    def _keep(self, method: str, metric: str, values: NDArray[np.float64]) -> None:
        whole = np.full(len(self.rows), np.nan)
        whole[self._rows[method]] = values
        self.drawn[method][metric] = whole

    def by_subject(self, method: str, metric: str) -> list[float]:
        """One value per subject: the mean over its pictures."""
        names = np.array([drawing.subject.name for drawing in self.rows])
        values = self.drawn[method][metric]
        return [_mean(values[names == subject.name]) for subject in self.subjects]

    def metrics(self, seed: int) -> dict[str, Any]:
        """The content of `metrics.json`: means over subjects with bootstrap intervals."""
        by_subject: dict[str, dict[str, Sequence[float]]] = {
            method: {metric: self.by_subject(method, metric) for metric in METRICS} for method in self.drawn
        }
        by_subject["real"] = {metric: self.real[metric] for metric in METRICS}
        table = collect(by_subject, seed)
        lost = {method: len(rows) for method, rows in self.not_finite.items() if rows}
        means = {
            method: table[method]["dino"]["mean"] for method in ("text_only", "bootpig", "real") if self.real["dino"]
        }
        return {
            "subjects": len(self.subjects),
            "images": len(self.rows),
            **({"not_finite": lost} if lost else {}),
            "methods": table,
            "gap_closed_dino": gap_closed(**means) if means else None,
        }

    def table(self) -> pa.Table:
        """The content of `scores.parquet`: one row per method and picture, with caption, seed, file and the scores.

        If a picture was not finite, all rows also have `status` and `reason`; without a picture, there are no scores.
        """
        lost = any(self.not_finite.values())
        return pa.Table.from_pylist(
            [
                {
                    "method": method,
                    "subject": drawing.subject.name,
                    "object": drawing.subject.object,
                    "prompt": drawing.prompt,
                    "seed": drawing.seed,
                    "file": f"images/{method}/{drawing.file}",
                    **(self._verdict(method, index) if lost else {}),
                    **{metric: _known(values[metric][index]) for metric in METRICS},
                }
                for method, values in self.drawn.items()
                for index, drawing in enumerate(self.rows)
            ]
        )

    def _verdict(self, method: str, row: int) -> dict[str, str]:
        failed = row in self.not_finite.get(method, ())
        return {"status": "failed", "reason": NOT_FINITE} if failed else {"status": "ok", "reason": ""}


def _mean(values: NDArray[np.float64]) -> float:
    return float(values[~np.isnan(values)].mean())


def _known(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)


def _photos(paths: Sequence[Path], section: str) -> PictureFiles:
    return PictureFiles(paths, lambda path: on_white(read_picture(path, f"{section}.subjects")))
