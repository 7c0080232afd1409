"""Reads the results of sweeps: the scores of each cell, seed, method and subject, from the store or from the record."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bootpig.flows.rounds import with_trained_models
from bootpig.flows.sweep.cells import CellRun, expand, meaning
from bootpig.flows.sweep.file import load_sweep
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.survey import StageSurvey, complete_stages, identity_of
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
    """The store. Empty: from the record, see `science.record`."""
    folder: str
    """Of the result, relative to the store."""
    key: str = ""
    """Digest of the run's settings."""
    fingerprint: str = ""
    """Of its evaluate stage."""
    provenance: str = ""
    """The commit and the versions of the libraries that it was measured with."""
    identity: str = ""
    """Digest of the settings, versions and models of all stages, which is known without the store. Empty: not known."""


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
    others: Mapping[str, Any] = field(default_factory=dict)
    """What is not the score of a run, see `science.tables.measured_others`."""

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


def read_results(
    files: Sequence[Path],
    root: str | None = None,
    recorded: Mapping[str, Evaluation] | None = None,
    provenance: str = "",
) -> Results:
    """Read what has been measured of the sweeps in `files`. Runs nothing.

    Args:
        files: files of sweeps.
        root: the store. None: that of each sweep's configuration.
        recorded: key → evaluation, for runs that are not in the store, see `science.record`.
        provenance: of what is in the store and not in `recorded`.
    """
    recorded = recorded or {}
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
            wanted = {name: value for name, value in meaning(run.config).items() if name not in ("name", "root")}
            key = digest(wanted)
            seeds[run.cell.name][run.seed] = _measured(run, key, recorded.get(key), provenance)
            evaluated.add(key)
            trained[digest({**wanted, "evaluate": None})] = run.config.train.steps
        cells[sweep.name] = {name: Cell(name, settings[name], each) for name, each in seeds.items()}
    return Results(cells, unreadable, Plan(len(trained), sum(trained.values()), len(evaluated)))


def _measured(run: CellRun, key: str, recorded: Evaluation | None, provenance: str) -> Evaluation | None:
    """The evaluation of a run, from the store if it is there. One in the record counts unless it is known to be of
    other code or models, by the fingerprint where the store has what evaluate reads, by the identity elsewhere. Neither
    is known where the models of other methods are gone."""
    found = None
    fingerprint = identity = ""
    with suppress(InputError, KeyError, OSError, ValueError):
        engine = Engine(with_trained_models(run.config))
        identity = _identity(engine)
        surveys = engine.survey_all()
        if "evaluate" in complete_stages(surveys, engine.graph):
            fingerprint = surveys["evaluate"].fingerprint
            found = read_run(run, engine, surveys)
    if found is not None:
        same = recorded is not None and recorded.fingerprint == found.fingerprint
        measured = recorded.provenance if recorded is not None and same else provenance
        return replace(found, key=key, provenance=measured, identity=identity)
    if recorded is None or fingerprint not in ("", recorded.fingerprint):
        return None
    return recorded if fingerprint or "" in (identity, recorded.identity) or identity == recorded.identity else None


def _identity(engine: Engine) -> str:
    """What `Evaluation.identity` says."""
    return digest({name: identity_of(engine.make(name), engine.config, "") for name in engine.graph.stages})


def read_run(run: CellRun, engine: Engine, surveys: Mapping[str, StageSurvey]) -> Evaluation | None:
    """The evaluation of a run. None if it is not in the store, or cannot be read."""
    evaluated = surveys["evaluate"]
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
    return Evaluation(
        run.config.train.steps, scores, means, known, engine.root.url, found.folder, fingerprint=evaluated.fingerprint
    )


def _seconds(root: Root, path: str) -> float | None:
    try:
        lines = root.read(f"{path}/log-00000.jsonl").decode().splitlines()
        done = [record for record in map(parse_json, lines) if record.get("event") == "done"]
        return float(done[-1]["seconds"])
    except (OSError, ValueError, KeyError, IndexError, AttributeError):
        return None
