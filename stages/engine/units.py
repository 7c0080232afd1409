"""Makes one unit of a map stage: reads the units above, runs the stage on their samples, and commits the result."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import pyarrow as pa

from bootpig.models.memory import is_out_of_memory
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import FatalError, MapStage, Progress, Sample, SourceContext
from bootpig.stages.engine.loaded import load_count, loaded
from bootpig.stages.engine.shardio import UNPACKED, pack, unpack
from bootpig.stages.engine.slices import Slices, in_slices
from bootpig.stages.engine.survey import Surveyor, fingerprint_of, input_digest
from bootpig.storage.errors import CorruptPart, StoreError, StoreFull
from bootpig.storage.parts import Marker, Parts
from bootpig.storage.secrets import mask

WAITS = "waiting for the GPU"


class UnitFailed(RuntimeError):
    """A unit was not committed. The message is one line."""


@dataclass(frozen=True)
class UnitReport:
    """The outcome of one unit, or of the result of a reduce stage (unit 0)."""

    stage: str
    unit: int
    state: Literal["done", "cached", "failed", "pending"]
    """pending: the unit cannot be made now, but nothing is wrong with it."""
    message: str = ""
    seconds: float = 0.0
    samples: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    """Rows by status."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", mask(self.message))


class UnitWork:
    """Makes one unit of one map stage.

    Args:
        config: the run's configuration.
        surveyor: provides the graph and fingerprints.
        stage: the map stage.
        unit: number of the unit.
    """

    def __init__(self, config: PipelineConfig, surveyor: Surveyor, stage: MapStage, unit: int) -> None:
        self.config = config
        self.stage = stage
        self.unit = unit
        self.identities = surveyor.identities(stage.name)
        self.upstream = surveyor.graph.upstream[stage.name]
        self.root = surveyor.root
        self.parts = self._parts(stage.name)

    def _parts(self, stage: str) -> Parts:
        return Parts(self.root, stage, fingerprint_of(self.identities[stage]))

    def note_failure(self, message: str, started: float) -> None:
        """Record why the unit was not committed. Errors of the store are ignored here."""
        quietly(self.parts.note_failure, self.unit, message)
        quietly(self.parts.log, self.unit, log_record("failed", started, message=message))

    def run(self, force: bool, retry_failed: bool, progress: Progress) -> UnitReport:
        started = time.monotonic()
        above = self._above()
        made_from = input_digest(above) if above else self._source_digest()
        before = self._committed(made_from)
        if before is not None and not force:
            failed = any(status == "failed" for status, _ in before.counts)
            if not (retry_failed and failed):
                return UnitReport(self.stage.name, self.unit, "cached", samples=before.counts.total())
        kept = {} if before is None or force else self._kept(before)
        context = SourceContext(self.parts, self.config.unit_numbers(), force, progress)
        order: list[int] = []
        made: list[Sample] = []
        try:
            samples = self._samples(above, context)
            slices = Slices(self.stage, self.unit)
            shares = list(in_slices(self.stage, samples))
            due = [place for places in shares for place in places if any(samples[p].id not in kept for p in places)]
            asked = self.stage.request([samples[place] for place in due], self.unit, context)
            for place, sample in zip(due, asked, strict=True):
                samples[place] = sample
            for places in shares:
                batch = [samples[place] for place in places]
                if all(sample.id in kept for sample in batch):
                    made += [kept[sample.id] for sample in batch]
                else:
                    # the models are held for one slice only, so that other threads can read, pack and commit meanwhile
                    with loaded(self.stage, self.config, partial(progress, len(order), len(samples), WAITS)) as stage:
                        assert isinstance(stage, MapStage)
                        made += slices.process(stage, batch)
                order += places
                progress(len(order), len(samples), "")
        except FatalError as error:
            raise UnitFailed(f"{self.stage.name} unit {self.unit}: {first_line(error)}") from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise UnitFailed(
                f"{self.stage.name} unit {self.unit}: out of memory while loading the models; use smaller ones or a "
                "device with more memory"
            ) from error
        facts: dict[str, Any] = {"usage": context.usage} if context.usage else {}
        if slices.halved:
            facts["out_of_memory"] = slices.halved
        if slices.one_by_one:
            facts["one_by_one"] = slices.one_by_one
        _check_results(self.stage, [samples[place] for place in order], made)
        results = [result for _, result in sorted(zip(order, made, strict=True), key=lambda pair: pair[0])]
        return self._commit(results, made_from, started, facts)

    def _above(self) -> dict[str, Marker]:
        """The markers of the units that it reads, by stage."""
        markers: dict[str, Marker] = {}
        for name in self.upstream:
            marker = None
            with suppress(CorruptPart):
                marker = self._parts(name).marker(self.unit)
            if marker is None:
                raise UnitFailed(f"{self.stage.name} unit {self.unit}: this unit of {name} is not complete")
            markers[name] = marker
        return markers

    def _source_digest(self) -> str:
        try:
            return self.stage.source_digest(self.unit, self.config.indices(self.unit))
        except FatalError as error:
            raise UnitFailed(f"{self.stage.name} unit {self.unit}: {first_line(error)}") from error

    def _committed(self, made_from: str) -> Marker | None:
        """The unit's own marker, if it is complete."""
        marker = self.parts.whole(self.unit)
        return marker if marker is not None and marker.input == made_from else None

    def _samples(self, above: Mapping[str, Marker], context: SourceContext) -> list[Sample]:
        """The samples of a source, or the `ok` samples of the first upstream along with those of the others."""
        if not above:
            return self.stage.draw(self.unit, self.config.indices(self.unit), context)
        first, *beside = self.upstream
        samples = self._unpacked(first, above[first], self.stage.reads)
        if not beside:
            return samples
        by_id = {name: {s.id: s for s in self._unpacked(name, above[name])} for name in beside}
        return [
            replace(sample, beside={name: made[sample.id] for name, made in by_id.items() if sample.id in made})
            for sample in samples
        ]

    def _unpacked(self, stage: str, marker: Marker, columns: Sequence[str] = ()) -> list[Sample]:
        """The `ok` samples of a unit, with those of `columns` that its rows have."""
        parts = self._parts(stage)
        own = marker.columns() if columns else []
        try:
            rows = marker.read((*UNPACKED, *(name for name in columns if name in own)))
            return unpack(rows, parts.payload(self.unit, marker))
        except CorruptPart as error:
            parts.discard_payload(self.unit)
            raise UnitFailed(f"{stage} unit {self.unit}: {error}; run again to rebuild it") from None

    def _kept(self, before: Marker) -> dict[str, Sample]:
        """The samples of a committed part that a retry keeps."""
        try:
            made = {sample.id: sample for sample in unpack(before.rows, self.parts.payload(self.unit, before))}
        except CorruptPart:
            return {}
        for row in before.rows:
            if row["status"] == "rejected":
                own = (*self.stage.columns.names, *self.stage.optional_columns.names)
                columns = {name: row[name] for name in own if name in row}
                made[row["id"]] = Sample(row["id"], self.unit, {}, {}, columns, "rejected", row["reason"])
        return made

    def _commit(
        self, results: Sequence[Sample], made_from: str, started: float, facts: Mapping[str, Any]
    ) -> UnitReport:
        """Commit the results, in the order of the samples. `facts` are added to the unit's log."""
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
        optional = [
            field for field in self.stage.optional_columns if any(row.get(field.name) is not None for row in rows)
        ]
        columns = pa.schema([*self.stage.columns, *optional])
        try:
            self.parts.describe(self.identities[self.stage.name])
            self.parts.commit(self.unit, rows, columns, pack(results), made_from)
            self.parts.log(self.unit, log_record("done", started, rows=counts, messages=messages, **facts))
        except StoreFull:
            raise  # no further unit could be committed either
        except StoreError as error:
            raise UnitFailed(f"{self.stage.name} unit {self.unit}: {error}") from error
        seconds = time.monotonic() - started
        return UnitReport(self.stage.name, self.unit, "done", "", seconds, len(results), counts)


def _check_results(stage: MapStage, samples: Sequence[Sample], results: Sequence[Sample]) -> None:
    """Assert that a stage returned one result per sample, in order, with reasons that it declares."""
    if stage.upstream and [r.id for r in results] != [s.id for s in samples]:
        raise AssertionError(f"{stage.name}: process() must return one result per sample, in order")
    if len({r.id for r in results}) != len(results):
        raise AssertionError(f"{stage.name}: sample ids repeat")
    for result in results:
        if result.status != "ok" and result.reason not in {*stage.reasons, "error"}:
            raise AssertionError(f"{stage.name}: reason {result.reason!r} is not declared")


def log_record(event: str, started: float, **more: Any) -> dict[str, Any]:
    """A line of a unit's log: event, time, seconds since `started`, host, process, and `more`."""
    seconds = round(time.monotonic() - started, 3)
    where = {"host": socket.gethostname(), "process": os.getpid(), "loads": load_count()}
    return {"event": event, "time": time.time(), "seconds": seconds, **where, **more}


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's type if it has no message."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def quietly(write: Any, *arguments: Any) -> None:
    """Call `write(*arguments)` and ignore errors of the store."""
    with suppress(StoreError, OSError):
        write(*arguments)
