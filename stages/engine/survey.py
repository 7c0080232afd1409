"""Finds which units are complete in the store, with one listing per stage and without reading payloads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import MapStage, ReduceStage, Stage
from bootpig.stages.engine.graph import Graph
from bootpig.stages.registry import STAGES
from bootpig.storage.fingerprint import digest
from bootpig.storage.folders import Published, read_manifest
from bootpig.storage.parts import Marker, Parts
from bootpig.storage.root import Root

UnitState = Literal["complete", "stale", "failed", "pending"]


@dataclass
class StageSurvey:
    """The state of one stage in the store."""

    stage: str
    fingerprint: str
    """Empty while it is unknown, which is the case for a reduce stage with incomplete input."""
    path: str
    """Relative to the root."""
    identity: dict[str, Any]
    """The input of the fingerprint."""
    units: dict[int, UnitState]
    markers: dict[int, Marker] = field(default_factory=dict)
    """The markers of complete units."""
    failures: dict[int, str] = field(default_factory=dict)
    """Unit → error message of its last failure."""
    result: Published | None = None
    """The result of a reduce stage."""

    def rows(self) -> dict[str, Any]:
        """Row counts of the complete units: `{"ok": n, "rejected": {reason: n}, "failed": {reason: n}}`."""
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


def graph_of(config: PipelineConfig, stages: Mapping[str, type[Stage]] | None = None) -> Graph:
    """The graph of a run: those of `stages` (default: the registry) for which the configuration has settings."""
    known = STAGES if stages is None else stages
    return Graph.of(known, {name for name in known if getattr(config, name, None) is None})


def complete_stages(surveys: Mapping[str, StageSurvey], graph: Graph) -> set[str]:
    """The stages that are complete, as all of `surveys` are that they read.

    A reduce stage alone can look complete while units above it are missing: it has a result for those that exist.

    Args:
        surveys: in the order of the graph.
    """
    found: set[str] = set()
    for name, survey in surveys.items():
        above = [each for each in graph.upstream[name] if each in surveys]
        if found.issuperset(above) and all(state == "complete" for state in survey.units.values()):
            found.add(name)
    return found


def make_stage(config: PipelineConfig, name: str) -> Stage:
    """Make a stage of the registry with its settings."""
    return STAGES[name](config.section(name), config.seed)


def identity_of(stage: Stage, config: PipelineConfig, upstream: str | Mapping[str, str]) -> dict[str, Any]:
    """The input of a fingerprint: stage, version, hashed config, model identities, and the fingerprints of upstreams.

    Args:
        upstream: the fingerprint of the only upstream, or those of several by name. Empty for a source.

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
    if not stage.upstream:
        identity |= {"seed": config.seed, "unit_size": config.unit_size}
    return identity


def fingerprint_of(identity: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the identity's sha256."""
    return digest(identity)[:16]


def input_digest(markers: Mapping[str, Marker]) -> str:
    """Digest of a unit's input: the digest of its only upstream marker, or a digest over several by stage name.

    Args:
        markers: the unit's marker in each upstream, at least one.
    """
    digests = {name: marker.digest for name, marker in markers.items()}
    return next(iter(digests.values())) if len(digests) == 1 else digest(digests)


def _alone(values: Mapping[str, Any]) -> Any:
    """The value itself if there is only one upstream. So fingerprints of chains are the same as before the graph."""
    return next(iter(values.values())) if len(values) == 1 else dict(values)


class Surveyor:
    """Surveys stages in the order of the graph, each against its upstreams."""

    def __init__(self, config: PipelineConfig, root: Root, graph: Graph) -> None:
        self.config = config
        self.root = root
        self.graph = graph
        self._identities: dict[tuple[str, str], dict[str, Any]] = {}
        self._kept: dict[str, Stage] = {}

    def make(self, name: str) -> Stage:
        """Make a stage with its settings, or take the one that is kept."""
        if name in self._kept:
            return self._kept[name]
        stage = self.graph.stages[name](self.config.section(name), self.config.seed)
        return self._kept.setdefault(name, stage) if stage.kept else stage

    def survey(self, names: Iterable[str]) -> dict[str, StageSurvey]:
        """Survey the stages `names` and all stages that they depend on, in the graph's order."""
        surveys: dict[str, StageSurvey] = {}
        for name in self.graph.above(names):
            above = [surveys[upstream] for upstream in self.graph.upstream[name]]
            stage = self.make(name)
            if isinstance(stage, MapStage):
                surveys[name] = self._map(stage, self.identities(name)[name], above)
            else:
                assert isinstance(stage, ReduceStage)
                surveys[name] = self._reduce(stage, above)
        return surveys

    def identities(self, name: str) -> dict[str, dict[str, Any]]:
        """The identities of a map stage and of all stages that it depends on. Does not read the store."""
        identities: dict[str, dict[str, Any]] = {}
        for stage in self.graph.above([name]):
            above = {upstream: fingerprint_of(identities[upstream]) for upstream in self.graph.upstream[stage]}
            key = stage, digest(above)
            if key not in self._identities:
                self._identities[key] = identity_of(self.make(stage), self.config, _alone(above) if above else "")
            identities[stage] = self._identities[key]
        return identities

    def _map(self, stage: MapStage, identity: dict[str, Any], above: Sequence[StageSurvey]) -> StageSurvey:
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
            elif not above:
                fresh = marker.input == stage.source_digest(unit, self.config.indices(unit))
                units[unit] = "complete" if fresh else "stale"
            else:
                read = {survey.stage: survey.markers[unit] for survey in above if unit in survey.markers}
                fresh = len(read) == len(above) and marker.input == input_digest(read)
                units[unit] = "complete" if fresh else "stale"
            if units[unit] != "complete":
                markers.pop(unit, None)
        return StageSurvey(stage.name, fingerprint, parts.folder, identity, units, markers, failures)

    def _reduce(self, stage: ReduceStage, above: Sequence[StageSurvey]) -> StageSurvey:
        upstream = _alone({survey.stage: survey.fingerprint for survey in above})
        identity = identity_of(stage, self.config, upstream)
        datasets = {survey.stage: self._dataset(survey) for survey in above}
        if not all(datasets.values()):
            return StageSurvey(stage.name, "", "", identity, {0: "pending"})
        identity = {**identity, "dataset": _alone(datasets)}
        fingerprint = fingerprint_of(identity)
        folder = f"{stage.name}/{fingerprint}"
        result = read_manifest(self.root, f"{folder}/result")
        failures = Parts(self.root, stage.name, fingerprint).listing(()).failures
        state: UnitState = "complete" if result is not None else "failed" if 0 in failures else "pending"
        return StageSurvey(stage.name, fingerprint, folder, identity, {0: state}, failures=failures, result=result)

    def _dataset(self, survey: StageSurvey) -> list[list[Any]]:
        """The units or result files of an upstream that a reduce stage reads, with their digests. Empty if none."""
        above = self.graph.stages[survey.stage]
        if not issubclass(above, ReduceStage):
            return [[unit, marker.digest] for unit, marker in sorted(survey.markers.items())]
        made = [] if survey.result is None else sorted(survey.result.files.items())
        return [[name, facts["sha256"]] for name, facts in made if name.startswith(above.identity_prefix)]
