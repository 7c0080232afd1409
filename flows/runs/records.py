"""Run records below `<root>/runs/<run id>/`: the config as run, its explicit units, what became of them, the log."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from bootpig.flows.loading import dump_config, parse_config
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.storage.jsonio import parse_json
from bootpig.storage.parts import Parts
from bootpig.storage.root import Root

FOLDER = "runs"
LATEST = f"{FOLDER}/latest.json"

BEAT_SECONDS = 60.0
"""How often a run says that it is alive."""

LOST_AFTER = timedelta(minutes=5)
"""Silence after which a run that never said its end is taken for dead. Generous: hosts' clocks differ."""

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


class Forced(BaseModel):
    """The units that a flow run with `force` has made: its retry finds them made."""

    flow_run: str
    units: dict[str, list[int]] = {}


class Process(BaseModel):
    """A process of a host."""

    host: str
    boot: str
    """Identifies the host's last start: no process survives a restart."""
    namespace: str
    """Of process numbers; each container has its own."""
    pid: int
    started: str
    """Clock ticks from the host's start to the process's: tells it from a later one with the same number."""

    @classmethod
    def current(cls) -> Process:
        return cls(
            host=socket.gethostname(),
            boot=_boot(),
            namespace=_namespace(),
            pid=os.getpid(),
            started=_started(os.getpid()) or "",
        )

    def is_gone(self) -> bool | None:
        """Whether it has ended; None where this host cannot tell."""
        if not self.boot or self.host != socket.gethostname():
            return None
        if self.boot != _boot():
            return True
        return _started(self.pid) != self.started if self.namespace == _namespace() else None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a living process started, in clock ticks since the host's start; None if there is none (or a zombie)."""
    try:
        # the command's name, in parentheses, may hold anything
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else fields[18]


class RunRecord(BaseModel):
    """One run, as `run.json` holds it."""

    id: str
    state: RunState = "running"
    started: datetime
    ended: datetime | None = None
    scheduled: datetime | None = None
    """When the schedule asked for it; the seed of a regeneration follows from it."""
    until: str | None = None
    """The stage a regeneration ends with; what continues it ends there too."""
    promoted: datetime | None = None
    """When it last became the `latest` one."""
    flow_run: str | None = None
    message: str = ""
    units: list[int]
    """The run's units, each number one by one: no reader looks at what else lies in the store."""
    stages: dict[str, StageRecord] = Field(default={})
    uses: dict[str, list[str]] = {}
    """Stage → the fingerprints it has read or written, noted before it does: `bootpig gc` spares them."""
    forced: Forced | None = None
    process: Process | None = None
    """Which process does its work; None in records of earlier releases."""

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

    def made_by_force(self, flow_run: str, stage: str) -> list[int]:
        """The units of `stage` that this very flow run, in an earlier attempt, has made by force."""
        if self.forced is None or self.forced.flow_run != flow_run:
            self.forced = Forced(flow_run=flow_run)
        return self.forced.units.setdefault(stage, [])

    def use(self, stage: str, fingerprint: str) -> bool:
        """Note that the run needs `<stage>/<fingerprint>`. Returns whether that is news."""
        known = self.uses.setdefault(stage, [])
        if not fingerprint or fingerprint in known:
            return False
        known.append(fingerprint)
        return True


def new_run(
    root: Root,
    config: PipelineConfig,
    *,
    flow_run: str | None = None,
    scheduled: datetime | None = None,
    until: str | None = None,
) -> RunRecord:
    """Record a run that starts now."""
    now = datetime.now(UTC)
    tail = flow_run[-8:] if flow_run else secrets.token_hex(4)
    record = RunRecord(
        id=f"{scheduled or now:%Y%m%d-%H%M%S}-{config.name}-{tail}",
        started=now,
        scheduled=scheduled,
        until=until,
        flow_run=flow_run,
        units=list(config.unit_numbers()),
        process=Process.current(),
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
        return _parsed(root, run, root.read(f"{FOLDER}/{run}/run.json"))
    except FileNotFoundError:
        raise InputError(f"run: {run!r} → there is no such run in {root.url!r}; see bootpig runs") from None


def _parsed(root: Root, run: str, data: bytes) -> RunRecord:
    try:
        return RunRecord.model_validate_json(data)
    except ValidationError:
        raise InputError(
            f"run: {run!r} → its run.json is not readable; remove {root.join(FOLDER, run)} and start a new run"
        ) from None


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
    """All records, by name, and so about the oldest first.

    Raises:
        InputError: one is not readable.
    """
    names = {f"{FOLDER}/{name}/run.json": name for name in root.folders(FOLDER)}
    read = root.read_many(list(names))
    return [_parsed(root, name, read[path]) for path, name in names.items() if path in read]


@contextmanager
def alive(root: Root, record: RunRecord) -> Iterator[None]:
    """Say once a minute, in the store, that the run is alive, until the block ends."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.is_set():
            # a beat that is missed does no harm, whatever the store says
            with suppress(Exception):
                root.write(f"{record.folder}/alive", f"{datetime.now(UTC).isoformat()}\n".encode())
            stop.wait(BEAT_SECONDS)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


def is_alive(root: Root, record: RunRecord) -> bool:
    """Whether the run is at work: it has not ended, its process is there, and it was not silent for `LOST_AFTER`."""
    if record.state != "running" or (record.process is not None and record.process.is_gone()):
        return False
    try:
        last = datetime.fromisoformat(root.read(f"{record.folder}/alive").decode().strip())
    except (FileNotFoundError, ValueError):
        last = record.started
    return datetime.now(UTC) - last < LOST_AFTER


def latest_run(root: Root) -> str:
    """The id of the promoted run.

    Raises:
        InputError: none has been promoted yet.
    """
    try:
        return str(parse_json(root.read(LATEST))["run"])
    except (FileNotFoundError, ValueError, KeyError):
        raise InputError(f"run: 'latest' → no run in {root.url!r} has succeeded yet; see bootpig runs") from None


def promote(root: Root, record: RunRecord) -> None:
    """Make a run the `latest` one.

    Raises:
        InputError: it did not succeed.
    """
    if record.state != "done":
        raise InputError(f"run: {record.id!r} → is {record.state}, only a run that is done can be promoted")
    record.promoted = datetime.now(UTC)
    record.save(root)
    root.write(LATEST, json.dumps({"run": record.id}).encode())


def metrics_of(root: Root, record: RunRecord) -> dict[str, Any] | None:
    """The run's `metrics.json`, or None."""
    try:
        metrics: dict[str, Any] = parse_json(root.read(f"{record.folder}/metrics.json"))
    except (FileNotFoundError, ValueError):
        return None
    return metrics


def compare(root: Root, a: RunRecord, b: RunRecord) -> list[tuple[str, str, str]]:
    """What differs between two runs: (what, in a, in b). Settings, fingerprints, yields, subjects, metrics."""
    left, right = _facts(root, a), _facts(root, b)
    names = list(dict.fromkeys([*left, *right]))
    # subjects that only one of them has stand among the others
    names.sort(key=lambda name: (1, name) if name.startswith("subject ") else (2 * name.startswith("metrics "), ""))
    pairs = [(name, left.get(name, "–"), right.get(name, "–")) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _facts(root: Root, record: RunRecord) -> dict[str, str]:
    facts = {name: str(value) for name, value in _flat(read_config(root, record).model_dump(mode="json")).items()}
    facts["units"] = str(len(record.units))
    for stage, done in record.stages.items():
        facts[f"{stage} fingerprint"] = done.fingerprint
        facts |= {f"{stage} rows {name}": str(count) for name, count in _flat(done.rows).items()}
    facts |= {f"subject {name}": str(count) for name, count in sorted(_subjects(root, record).items())}
    for name, value in _flat((metrics_of(root, record) or {}).get("methods", {})).items():
        if name.endswith(".mean"):
            facts[f"metrics {name.removesuffix('.mean')}"] = f"{value:.4f}"
    return facts


def _subjects(root: Root, record: RunRecord) -> Counter[str]:
    """How many captions of the run ask for each object."""
    if "caption" not in record.stages:
        return Counter()
    markers = Parts(root, "caption", record.stages["caption"].fingerprint).listing(record.units).markers
    rows = [row for marker in markers.values() for row in marker.rows if row["status"] == "ok"]
    return Counter(row["object"] for row in rows)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves
