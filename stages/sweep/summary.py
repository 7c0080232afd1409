"""Summarises a sweep: for each cell, method and measure the mean, its interval, and the difference to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bootpig.stages.evaluate.measures.names import MEASURES
from bootpig.stages.evaluate.results import METHOD_NAMES
from bootpig.stages.sweep.bootstrap import Interval, interval, paired_difference
from bootpig.stages.sweep.scores import RunScores, score_matrix

OURS = "bootpig"
"""The method that a sweep is about: the trained model, with the reference."""


@dataclass(frozen=True)
class Measured:
    """A mean over seeds and subjects."""

    interval: Interval
    seeds: int
    subjects: int

    def facts(self) -> dict[str, Any]:
        mean, low, high = self.interval.mean, self.interval.low, self.interval.high
        return {"mean": mean, "ci95": [low, high], "seeds": self.seeds, "subjects": self.subjects}


@dataclass(frozen=True)
class CellSummary:
    """One cell of a sweep."""

    name: str
    settings: Mapping[str, Any]
    baseline: str | None
    """The cell that it is compared with."""
    runs: int
    """With all seeds, the failed ones too."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Seed → reason."""
    scores: Mapping[tuple[str, str], Measured] = field(default_factory=dict)
    """(method, measure) → the mean over the seeds that did not fail."""
    differences: Mapping[tuple[str, str], Measured] = field(default_factory=dict)
    """The same, minus the baseline's, over the seeds and subjects that both have. Empty for the baseline itself."""

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        methods: dict[str, dict[str, Any]] = {}
        for (method, measure), measured in self.scores.items():
            other = self.differences.get((method, measure))
            more = {} if other is None else {"difference": other.facts()}
            methods.setdefault(method, {})[measure] = measured.facts() | more
        return {
            "cell": self.name,
            "settings": dict(self.settings),
            "baseline": self.baseline,
            "runs": self.runs,
            "failed": dict(self.failed),
            "methods": methods,
        }


def summarise(
    cells: Sequence[tuple[str, Mapping[str, Any], str | None]], runs: Sequence[RunScores]
) -> list[CellSummary]:
    """A summary of each cell.

    Args:
        cells: name, settings, and the name of the cell that it is compared with.
        runs: one per cell and seed, in any order.
    """
    by_cell = {name: [run for run in runs if run.cell == name] for name, _, _ in cells}
    return [
        CellSummary(
            name,
            settings,
            baseline,
            len(by_cell[name]),
            {run.seed: run.reason for run in by_cell[name] if run.reason},
            _scores(by_cell[name]),
            {} if baseline in (None, name) else _differences(by_cell[name], by_cell[str(baseline)]),
        )
        for name, settings, baseline in cells
    ]


def _kinds(runs: Sequence[RunScores]) -> list[tuple[str, str]]:
    """The methods and measures that were measured, those known first in their order."""
    found = {(method, measure) for run in runs for method, _, measure in run.values}
    order = {method: place for place, method in enumerate(METHOD_NAMES)}
    places = list(MEASURES)
    return sorted(found, key=lambda kind: (order.get(kind[0], len(order)), kind[0], places.index(kind[1])))


def _scores(runs: Sequence[RunScores]) -> dict[tuple[str, str], Measured]:
    done = [run for run in runs if not run.reason]
    found = {}
    for kind in _kinds(done):
        _, matrix = score_matrix(done, *kind)
        if matrix.size:
            found[kind] = Measured(interval(matrix), *matrix.shape)
    return found


def _differences(runs: Sequence[RunScores], baseline: Sequence[RunScores]) -> dict[tuple[str, str], Measured]:
    others = {run.seed: run for run in baseline if not run.reason}
    pairs = [(run, others[run.seed]) for run in runs if not run.reason and run.seed in others]
    found = {}
    for kind in _kinds([run for run, _ in pairs]):
        # one call, so that both have the same subjects in the same order
        _, matrix = score_matrix([run for pair in pairs for run in pair], *kind)
        if matrix.size:
            found[kind] = Measured(paired_difference(matrix[::2], matrix[1::2]), len(pairs), matrix.shape[1])
    return found
