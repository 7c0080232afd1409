"""The values of all measures: per picture, per subject and per method, with what is missing and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from bootpig.stages.evaluate.drawing import Drawing
from bootpig.stages.evaluate.gallery import NOT_FINITE
from bootpig.stages.evaluate.measures.measure import Features, ImageEncoder, Measure, Values
from bootpig.stages.evaluate.measures.names import DEFAULT
from bootpig.stages.evaluate.metrics import collect, gap_closed
from bootpig.stages.evaluate.subjects import Subject


@dataclass
class Scores:
    """The values measured so far: per method and picture, and per subject for real pictures."""

    subjects: Sequence[Subject]
    rows: Sequence[Drawing]
    methods: Sequence[str]
    not_finite: Mapping[str, Set[int]] = field(default_factory=dict)
    """Method → rows without a picture, because it was not finite. They have no values."""
    names: Sequence[str] = DEFAULT
    """The measures, in the order in which they are shown."""

    def __post_init__(self) -> None:
        self.drawn: dict[str, dict[str, NDArray[np.float64]]] = {method: {} for method in self.methods}
        """Method → measure → one value per row; NaN without one."""
        self.reasons: dict[str, dict[str, list[str]]] = {method: {} for method in self.methods}
        """Method → measure → why a row has no value; empty where it has one."""
        self.real: dict[str, list[float | None]] = {}
        """Measure → one value per subject, None without one."""

    def finite(self, method: str) -> list[int]:
        """The rows of a method with a picture."""
        lost = self.not_finite.get(method, ())
        return [row for row in range(len(self.rows)) if row not in lost]

    def add(self, name: str, measure: Measure, features: Mapping[str, Features]) -> None:
        """Measure all pictures, drawn and real.

        Args:
            features: method → what was read of each row with a picture.
        """
        for method in self.methods:
            rows = self.finite(method)
            found = measure.drawn([self.rows[row] for row in rows], features[method]) if rows else Values.of([])
            values, reasons = np.full(len(self.rows), np.nan), [NOT_FINITE] * len(self.rows)
            for place, row in enumerate(rows):
                values[row], reasons[row] = found.values[place], found.reasons[place]
            self.keep(name, method, values, reasons)
        self.real[name] = [measure.real(subject) for subject in self.subjects]

    def keep(self, name: str, method: str, values: NDArray[np.float64], reasons: list[str]) -> None:
        """Take over values that were measured before, one per row."""
        self.drawn[method][name] = values
        self.reasons[method][name] = reasons

    def by_subject(self, method: str, name: str) -> list[float]:
        """One value per subject: the mean over its pictures. NaN for a subject without any."""
        names = np.array([drawing.subject.name for drawing in self.rows])
        values = self.drawn[method][name]
        return [_mean(values[names == subject.name]) for subject in self.subjects]

    def metrics(self, seed: int) -> dict[str, Any]:
        """The content of `metrics.json`: means over the subjects that have a value, with bootstrap intervals."""
        by_subject: dict[str, dict[str, Sequence[float]]] = {
            method: {name: _known(self.by_subject(method, name)) for name in self.names} for method in self.drawn
        }
        by_subject["real"] = {name: _known(self.real[name]) for name in self.names}
        table = collect(by_subject, seed)
        lost = {method: len(rows) for method, rows in self.not_finite.items() if rows}
        dino = {method: table.get(method, {}).get("dino") for method in ("text_only", "bootpig", "real")}
        means = {method: summary["mean"] for method, summary in dino.items() if summary}
        unscored = {name: counts for name in self.names if (counts := self._unscored(name))}
        return {
            "subjects": len(self.subjects),
            "images": len(self.rows),
            **({"not_finite": lost} if lost else {}),
            **({"unscored": unscored} if unscored else {}),
            "methods": table,
            "gap_closed_dino": gap_closed(**means) if len(means) == len(dino) else None,
        }

    def _unscored(self, name: str) -> dict[str, dict[str, int]]:
        """Method → reason → number of finite pictures without a value."""
        found = {}
        for method in self.methods:
            reasons = Counter(self.reasons[method][name][row] for row in self.finite(method))
            if counts := {reason: count for reason, count in sorted(reasons.items()) if reason}:
                found[method] = counts
        return found

    def table(self) -> pa.Table:
        """The content of `scores.parquet`: one row per method and picture, with caption, seed, file and the values.

        If a picture was not finite, all rows also have `status` and `reason`; without a picture, there are no values. A
        measure that has no value for some picture also has a column of reasons, such as `identity_reason`.
        """
        lost = any(self.not_finite.values())
        reasoned = [name for name in self.names if self._unscored(name)]
        columns: dict[str, list[Any]] = {name: [] for name in ("method", "subject", "object", "prompt", "seed", "file")}
        columns |= {name: [] for name in (("status", "reason") if lost else ())}
        for method in self.methods:
            for index, drawing in enumerate(self.rows):
                row = {
                    "method": method,
                    "subject": drawing.subject.name,
                    "object": drawing.subject.object,
                    "prompt": drawing.prompt,
                    "seed": drawing.seed,
                    "file": f"images/{method}/{drawing.file}",
                    **(self._verdict(method, index) if lost else {}),
                }
                for name, value in row.items():
                    columns[name].append(value)
        count = len(self.methods) * len(self.rows)
        for name in self.names:
            values = np.concatenate([self.drawn[method][name] for method in self.methods]) if count else np.zeros(0)
            columns[name] = [None if np.isnan(value) else float(value) for value in values]
        for name in reasoned:
            columns[f"{name}_reason"] = [
                reason or None for method in self.methods for reason in self.reasons[method][name]
            ]
        return pa.table(
            {
                name: pa.array(values, pa.float64()) if name in self.names else pa.array(values)
                for name, values in columns.items()
            }
        )

    def _verdict(self, method: str, row: int) -> dict[str, str]:
        failed = row in self.not_finite.get(method, ())
        return {"status": "failed", "reason": NOT_FINITE} if failed else {"status": "ok", "reason": ""}


def read_whole(
    scores: Scores, encoder: ImageEncoder, pictures: Mapping[str, Sequence[Image.Image]]
) -> dict[str, Features]:
    """Features of whole pictures, in one process.

    Args:
        pictures: method → one picture per row; those of rows that are not finite are not read.
    """
    return {
        method: Features.whole(encoder.images(_Chosen(drawn, scores.finite(method))))
        for method, drawn in pictures.items()
    }


class _Chosen(Sequence[Image.Image]):
    """Some elements of a sequence, each read on access."""

    def __init__(self, pictures: Sequence[Image.Image], places: Sequence[int]) -> None:
        self._pictures = pictures
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self._pictures[place] for place in self._places[at]]
        return self._pictures[self._places[at]]


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and not np.isnan(value)]
