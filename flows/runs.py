"""Run records below `<root>/runs/<run id>/`: the config as run, its explicit units, what became of them, the log."""

from __future__ import annotations

import json
import re
import secrets
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from flows.loading import dump_config, parse_config
from stages.base import InputError
from stages.config import PipelineConfig
from storage.root import Root

FOLDER = "runs"
LATEST = f"{FOLDER}/latest.json"

RunState = Literal["running", "done", "failed", "interrupted"]


class StageRecord(BaseModel):
    """What one run did in one stage."""

    fingerprint: str
    made: list[int] = []
    cached: int = 0
    failed: dict[int, str] = {}
    """Unit → why, one line."""
    rows: dict[str, Any] = {}
    """As `bootpig status` counts them."""
    seconds: float = 0.0


class RunRecord(BaseModel):
    """One run, as `run.json` holds it."""

    id: str
    state: RunState = "running"
    started: datetime
    ended: datetime | None = None
    scheduled: datetime | None = None
    """When the schedule asked for it; the seed of a regeneration follows from it."""
    flow_run: str | None = None
    message: str = ""
    units: list[int]
    """The run's units, each number one by one: no reader looks at what else lies in the store."""
    stages: dict[str, StageRecord] = Field(default={})

    @property
    def folder(self) -> str:
        return f"{FOLDER}/{self.id}"

    def save(self, root: Root) -> None:
        root.write(f"{self.folder}/run.json", self.model_dump_json(indent=2).encode())

    def log(self, root: Root, line: str) -> None:
        """Add a line with the time to the run's log."""
        path = f"{self.folder}/log.txt"
        before = root.read(path) if root.exists(path) else b""
        root.write(path, before + f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z {line}\n".encode())


def new_run(
    root: Root, config: PipelineConfig, *, flow_run: str | None = None, scheduled: datetime | None = None
) -> RunRecord:
    """Record a run that starts now."""
    now = datetime.now(UTC)
    tail = flow_run[-8:] if flow_run else secrets.token_hex(4)
    record = RunRecord(
        id=f"{scheduled or now:%Y%m%d-%H%M%S}-{config.name}-{tail}",
        started=now,
        scheduled=scheduled,
        flow_run=flow_run,
        units=list(config.unit_numbers()),
    )
    root.write(f"{record.folder}/config.yaml", dump_config(config).encode())
    record.save(root)
    return record


def read_run(root: Root, run: str) -> RunRecord:
    """The record of a run id, or of `latest`.

    Raises:
        InputError: there is none, or it is unreadable.
    """
    run = latest_run(root) if run == "latest" else run
    if not re.fullmatch(r"[\w.-]+", run):
        raise InputError(f"run: {run!r} → is no run id; see bootpig runs")
    try:
        return RunRecord.model_validate_json(root.read(f"{FOLDER}/{run}/run.json"))
    except FileNotFoundError:
        raise InputError(f"run: {run!r} → there is no such run in {root.url!r}; see bootpig runs") from None
    except ValidationError:
        raise InputError(f"run: {run!r} → its run.json is not readable; start a new run") from None


def read_config(root: Root, record: RunRecord) -> PipelineConfig:
    """The configuration as that run had it, in the store where it is found today."""
    name = f"{record.folder}/config.yaml"
    try:
        return parse_config(root.read(name).decode(), [f"root={json.dumps(root.url)}"], name=name)
    except FileNotFoundError:
        raise InputError(f"run: {record.id!r} → it has no config.yaml; start a new run") from None


def run_of_flow(root: Root, flow_run: str) -> RunRecord | None:
    """The record that an earlier attempt of the same Prefect flow run has left, so that a retry continues it."""
    for name in root.folders(FOLDER):
        if name.endswith(flow_run[-8:]) and (record := read_run(root, name)).flow_run == flow_run:
            return record
    return None


def list_runs(root: Root) -> list[RunRecord]:
    """All readable records, the oldest first."""
    return [read_run(root, name) for name in root.folders(FOLDER) if root.exists(f"{FOLDER}/{name}/run.json")]


def latest_run(root: Root) -> str:
    """The id of the promoted run.

    Raises:
        InputError: none has been promoted yet.
    """
    try:
        return str(json.loads(root.read(LATEST))["run"])
    except (FileNotFoundError, ValueError, KeyError):
        raise InputError(f"run: 'latest' → no run in {root.url!r} has succeeded yet; see bootpig runs") from None


def promote(root: Root, record: RunRecord) -> None:
    """Make a run the `latest` one.

    Raises:
        InputError: it did not succeed.
    """
    if record.state != "done":
        raise InputError(f"run: {record.id!r} → is {record.state}, only a run that is done can be promoted")
    root.write(LATEST, json.dumps({"run": record.id}).encode())


def metrics_of(root: Root, record: RunRecord) -> dict[str, Any] | None:
    """The run's `metrics.json`, or None."""
    try:
        metrics: dict[str, Any] = json.loads(root.read(f"{record.folder}/metrics.json"))
    except (FileNotFoundError, ValueError):
        return None
    return metrics


def compare(root: Root, a: RunRecord, b: RunRecord) -> list[tuple[str, str, str]]:
    """What differs between two runs: (what, in a, in b). Settings, fingerprints, yields, metrics."""
    left, right = _facts(root, a), _facts(root, b)
    names = [*left, *(name for name in right if name not in left)]
    pairs = [(name, left.get(name, "–"), right.get(name, "–")) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _facts(root: Root, record: RunRecord) -> dict[str, str]:
    facts = {name: str(value) for name, value in _flat(read_config(root, record).model_dump(mode="json")).items()}
    facts["units"] = str(len(record.units))
    for stage, done in record.stages.items():
        facts[f"{stage} fingerprint"] = done.fingerprint
        facts |= {f"{stage} rows {name}": str(count) for name, count in _flat(done.rows).items()}
    for name, value in _flat((metrics_of(root, record) or {}).get("methods", {})).items():
        if name.endswith(".mean"):
            facts[f"metrics {name.removesuffix('.mean')}"] = f"{value:.4f}"
    return facts


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves
