"""Reads the results of sweeps from the store: the scores of each cell, seed, method and subject that exists."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bootpig.flows.rounds import with_trained_models
from bootpig.flows.sweep.cells import CellRun, expand, meaning
from bootpig.flows.sweep.file import load_sweep
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.sweep.scores import read_run_scores
from bootpig.storage.fingerprint import digest
from bootpig.storage.jsonio import parse_json
from bootpig.storage.root import Root

TRAINED_OR_EVALUATED = ("train", "evaluate")


@dataclass(frozen=True)
class Evaluation:
    """What one run measured."""

    updates: int
    """Of its training."""
    scores: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Method → metric → subject → mean over its pictures."""
    real: Mapping[str, float]
    """Metric → mean over subjects of the real pictures compared with each other. Without metrics that are not known."""
    seconds: Mapping[str, tuple[str, float]]
    """Stage → its path and the seconds that its last run took, for `TRAINED_OR_EVALUATED`, as far as known."""
    root: str
    """The store."""
    folder: str
    """Of the result, relative to the store."""


@dataclass(frozen=True)
class Cell:
    """One combination of settings, with the evaluation of each seed. None: not in the store."""

    name: str
    settings: Mapping[str, object]
    seeds: Mapping[str, Evaluation | None]

    def values(self, method: str, metric: str) -> NDArray[np.float64]:
        """Seeds × subjects, for the seeds that exist and the subjects that have a score with all of them. May have no
        row."""
        found = self.by_subject(method, metric)
        common = sorted(set.intersection(*map(set, found))) if found else []
        return np.array([[row[subject] for subject in common] for row in found]).reshape(len(found), len(common))

    def by_subject(self, method: str, metric: str) -> list[Mapping[str, float]]:
        """Subject → score, for each seed that has them."""
        rows = [each.scores.get(method, {}).get(metric, {}) for each in self.seeds.values() if each is not None]
        return [row for row in rows if row]


@dataclass(frozen=True)
class Plan:
    """What all runs take, each training and evaluation counted once."""

    trainings: int
    updates: int
    """Of all trainings together."""
    evaluations: int


@dataclass(frozen=True)
class Results:
    """The results of all sweeps."""

    cells: Mapping[str, Mapping[str, Cell]]
    """Sweep → cell → its results."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Sweep → why it could not be read, in one line."""
    plan: Plan = Plan(0, 0, 0)

    def missing(self) -> dict[str, list[str]]:
        """Sweep → the runs that are not in the store, as `cell, seed`."""
        found: dict[str, list[str]] = {}
        for sweep, cells in self.cells.items():
            for cell in cells.values():
                lost = [", ".join(filter(None, [cell.name, seed])) for seed, each in cell.seeds.items() if each is None]
                if lost:
                    found.setdefault(sweep, []).extend(lost)
        return found

    def count(self) -> tuple[int, int]:
        """The runs in the store, and all runs."""
        runs = [each for cells in self.cells.values() for cell in cells.values() for each in cell.seeds.values()]
        return sum(each is not None for each in runs), len(runs)


def read_results(files: Sequence[Path], root: str | None = None) -> Results:
    """Read what the store has of the sweeps in `files`. Runs nothing.

    Args:
        files: files of sweeps.
        root: the store. None: that of each sweep's configuration.
    """
    cells: dict[str, dict[str, Cell]] = {}
    unreadable = {}
    trained: dict[str, int] = {}
    evaluated = set()
    for file in files:
        try:
            sweep = load_sweep(file)
            runs = expand(sweep if root is None else sweep.model_copy(update={"root": root}))
        except InputError as error:
            unreadable[file.stem] = str(error).splitlines()[0]
            continue
        seeds: dict[str, dict[str, Evaluation | None]] = defaultdict(dict)
        settings = {}
        for run in runs:
            settings[run.cell.name] = run.cell.settings
            seeds[run.cell.name][run.seed] = read_run(run)
            wanted = {name: value for name, value in meaning(run.config).items() if name not in ("name", "root")}
            evaluated.add(digest(wanted))
            trained[digest({**wanted, "evaluate": None})] = run.config.train.steps
        cells[sweep.name] = {name: Cell(name, settings[name], each) for name, each in seeds.items()}
    return Results(cells, unreadable, Plan(len(trained), sum(trained.values()), len(evaluated)))


def read_run(run: CellRun) -> Evaluation | None:
    """The evaluation of a run. None if it is not in the store, or cannot be read."""
    try:
        engine = Engine(with_trained_models(run.config))
        surveys = engine.survey_all()
        evaluated = surveys["evaluate"]
    except (InputError, KeyError, OSError, ValueError):
        return None  # such as models of other methods that are not trained yet
    if evaluated.result is None:
        return None
    found = read_run_scores(engine.root, run.cell.name, run.seed, evaluated.fingerprint)
    if found.reason:
        return None
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for (method, subject, metric), (value, _) in found.values.items():
        scores.setdefault(method, {}).setdefault(metric, {})[subject] = value
    try:
        real = parse_json(engine.root.read(f"{found.folder}/metrics.json"))["methods"]["real"]
    except (OSError, ValueError, KeyError):
        return None
    means = {metric: facts["mean"] for metric, facts in real.items() if facts}
    seconds = {name: (surveys[name].path, _seconds(engine.root, surveys[name].path)) for name in TRAINED_OR_EVALUATED}
    known = {name: (path, value) for name, (path, value) in seconds.items() if value is not None}
    return Evaluation(run.config.train.steps, scores, means, known, engine.root.url, found.folder)


def _seconds(root: Root, path: str) -> float | None:
    try:
        lines = root.read(f"{path}/log-00000.jsonl").decode().splitlines()
        done = [record for record in map(parse_json, lines) if record.get("event") == "done"]
        return float(done[-1]["seconds"])
    except (OSError, ValueError, KeyError, IndexError, AttributeError):
        return None
