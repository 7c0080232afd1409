"""The scores of a sweep as a table: one row for each cell, seed, method, subject and measure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bootpig.stages.evaluate.measures.names import MEASURES
from bootpig.storage.errors import CorruptPart
from bootpig.storage.folders import read_manifest
from bootpig.storage.root import Root
from bootpig.storage.tables import read_table

SCHEMA = pa.schema(
    [
        ("cell", pa.string()),
        ("seed", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("method", pa.string()),
        ("subject", pa.string()),
        ("measure", pa.string()),
        ("value", pa.float64()),
        ("pictures", pa.int64()),
    ]
)
"""`value`: the mean over the subject's `pictures` that have a score, see `MEASURES`. A run that failed has one
row, with `status` failed and its reason."""


@dataclass(frozen=True)
class RunScores:
    """One run of a sweep and what it measured."""

    cell: str
    seed: str
    """Its seeds as text; the same for the runs that are compared."""
    reason: str = ""
    """Why it failed. Empty if it did not."""
    folder: str = ""
    """Its evaluate result, relative to the root. Empty if it failed."""
    pictures: Sequence[Mapping[str, Any]] = ()
    """The rows of evaluate's `scores.parquet`, one per method and picture."""
    values: Mapping[tuple[str, str, str], tuple[float, int]] = field(default_factory=dict)
    """(method, subject, measure) → mean over the subject's pictures, and their number."""


def read_run_scores(root: Root, cell: str, seed: str, evaluated: str) -> RunScores:
    """The scores of the result `evaluate/<evaluated>`. If they cannot be read, the run counts as failed."""
    try:
        result = read_manifest(root, f"evaluate/{evaluated}/result")
        if result is None:
            return RunScores(cell, seed, "evaluate: its result is gone; run the sweep again")
        table = read_table(root.read(f"{result.path}/scores.parquet"))
        pictures = table.to_pylist()
        return RunScores(cell, seed, "", result.path, pictures, dict(_by_subject(pictures)))
    except (CorruptPart, OSError, ValueError, KeyError, TypeError) as error:
        what = " ".join(str(error).split())
        return RunScores(cell, seed, f"evaluate: its scores are not readable ({what}); run bootpig verify, then again")


def scores_table(runs: Iterable[RunScores]) -> pa.Table:
    """The content of `sweep.parquet`, see `SCHEMA`."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        about = {"cell": run.cell, "seed": run.seed, "status": "failed" if run.reason else "ok", "reason": run.reason}
        rows += [
            {**about, "method": method, "subject": subject, "measure": measure, "value": value, "pictures": count}
            for (method, subject, measure), (value, count) in run.values.items()
        ] or [about]
    return pa.Table.from_pylist(rows, SCHEMA)


def score_matrix(runs: Sequence[RunScores], method: str, measure: str) -> tuple[list[str], NDArray[np.float64]]:
    """The subjects that all `runs` have scores of, and the scores, runs×subjects. Runs are those of different seeds."""
    by_run = [
        {key[1]: value for key, (value, _) in run.values.items() if (key[0], key[2]) == (method, measure)}
        for run in runs
    ]
    subjects = [name for name in by_run[0] if all(name in values for values in by_run)] if by_run else []
    matrix = np.array([[values[name] for name in subjects] for values in by_run], dtype=np.float64)
    return subjects, matrix.reshape(len(by_run), len(subjects))


def _by_subject(pictures: Sequence[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, str, str], tuple[float, int]]]:
    groups: dict[tuple[str, str, str], list[float]] = {}
    for row in pictures:
        for measure in MEASURES:
            if (value := row.get(measure)) is not None:
                groups.setdefault((str(row["method"]), str(row["subject"]), measure), []).append(float(value))
    if not groups:
        raise ValueError("it has none")
    for key, values in groups.items():
        yield key, (float(np.mean(values)), len(values))
