"""The record of what was measured, `science/measured/`, so that the page can be written where the store is not.

All experiments take hours. Their stores stay where they ran, but the scores of each subject are small: they are
committed, and the experiments can be done in several sittings, on several machines.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bootpig.stages.engine.contract import InputError
from bootpig.storage.jsonio import parse_json
from science.results import Evaluation, Results

FOLDER = Path(__file__).with_name("measured")
RUNS, SCORES, OTHERS = "runs.json", "scores.parquet", "others.json"

SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("method", pa.string()),
        ("measure", pa.string()),
        ("subject", pa.string()),
        ("value", pa.float32()),
    ]
)
"""`run`: the key in `runs.json`. `value`: the mean over the subject's pictures."""


def read_record(folder: Path | None = None) -> dict[str, Evaluation]:
    """Key of a run → its evaluation. Empty if there is no record.

    Raises:
        InputError: a file of the record is damaged. Writing would then lose what it has.
    """
    folder = folder or FOLDER
    if not (folder / RUNS).exists():
        return {}
    scores: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    with _damage(folder / SCORES):
        for row in pq.read_table(folder / SCORES, schema=SCHEMA).to_pylist():
            by_method = scores.setdefault(row["run"], {}).setdefault(row["method"], {})
            by_method.setdefault(row["measure"], {})[row["subject"]] = row["value"]
    with _damage(folder / RUNS):
        return {
            key: Evaluation(
                updates=each["updates"],
                scores=scores[key],
                real=dict(each["real"]),
                seconds={stage: (path, seconds) for stage, (path, seconds) in each["seconds"].items()},
                root="",
                folder="",
                key=key,
                fingerprint=each["fingerprint"],
                provenance=each["provenance"],
                identity=each.get("identity", ""),  # not in records of before
            )
            for key, each in parse_json((folder / RUNS).read_bytes()).items()
        }


@contextmanager
def _damage(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise InputError(
            f"{file}: is damaged; restore the folder with `git checkout {file.parent}`, or delete it to lose the record"
        ) from None


def write_record(results: Results, folder: Path | None = None) -> None:
    """Write all that `results` has. What was recorded before and is not in it any more is dropped."""
    folder = folder or FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    measured = {run.key: run for run in _runs(results)}
    facts = {
        key: {
            "fingerprint": run.fingerprint,
            "identity": run.identity,
            "updates": run.updates,
            "real": run.real,
            "seconds": run.seconds,
            "provenance": run.provenance,
        }
        for key, run in sorted(measured.items())
    }
    rows = [
        {"run": key, "method": method, "measure": measure, "subject": subject, "value": value}
        for key, run in sorted(measured.items())
        for method, by_measure in sorted(run.scores.items())
        for measure, by_subject in sorted(by_measure.items())
        for subject, value in sorted(by_subject.items())
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer, compression="zstd")
    (folder / SCORES).write_bytes(buffer.getvalue())
    for name, content in ((RUNS, facts), (OTHERS, results.others)):
        (folder / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_others(folder: Path | None = None) -> dict[str, Any]:
    """What was recorded that is not the score of a run, such as how long other methods were trained. Empty if there is
    no record. Raises InputError if it is damaged."""
    file = (folder or FOLDER) / OTHERS
    if not file.exists():
        return {}
    with _damage(file):
        return dict(parse_json(file.read_bytes()))


def provenances(results: Results) -> Mapping[str, int]:
    """The commits and versions that runs were measured with, and how many runs, the most first."""
    counts: dict[str, int] = {}
    for key in {run.key: run.provenance for run in _runs(results)}.values():
        counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _runs(results: Results) -> Iterable[Evaluation]:
    return (
        run
        for cells in results.cells.values()
        for cell in cells.values()
        for run in cell.seeds.values()
        if run is not None
    )
