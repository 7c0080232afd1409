"""Prepares a sweep, once: its runs, which of them are complete in the store, and a preflight of the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from bootpig.flows.environment import check_scratch
from bootpig.flows.rounds import first_round, with_trained_models
from bootpig.flows.runners import runner_problems
from bootpig.flows.runs.records import RunRecord, list_runs
from bootpig.flows.sweep.cells import CellRun, expand, named_lines, sweep_digest
from bootpig.flows.sweep.file import SweepFile
from bootpig.flows.sweep.records import SweepRecord, SweepRunRecord
from bootpig.stages.engine.contract import InputError, StageConfig
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.preflight import pinned, preflight
from bootpig.stages.engine.survey import StageSurvey, complete_stages
from bootpig.stages.view.stage import NO_FIRST_ROUND
from bootpig.storage.fingerprint import digest
from bootpig.storage.root import Root

_CURRENT: ContextVar[PreparedSweep | None] = ContextVar("prepared_sweep", default=None)


@dataclass
class PreparedRun:
    """One run of a sweep, ready to start."""

    of: CellRun
    engine: Engine | None
    """None: the run makes its own, as the model of its views is not made yet."""
    complete: RunRecord | None
    """An earlier run that has its results. None: it is to be run."""


@dataclass
class PreparedSweep:
    """A sweep whose runs can start."""

    sweep: SweepFile
    retry_failed: bool
    root: Root
    runs: list[PreparedRun]
    record: SweepRecord


def prepare_sweep(sweep: SweepFile, retry_failed: bool = False) -> PreparedSweep:
    """Check everything that can be checked before the first run starts.

    Args:
        retry_failed: a run with failed rows does not count as complete.

    Raises:
        InputError: something prevents a run; one line per problem.
        StoreError: the root cannot be opened.
    """
    runs = expand(sweep)
    root = Root(runs[0].config.root)
    check_scratch()  # first: libraries that open models write there as they are imported
    records = _done_runs(root)
    prepared = []
    lines: dict[str, list[str]] = {}
    """Problem → the cells that have it."""
    checked: set[str] = set()
    for run in runs:
        try:
            ready = _prepare(run, records, retry_failed, checked)
        except (ValueError, OSError) as error:
            for line in str(error).splitlines():
                lines.setdefault(line, []).append(run.cell.name)
        else:
            prepared.append(ready)
    if lines:
        raise InputError("\n".join(named_lines(lines, len({run.cell.name for run in runs}))))
    record = SweepRecord(
        name=sweep.name,
        digest=sweep_digest(runs),
        sweep=sweep.model_dump(mode="json"),
        runs=[_recorded(ready) for ready in prepared],
    )
    return PreparedSweep(sweep, retry_failed, root, prepared, record)


@contextmanager
def prepared(ready: PreparedSweep) -> Iterator[None]:
    """A context in which the flow of this sweep uses what is prepared."""
    token = _CURRENT.set(ready)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current(sweep: SweepFile, retry_failed: bool) -> PreparedSweep | None:
    """What the caller of this flow prepared for its sweep, if anything."""
    ready = _CURRENT.get()
    return ready if ready is not None and (ready.sweep, ready.retry_failed) == (sweep, retry_failed) else None


def _done_runs(root: Root) -> dict[str, RunRecord]:
    """Fingerprint of an evaluate result → the newest run that ended well with it."""
    done = [record for record in list_runs(root) if record.state == "done" and "evaluate" in record.stages]
    return {record.stages["evaluate"].fingerprint: record for record in done}


def _prepare(run: CellRun, records: Mapping[str, RunRecord], retry_failed: bool, checked: set[str]) -> PreparedRun:
    """`checked`: the stages that passed the preflight of an earlier run, see `_checks`."""
    engine = Engine(with_trained_models(run.config))
    waits = first_round(run.config, engine.graph.stages) is not None
    # without the model of the first round, the fingerprints from the views on are not known
    surveys = {} if waits else engine.survey_all()
    if "evaluate" in complete_stages(surveys, engine.graph):
        record = records.get(surveys["evaluate"].fingerprint)
        if record is not None and not (retry_failed and _has_failed_rows(surveys.values())):
            return PreparedRun(run, engine, record)
    checks = _checks(engine, surveys)
    new = [name for name, check in checks.items() if check not in checked]
    problems = preflight(engine, new) + runner_problems(run.config) if new else []
    if problems := [line for line in problems if not (waits and line.startswith(NO_FIRST_ROUND))]:
        raise InputError("\n".join(problems))
    checked |= set(checks.values())
    if waits:
        return PreparedRun(run, None, None)
    exact = pinned(engine, surveys)
    return PreparedRun(run, engine if exact == engine.config else Engine(exact), None)


def _checks(engine: Engine, surveys: Mapping[str, StageSurvey]) -> dict[str, str]:
    """The stages with something to make, or without a survey, each with all settings that its preflight reads."""
    config = engine.config
    others = (config.synthesize, config.augment, config.encode, config.runner, config.evaluate.subjects)
    shared = [part.model_dump(mode="json") if isinstance(part, StageConfig) else part for part in others]
    complete = complete_stages(surveys, engine.graph)
    return {
        name: digest([name, config.section(name).model_dump(mode="json"), shared])
        for name in engine.graph.stages
        if name not in complete
    }


def _has_failed_rows(surveys: Iterable[StageSurvey]) -> bool:
    markers = (marker for survey in surveys for marker in survey.markers.values())
    return any(status == "failed" for marker in markers for status, _ in marker.counts)


def _recorded(ready: PreparedRun) -> SweepRunRecord:
    record = SweepRunRecord(cell=ready.of.cell.name, seed=ready.of.seed)
    if ready.complete is not None:
        record.run, record.state = ready.complete.id, "cached"
        record.evaluated = ready.complete.stages["evaluate"].fingerprint
    return record
