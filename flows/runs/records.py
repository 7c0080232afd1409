"""Reads and writes run records in `<root>/runs/<run id>/`: the config, the list of units, their outcome, the log."""

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
from bootpig.storage.secrets import mask

FOLDER = "runs"
LATEST = f"{FOLDER}/latest.json"

BEAT_SECONDS = 60.0
"""How often a run writes its heartbeat."""

LOST_AFTER = timedelta(minutes=5)
"""A run without a heartbeat for this long is considered dead. Generous, because the clocks of hosts differ."""

RunState = Literal["running", "done", "failed", "interrupted"]


class StageRecord(BaseModel):
    """The outcome of one stage in one run."""

    fingerprint: str
    made: list[int] = []
    cached: int = 0
    failed: dict[int, str] = {}
    """Unit → error message, one line."""
    rows: dict[str, Any] = {}
    """Row counts, as in `bootpig status`."""
    seconds: float = 0.0


class Forced(BaseModel):
    """The units that a flow run with `force` has already made, so that a retry does not make them again."""

    flow_run: str
    units: dict[str, list[int]] = {}


class Process(BaseModel):
    """Identifies a process on a host."""

    host: str
    boot: str
    """Boot id of the host: no process survives a reboot."""
    namespace: str
    """PID namespace; each container has its own."""
    pid: int
    started: str
    """Start time in clock ticks since boot. Distinguishes the process from a later one with the same PID."""

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
        """Whether the process has ended; None if this host cannot know."""
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
    """Start time of a process in clock ticks since boot; None if it does not exist or is a zombie."""
    try:
        # the command name, in parentheses, may contain any characters
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else fields[18]


class RunRecord(BaseModel):
    """One run; the content of `run.json`."""

    id: str
    state: RunState = "running"
    started: datetime
    ended: datetime | None = None
    scheduled: datetime | None = None
    """Scheduled start time. Determines the seed of a regeneration."""
    until: str | None = None
    """`encode` for a regeneration that only makes the data set, also when it is continued."""
    promoted: datetime | None = None
    """When it was last made the `latest` run."""
    flow_run: str | None = None
    message: str = ""
    units: list[int]
    """Explicit list of the run's units. Readers use it and ignore other units in the store."""
    stages: dict[str, StageRecord] = Field(default={})
    uses: dict[str, list[str]] = {}
    """Stage → fingerprints that the run reads or writes, recorded beforehand so that `bootpig gc` keeps them."""
    forced: Forced | None = None
    process: Process | None = None
    """The process that executes the run; None in records of earlier releases."""

    @property
    def folder(self) -> str:
        return f"{FOLDER}/{self.id}"

    def save(self, root: Root) -> None:
        root.write(f"{self.folder}/run.json", self.model_dump_json(indent=2).encode())

    def log(self, root: Root, line: str) -> None:
        """Add a line with a timestamp to the run's log."""
        path = f"{self.folder}/log.txt"
        before = root.read(path) if root.exists(path) else b""
        root.write(path, before + f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z {mask(line)}\n".encode())

    def made_by_force(self, flow_run: str, stage: str) -> list[int]:
        """The units of `stage` that an earlier attempt of the same flow run has already made with `force`."""
        if self.forced is None or self.forced.flow_run != flow_run:
            self.forced = Forced(flow_run=flow_run)
        return self.forced.units.setdefault(stage, [])

    def use(self, stage: str, fingerprint: str) -> bool:
        """Record that the run uses `<stage>/<fingerprint>`. Returns whether it was not recorded before."""
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
    """Create the record of a run that starts now."""
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
    """The record of a run id or of `latest`.

    Raises:
        InputError: it does not exist or cannot be read.
    """
    run = latest_run(root) if run == "latest" else run
    if not re.fullmatch(r"[\w.-]+", run):
        raise InputError(f"run: {run!r} → is not a run id; list them with bootpig runs")
    try:
        return _parsed(root, run, root.read(f"{FOLDER}/{run}/run.json"))
    except FileNotFoundError:
        raise InputError(f"run: {run!r} → there is no such run in {root.url!r}; list them with bootpig runs") from None


def _parsed(root: Root, run: str, data: bytes) -> RunRecord:
    try:
        return RunRecord.model_validate_json(data)
    except ValidationError:
        raise InputError(
            f"run: {run!r} → its run.json is not readable; remove {root.join(FOLDER, run)} and start a new run"
        ) from None


def read_config(root: Root, record: RunRecord) -> PipelineConfig:
    """The configuration of a run, with `root` set to the store in which the record was found."""
    name = f"{record.folder}/config.yaml"
    try:
        return parse_config(root.read(name).decode(), [f"root={json.dumps(root.url)}"], name=name)
    except FileNotFoundError:
        raise InputError(f"run: {record.id!r} → its config.yaml is missing; start a new run") from None


def run_of_flow(root: Root, flow_run: str) -> RunRecord | None:
    """The record left by an earlier attempt of the same Prefect flow run, so that a retry can continue it."""
    for name in root.folders(FOLDER):
        if name.endswith(flow_run[-8:]) and (record := read_run(root, name)).flow_run == flow_run:
            return record
    return None


def list_runs(root: Root) -> list[RunRecord]:
    """All records sorted by name, which is roughly oldest first.

    Raises:
        InputError: a record is not readable.
    """
    names = {f"{FOLDER}/{name}/run.json": name for name in root.folders(FOLDER)}
    read = root.read_many(list(names))
    return [_parsed(root, name, read[path]) for path, name in names.items() if path in read]


@contextmanager
def alive(root: Root, record: RunRecord) -> Iterator[None]:
    """Write the run's heartbeat to the store once a minute until the block ends."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.is_set():
            # a missed heartbeat does no harm
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
    """Whether the run is live: not ended, its process exists, and its last heartbeat is newer than `LOST_AFTER`."""
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
        raise InputError(f"run: 'latest' → no run in {root.url!r} has been promoted yet; see bootpig runs") from None


def promote(root: Root, record: RunRecord) -> None:
    """Make a run the `latest` one.

    Raises:
        InputError: the run is not done.
    """
    if record.state != "done":
        raise InputError(f"run: {record.id!r} → is {record.state}; only a run that is done can be promoted")
    record.promoted = datetime.now(UTC)
    record.save(root)
    root.write(LATEST, json.dumps({"run": record.id}).encode())


def metrics_of(root: Root, record: RunRecord) -> dict[str, Any] | None:
    """The content of the run's `metrics.json`, or None."""
    try:
        metrics: dict[str, Any] = parse_json(root.read(f"{record.folder}/metrics.json"))
    except (FileNotFoundError, ValueError):
        return None
    return metrics


def compare(root: Root, a: RunRecord, b: RunRecord) -> list[tuple[str, str, str]]:
    """The differences between two runs as (name, in a, in b): settings, fingerprints, counts, subjects, metrics."""
    left, right = _facts(root, a), _facts(root, b)
    names = list(dict.fromkeys([*left, *right]))
    # sort subjects together, including those that only one run has
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
    """Number of captions of the run for each object."""
    source = next((name for name in ("caption", "pictures") if name in record.stages), None)
    if source is None:
        return Counter()
    markers = Parts(root, source, record.stages[source].fingerprint).listing(record.units).markers
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
