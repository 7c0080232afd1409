"""The engine: runs units and results, commits them, and decides what is cached. Knows nothing of orchestration."""

from __future__ import annotations

import errno
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from bootpig.models.memory import is_out_of_memory
from bootpig.models.pretrained.downloads import fetch
from bootpig.models.pretrained.sources import ModelSource
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import (
    FatalError,
    InputError,
    MapStage,
    Postponed,
    Progress,
    ReduceStage,
    Sample,
    SourceContext,
)
from bootpig.stages.engine.loaded import load_count, loaded
from bootpig.stages.engine.reduce import is_first_process, publish_result
from bootpig.stages.engine.shardio import UNPACKED, pack, unpack
from bootpig.stages.engine.slices import Slices
from bootpig.stages.engine.survey import StageSurvey, Surveyor, fingerprint_of, make_stage
from bootpig.stages.registry import STAGES
from bootpig.storage.errors import CorruptPart, StoreError, StoreUnavailable
from bootpig.storage.folders import check_folder, withdraw_folder
from bootpig.storage.parts import Marker, Parts
from bootpig.storage.root import Root

WAITS = "waits for the GPU"


class UnitFailed(RuntimeError):
    """A unit was not committed. The message is one line."""


@dataclass(frozen=True)
class UnitReport:
    """What became of one unit, or of a reduce stage's result (unit 0)."""

    stage: str
    unit: int
    state: Literal["done", "cached", "failed", "pending"]
    """pending: not now, though nothing is wrong with it."""
    message: str = ""
    seconds: float = 0.0
    samples: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    """Rows by status."""


def quiet(done: int, total: int, text: str) -> None:
    """A progress callback that shows nothing."""


class Engine:
    """Runs the stages of one configuration against its store.

    Raises:
        StoreError: the root cannot be opened.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self.root = Root(config.root)
        self._surveyor = Surveyor(config, self.root)

    def units(self) -> range:
        return self.config.unit_numbers()

    def survey(self, stage: str) -> StageSurvey:
        """One stage as the store shows it now."""
        return self._surveyor.survey([stage])[stage]

    def survey_all(self, stages: Iterable[str] = tuple(STAGES)) -> dict[str, StageSurvey]:
        return self._surveyor.survey(stages)

    def missing_models(self, stages: Iterable[str] = tuple(STAGES), ready: bool = False) -> dict[str, list[str]]:
        """What each stage lacks of its models, one line each; all are looked for at the same time.

        Args:
            ready: ask the source too whether it could begin, where it has something to do.
        """

        def look_up(name: str) -> list[str]:
            try:
                stage = make_stage(self.config, name)
                stage.models()
                if ready and isinstance(stage, MapStage) and stage.upstream is None and self._is_due(name):
                    stage.check_ready()
            except (ValueError, OSError) as error:
                return str(error).splitlines()
            return []

        names = list(stages)
        with ThreadPoolExecutor(len(names) or 1) as pool:
            return dict(zip(names, pool.map(look_up, names), strict=True))

    def pinned(self, stages: Iterable[str] = tuple(STAGES)) -> PipelineConfig:
        """The configuration with commits in place of the revisions of these stages' hub models.

        So all processes of a run, and a repair of it months later, see the same models.

        Raises:
            InputError, ModelError: a model is missing.
        """
        pins: dict[str, dict[str, str]] = {}
        for name in stages:
            for model, source in make_stage(self.config, name).models().items():
                if isinstance(source, ModelSource) and source.revision is not None:
                    field = "revision" if model == "model" else f"{model}_revision"
                    pins.setdefault(name, {})[field] = source.revision
        for name, other in (("encode", "train"), ("train", "encode")):
            if "revision" in pins.get(name, {}):  # they name one model
                pins.setdefault(other, {})["revision"] = pins[name]["revision"]
        copies = {name: getattr(self.config, name).model_copy(update=pin) for name, pin in pins.items()}
        return self.config.model_copy(update=copies)

    def fetch(self, stages: Iterable[str], told: Callable[[str], None]) -> None:
        """Download the checkpoints that are given by URL, where their stages have something to do.

        Before the first stage works: a wrong sha256 should not be found after a night of painting.

        Args:
            told: one line for each download.

        Raises:
            ModelError: one cannot be downloaded, or is another file.
        """
        for name in stages:
            for source in make_stage(self.config, name).models().values():
                if isinstance(source, ModelSource) and source.sha256 is not None and self._is_due(name):
                    fetch(source, told)

    def preflight(self, stages: Iterable[str] = tuple(STAGES)) -> list[str]:
        """What would keep a run from starting, one line each: missing models, a store that cannot be written."""
        unwritable = []
        try:
            self.root.check_writable()
        except (StoreError, OSError) as error:
            unwritable.append(str(error))
        missing = self.missing_models(stages, ready=not unwritable)
        return list(dict.fromkeys([*(line for lines in missing.values() for line in lines), *unwritable]))

    def _is_due(self, stage: str) -> bool:
        return any(state != "complete" for state in self.survey(stage).units.values())

    def run_unit(
        self,
        stage: str,
        unit: int,
        *,
        force: bool = False,
        retry_failed: bool = False,
        progress: Progress = quiet,
    ) -> UnitReport:
        """Make one unit of a map stage, or find it made.

        Args:
            force: make it again although it is complete.
            retry_failed: make the slices again that hold failed rows.

        Returns:
            A report; a unit that could not be committed is `failed` with one line of why, and what was there before
            is kept, and one that cannot be made now is `pending`.

        Raises:
            InputError, ModelError, StoreError: what the user gave cannot be used.
        """
        map_stage = make_stage(self.config, stage)
        assert isinstance(map_stage, MapStage)
        if unit not in self.units():
            raise InputError(f"units: {unit} is not a unit of this run; they are 0 to {len(self.units()) - 1}")
        work = _UnitWork(self, map_stage, unit)
        started = time.monotonic()
        try:
            report = work.run(force, retry_failed, progress)
        except Postponed as error:
            return UnitReport(stage, unit, "pending", str(error), time.monotonic() - started)
        except (UnitFailed, StoreUnavailable) as error:
            work.note_failure(str(error), started)
            return UnitReport(stage, unit, "failed", str(error), time.monotonic() - started)
        return report

    def run_reduce(self, stage: str, *, force: bool = False, progress: Progress = quiet) -> UnitReport:
        """Make the result of a reduce stage over the complete units above it, or find it made.

        In a distributed run every process calls it; the first one publishes.

        Raises:
            InputError, ModelError, StoreError: what the user gave cannot be used.
        """
        surveys = self._surveyor.survey([stage])
        survey = surveys[stage]
        if not survey.fingerprint:
            return UnitReport(stage, 0, "failed", f"{stage}: nothing above it is complete; run the stages above first")
        if survey.result is not None and not force:
            return UnitReport(stage, 0, "cached")
        reduce_stage = make_stage(self.config, stage)
        assert isinstance(reduce_stage, ReduceStage)
        parts = Parts(self.root, stage, survey.fingerprint)
        parts.describe(survey.identity)
        started = time.monotonic()
        try:
            with loaded(reduce_stage, self.config, lambda: progress(0, 1, WAITS)) as ready:
                assert isinstance(ready, ReduceStage)
                above = surveys[str(reduce_stage.upstream)]
                publish_result(self.root, ready, survey, above, progress, anew=force)
        except (CorruptPart, StoreUnavailable) as error:
            message = str(error)
        except (FatalError, OSError, RuntimeError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                message = f"{stage}: no space left on the disk of its work folder; free some and run again"
            else:
                message = f"{stage}: {type(error).__name__}: {_first_line(error)}"
                parts.log(0, _record("failed", started, message=traceback.format_exc()))
        else:
            if is_first_process():
                parts.log(0, _record("done", started))
                self.root.remove(f"{parts.folder}/failed-00000.txt")
            return UnitReport(stage, 0, "done", seconds=time.monotonic() - started)
        _quietly(parts.note_failure, 0, message)
        return UnitReport(stage, 0, "failed", message, time.monotonic() - started)

    def verify(self, stage: str, progress: Progress = quiet) -> list[str]:
        """Re-read every byte of a stage against its checksum. A bad unit is made stale and named, one line each."""
        survey = self.survey(stage)
        if survey.result is not None:
            bad = check_folder(self.root, survey.result)
            if bad:
                withdraw_folder(self.root, f"{survey.path}/result", survey.result)
            return [f"{stage}: result/{name} missing or altered" for name in bad]
        parts = Parts(self.root, stage, survey.fingerprint)
        problems = []
        for done, (unit, marker) in enumerate(sorted(survey.markers.items()), 1):
            try:
                parts.payload(unit, marker)
            except CorruptPart as error:
                parts.discard_payload(unit)
                problems.append(str(error))
            progress(done, len(survey.markers), f"unit {unit}")
        problems += [f"{stage} unit {unit}: stale" for unit, state in survey.units.items() if state == "stale"]
        return problems


class _UnitWork:
    """One unit of one map stage, from its upstream part to its commit."""

    def __init__(self, engine: Engine, stage: MapStage, unit: int) -> None:
        self.engine = engine
        self.config = engine.config
        self.stage = stage
        self.unit = unit
        self.identities = engine._surveyor.chain(stage.name)
        self.parts = Parts(engine.root, stage.name, fingerprint_of(self.identities[stage.name]))

    def note_failure(self, message: str, started: float) -> None:
        # The disk may be full: what cannot be noted is still in the report.
        _quietly(self.parts.note_failure, self.unit, message)
        _quietly(self.parts.log, self.unit, _record("failed", started, message=message))

    def run(self, force: bool, retry_failed: bool, progress: Progress) -> UnitReport:
        started = time.monotonic()
        upstream, upstream_parts, input_digest = self._above()
        before = self._committed(input_digest)
        if before is not None and not force:
            failed = any(status == "failed" for status, _ in before.counts)
            if not (retry_failed and failed):
                return UnitReport(self.stage.name, self.unit, "cached", samples=before.counts.total())
        kept = {} if before is None or force else self._kept(before)
        context = SourceContext(self.parts, self.engine.units(), force, progress)
        results: list[Sample] = []
        try:
            samples = self._samples(upstream, upstream_parts, context)
            with loaded(self.stage, self.config, lambda: progress(0, len(samples), WAITS)) as stage:
                assert isinstance(stage, MapStage)
                size = stage.slice_size
                slices = Slices(stage, self.unit)
                for begin in range(0, len(samples), size):
                    batch = samples[begin : begin + size]
                    if all(sample.id in kept for sample in batch):
                        results += [kept[sample.id] for sample in batch]
                    else:
                        results += slices.process(batch)
                    progress(min(begin + size, len(samples)), len(samples), "")
        except FatalError as error:
            raise UnitFailed(f"{self.stage.name} unit {self.unit}: {_first_line(error)}") from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise UnitFailed(
                f"{self.stage.name} unit {self.unit}: out of memory while its models were loaded; take smaller ones "
                "or a device with more memory"
            ) from error
        facts: dict[str, Any] = {"usage": context.usage} if context.usage else {}
        if slices.halved:
            facts["out_of_memory"] = slices.halved
        return self._commit(samples, results, input_digest, started, facts)

    def _above(self) -> tuple[Marker | None, Parts | None, str]:
        if self.stage.upstream is None:
            return None, None, self.stage.source_digest(self.unit, self.config.indices(self.unit))
        parts = Parts(self.engine.root, self.stage.upstream, fingerprint_of(self.identities[self.stage.upstream]))
        try:
            marker = parts.marker(self.unit)
        except CorruptPart:
            marker = None
        if marker is None:
            raise UnitFailed(f"{self.stage.name} unit {self.unit}: its unit of {self.stage.upstream} is not complete")
        return marker, parts, marker.digest

    def _committed(self, input_digest: str) -> Marker | None:
        """The unit's own marker, if it is complete."""
        marker = self.parts.whole(self.unit)
        return marker if marker is not None and marker.input == input_digest else None

    def _samples(self, upstream: Marker | None, parts: Parts | None, context: SourceContext) -> list[Sample]:
        if upstream is None or parts is None:
            return self.stage.draw(self.unit, self.config.indices(self.unit), context)
        try:
            payload = parts.payload(self.unit, upstream)
        except CorruptPart as error:
            parts.discard_payload(self.unit)
            raise UnitFailed(str(error)) from None
        return unpack(upstream.read(UNPACKED), payload)

    def _kept(self, before: Marker) -> dict[str, Sample]:
        """The samples of a committed part that a retry need not make again."""
        try:
            made = {sample.id: sample for sample in unpack(before.rows, self.parts.payload(self.unit, before))}
        except CorruptPart:
            return {}
        for row in before.rows:
            if row["status"] == "rejected":
                columns = {name: row[name] for name in self.stage.columns.names}
                made[row["id"]] = Sample(row["id"], self.unit, {}, {}, columns, "rejected", row["reason"])
        return made

    def _commit(
        self,
        samples: Sequence[Sample],
        results: Sequence[Sample],
        input_digest: str,
        started: float,
        facts: Mapping[str, Any],
    ) -> UnitReport:
        """`facts` go into the unit's log beside the rest."""
        _check_results(self.stage, samples, results)
        counts = {status: sum(1 for r in results if r.status == status) for status in ("ok", "rejected", "failed")}
        messages = [{"id": r.id, "reason": r.reason, "message": r.message} for r in results if r.message]
        if counts["failed"] > self.config.max_failed * len(results):
            reasons = sorted({r.reason for r in results if r.status == "failed"})
            first = f"; first: {messages[0]['message']}" if messages else ""
            raise UnitFailed(
                f"{self.stage.name} unit {self.unit}: {counts['failed']} of {len(results)} rows failed"
                f" ({', '.join(reasons)}), more than max_failed={self.config.max_failed:g} allows{first}"
            )
        rows = [{"id": r.id, "unit": r.unit, "status": r.status, "reason": r.reason, **r.columns} for r in results]
        try:
            self.parts.describe(self.identities[self.stage.name])
            self.parts.commit(self.unit, rows, self.stage.columns, pack(results), input_digest)
            self.parts.log(self.unit, _record("done", started, rows=counts, messages=messages, **facts))
        except StoreError as error:
            raise UnitFailed(f"{self.stage.name} unit {self.unit}: {error}") from error
        seconds = time.monotonic() - started
        return UnitReport(self.stage.name, self.unit, "done", "", seconds, len(results), counts)


def _check_results(stage: MapStage, samples: Sequence[Sample], results: Sequence[Sample]) -> None:
    """A stage answers for every sample, in order, with reasons it has declared."""
    if stage.upstream is not None and [r.id for r in results] != [s.id for s in samples]:
        raise AssertionError(f"{stage.name}: process() must return one result a sample, in order")
    if len({r.id for r in results}) != len(results):
        raise AssertionError(f"{stage.name}: sample ids repeat")
    for result in results:
        if result.status != "ok" and result.reason not in {*stage.reasons, "error"}:
            raise AssertionError(f"{stage.name}: reason {result.reason!r} is not declared")


def _record(event: str, started: float, **more: Any) -> dict[str, Any]:
    seconds = round(time.monotonic() - started, 3)
    where = {"host": socket.gethostname(), "process": os.getpid(), "loads": load_count()}
    return {"event": event, "time": time.time(), "seconds": seconds, **where, **more}


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _quietly(write: Any, *arguments: Any) -> None:
    with suppress(StoreError, OSError):
        write(*arguments)
