"""What is in the store and what is still due: one listing a stage, no payload read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import MapStage, ReduceStage, Stage
from bootpig.stages.registry import STAGES
from bootpig.storage.fingerprint import digest
from bootpig.storage.folders import Published, read_manifest
from bootpig.storage.parts import Marker, Parts
from bootpig.storage.root import Root

UnitState = Literal["complete", "stale", "failed", "pending"]


@dataclass
class StageSurvey:
    """One stage as the store shows it."""

    stage: str
    fingerprint: str
    """Empty while it is not known: a reduce stage over units that are still due."""
    path: str
    """Relative to the root."""
    identity: dict[str, Any]
    """The fingerprint's input."""
    units: dict[int, UnitState]
    markers: dict[int, Marker] = field(default_factory=dict)
    """Of complete units."""
    failures: dict[int, str] = field(default_factory=dict)
    result: Published | None = None
    """A reduce stage's result."""

    def rows(self) -> dict[str, Any]:
        """Rows of the complete units: `{"ok": n, "rejected": {reason: n}, "failed": {reason: n}}`."""
        counts: Counter[tuple[str, str]] = Counter()
        for marker in self.markers.values():
            counts.update(marker.counts)
        by: dict[str, Any] = {"ok": 0, "rejected": {}, "failed": {}}
        for (status, reason), count in sorted(counts.items()):
            if status == "ok":
                by["ok"] += count
            else:
                by[status][reason] = count
        return by

    def count(self, state: UnitState) -> int:
        return sum(1 for value in self.units.values() if value == state)


def make_stage(config: PipelineConfig, name: str) -> Stage:
    return STAGES[name](getattr(config, name), config.seed)


def identity_of(stage: Stage, config: PipelineConfig, upstream: str) -> dict[str, Any]:
    """The fingerprint's input: stage, version, hashed config, model identities, the upstream fingerprint.

    Raises:
        InputError, ModelError: a model is missing.
    """
    identity: dict[str, Any] = {
        "stage": stage.name,
        "version": stage.version,
        "config": stage.config.hashed(),
        "models": {name: model.as_json() for name, model in sorted(stage.models().items())},
        "upstream": upstream,
    }
    if stage.upstream is None:
        identity |= {"seed": config.seed, "unit_size": config.unit_size}
    return identity


def fingerprint_of(identity: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the identity's sha256."""
    return digest(identity)[:16]


class Surveyor:
    """Surveys stages in DAG order, each against the one above it."""

    def __init__(self, config: PipelineConfig, root: Root) -> None:
        self.config = config
        self.root = root
        self._identities: dict[tuple[str, str], dict[str, Any]] = {}

    def survey(self, names: Iterable[str]) -> dict[str, StageSurvey]:
        """Survey the stages `names` and all those above them, in DAG order."""
        needed: set[str] = set()
        for name in names:
            above: str | None = name
            while above is not None:
                needed.add(above)
                above = STAGES[above].upstream
        surveys: dict[str, StageSurvey] = {}
        for name in STAGES:
            if name in needed:
                upstream = STAGES[name].upstream
                surveys[name] = self._one(name, surveys[upstream] if upstream else None)
        return surveys

    def chain(self, name: str) -> dict[str, dict[str, Any]]:
        """The identities of a map stage and of all those above it; the store is not read."""
        names = [name]
        while (above := STAGES[names[-1]].upstream) is not None:
            names.append(above)
        identities: dict[str, dict[str, Any]] = {}
        fingerprint = ""
        for stage in reversed(names):
            if (stage, fingerprint) not in self._identities:
                made = identity_of(make_stage(self.config, stage), self.config, fingerprint)
                self._identities[stage, fingerprint] = made
            identities[stage] = self._identities[stage, fingerprint]
            fingerprint = fingerprint_of(identities[stage])
        return identities

    def _one(self, name: str, upstream: StageSurvey | None) -> StageSurvey:
        stage = make_stage(self.config, name)
        if isinstance(stage, MapStage):
            return self._map(stage, self.chain(name)[name], upstream)
        assert isinstance(stage, ReduceStage) and upstream is not None
        return self._reduce(stage, identity_of(stage, self.config, upstream.fingerprint), upstream)

    def _map(self, stage: MapStage, identity: dict[str, Any], upstream: StageSurvey | None) -> StageSurvey:
        fingerprint = fingerprint_of(identity)
        parts = Parts(self.root, stage.name, fingerprint)
        numbers = self.config.unit_numbers()
        found = parts.listing(numbers)
        markers, broken, failures = found.markers, found.broken, found.failures
        units: dict[int, UnitState] = {}
        for unit in numbers:
            marker = markers.get(unit)
            if marker is None:
                units[unit] = "stale" if unit in broken else "failed" if unit in failures else "pending"
            elif upstream is None:
                fresh = marker.input == stage.source_digest(unit, self.config.indices(unit))
                units[unit] = "complete" if fresh else "stale"
            else:
                above = upstream.markers.get(unit)
                units[unit] = "complete" if above is not None and above.digest == marker.input else "stale"
            if units[unit] != "complete":
                markers.pop(unit, None)
        return StageSurvey(stage.name, fingerprint, parts.folder, identity, units, markers, failures)

    def _reduce(self, stage: ReduceStage, identity: dict[str, Any], upstream: StageSurvey) -> StageSurvey:
        above = STAGES[upstream.stage]
        if not issubclass(above, ReduceStage):
            due = not upstream.markers
            dataset: Any = [[unit, marker.digest] for unit, marker in sorted(upstream.markers.items())]
        else:
            due = upstream.result is None
            made = [] if upstream.result is None else sorted(upstream.result.files.items())
            dataset = [[name, facts["sha256"]] for name, facts in made if name.startswith(above.identity_prefix)]
        if due:
            return StageSurvey(stage.name, "", "", identity, {0: "pending"})
        identity = {**identity, "dataset": dataset}
        fingerprint = fingerprint_of(identity)
        folder = f"{stage.name}/{fingerprint}"
        result = read_manifest(self.root, f"{folder}/result")
        failures = Parts(self.root, stage.name, fingerprint).listing(()).failures
        state: UnitState = "complete" if result is not None else "failed" if 0 in failures else "pending"
        return StageSurvey(stage.name, fingerprint, folder, identity, {0: state}, failures=failures, result=result)
