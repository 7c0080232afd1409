"""Reads and writes the records of sweeps in `<root>/sweeps/<name>-<digest>/`: which runs a sweep is made of."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from bootpig.stages.engine.contract import InputError
from bootpig.storage.root import Root

FOLDER = "sweeps"
RECORD = "sweep.json"


class SweepRunRecord(BaseModel):
    """One cell with one seed."""

    cell: str
    seed: str = ""
    state: Literal["pending", "cached", "done", "failed"] = "pending"
    run: str | None = None
    """The id of the run that has its results, or failed. `bootpig gc` keeps it."""
    evaluated: str | None = None
    """The fingerprint of its evaluate result."""
    reason: str = ""


class SweepRecord(BaseModel):
    """One sweep; the content of `sweep.json`."""

    name: str
    digest: str
    sweep: dict[str, Any] = {}
    """The content of its file."""
    runs: list[SweepRunRecord] = []

    @property
    def folder(self) -> str:
        return f"{FOLDER}/{self.name}-{self.digest}"

    def save(self, root: Root) -> None:
        root.write(f"{self.folder}/{RECORD}", self.model_dump_json(indent=2).encode())


def runs_of_sweeps(root: Root) -> set[str]:
    """The ids of all runs that sweeps are made of.

    Raises:
        InputError: a record cannot be read, so its runs are unknown.
    """
    names = {f"{FOLDER}/{name}/{RECORD}": name for name in root.folders(FOLDER)}
    found = set()
    for path, data in root.read_many(list(names)).items():
        try:
            record = SweepRecord.model_validate_json(data)
        except ValidationError:
            raise InputError(
                f"sweep: {names[path]!r} → its {RECORD} is not readable; run the sweep again, or remove "
                f"{root.join(FOLDER, names[path])}"
            ) from None
        found |= {run.run for run in record.runs if run.run is not None}
    return found
