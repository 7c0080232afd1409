"""What a card says about a data set: rows per stage, the distribution of scores, models and their licences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bootpig.models.pipelines.card import licence_of
from bootpig.models.pretrained.source import local_path
from bootpig.stages.export.records import DataSet, Model

BINS = 10
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Yield:
    """What became of the rows of one stage."""

    stage: str
    ok: int
    rejected: Mapping[str, int]
    failed: int

    @property
    def rows(self) -> int:
        return self.ok + sum(self.rejected.values()) + self.failed


@dataclass(frozen=True)
class Distribution:
    """The values of one score over the exported samples."""

    name: str
    count: int
    """Samples that have it."""
    low: float
    median: float
    high: float
    bars: str
    """A histogram in equal bins from `low` to `high`."""


@dataclass(frozen=True)
class Facts:
    """All of it."""

    yields: tuple[Yield, ...]
    scores: tuple[Distribution, ...]
    licences: Mapping[Model, str | None]

    @property
    def licence(self) -> str | None:
        """The licence of the model that drew the pictures, if known."""
        return next((self.licences[m] for m in self.licences if m.name == "synthesize_model"), None)


def gather(data: DataSet) -> Facts:
    """Read the facts from the markers of the data set. Reads no pictures."""
    scores = [column for column in data.columns if pa.types.is_floating(column.type)]
    values: dict[str, list[np.ndarray]] = {column.name: [] for column in scores}
    for unit in data.units if scores else ():
        ids, rows = data.ids(unit), data.rows(unit)
        for column in scores:
            found = (rows[column.stage].get(key, {}).get(column.column) for key in ids)
            values[column.name].append(np.array([v for v in found if v is not None], np.float32))
    drawn = {name: np.concatenate(parts) for name, parts in values.items() if parts}
    finite = {name: array[np.isfinite(array)] for name, array in drawn.items()}
    return Facts(
        yields=tuple(_yield(data, stage) for stage in data.markers),
        scores=tuple(_distribution(name, array) for name, array in finite.items() if len(array)),
        licences={model: _licence(model) for model in data.models},
    )


def _yield(data: DataSet, stage: str) -> Yield:
    counts: Counter[tuple[str, str]] = Counter()
    for unit in data.units:
        counts.update(data.markers[stage][unit].counts)
    rejected = {reason: n for (status, reason), n in sorted(counts.items()) if status == "rejected"}
    by = Counter({"ok": 0, "failed": 0})
    for (status, _), count in counts.items():
        by[status] += count
    return Yield(stage, by["ok"], rejected, by["failed"])


def _distribution(name: str, values: np.ndarray) -> Distribution:
    low, high = float(values.min()), float(values.max())
    counts, _ = np.histogram(values, bins=BINS, range=(low, high) if high > low else (low - 0.5, low + 0.5))
    heights = np.ceil(counts / counts.max() * (len(_BARS) - 1)).astype(int)
    bars = "".join(_BARS[height] for height in heights)
    return Distribution(name, len(values), low, float(np.median(values)), high, bars)


def _licence(model: Model) -> str | None:
    found = local_path(model.location)
    return licence_of(str(found) if found is not None else model.location, model.identity or None)
