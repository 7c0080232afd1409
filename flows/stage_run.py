"""Runs one stage as a Prefect flow: units of a map stage as tasks, the result of a reduce stage by a direct call."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable
from concurrent.futures import BrokenExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from uuid import UUID

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed

from bootpig.flows import artifacts, interrupt
from bootpig.flows.cli import display
from bootpig.flows.loading import dump_config, parse_config
from bootpig.flows.rounds import with_trained_models
from bootpig.flows.runners import Place, Workers
from bootpig.flows.server import is_own
from bootpig.stages.engine.contract import MapStage, Stage
from bootpig.stages.engine.engine import Engine, quiet
from bootpig.stages.engine.first_units import FirstUnits
from bootpig.stages.engine.loaded import release
from bootpig.stages.engine.survey import StageSurvey
from bootpig.stages.engine.units import UnitReport
from bootpig.storage.errors import CorruptPart
from bootpig.storage.parts import Parts

GPU_TAG = "bootpig-gpu"
"""Tag of the tasks of stages with a device. `prefect gcl create tag:bootpig-gpu --limit 1` runs one at a time, also
across hosts: Prefect's task engine holds a lease of 60 s and renews it while it lives."""

LOST = (ValueError, AssertionError)
"""Errors that further units would hit too: bad input (`InputError`, `ModelError`, `StoreError`), a broken contract."""

SHOWN_SPANS = 20

GONE = "its worker process died, as when memory runs out; run again"

IDLE_RESTARTS = 3
"""Worker processes are not started again after so many deaths in a row between which no unit was made."""


@dataclass
class StageOutcome:
    """The outcome of one stage flow."""

    made: list[int] = field(default_factory=list)
    cached: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    """Unit → reason in one line."""
    pending: dict[int, str] = field(default_factory=dict)
    """Unit → reason, for units that cannot be made now although nothing is wrong with them."""
    stopped: str = ""
    """Why the run stops after the first units of this stage, in one line. Empty if it goes on."""
    restarts: int = 0
    """How often worker processes were started again, because one of them died."""
    seconds: float = 0.0
    last_task: UUID | None = None
    """The task run that ended last. Once the server shows it, it shows all of them."""

    def total(self) -> int:
        return len(self.made) + self.cached + len(self.failed) + len(self.pending)

    def message(self) -> str:
        left = f"{len(self.pending)} left pending: {numbers(self.pending)}" if self.pending else ""
        if self.failed:
            return f"{len(self.failed)}/{self.total()} units failed: {numbers(self.failed)}{left and '; ' + left}"
        return f"{self.total()} units: {len(self.made)} made, {self.cached} cached{left and ', ' + left}"


@dataclass
class StageRun:
    """Runs one stage of a run.

    Args:
        engine: the run's engine.
        stage: the stage.
        survey: the state of the stage in the store before the run.
        units: the selected units of a map stage.
        workers: the run's workers. Not used by a reduce stage.
        force: rebuild complete units.
        retry_failed: retry failed rows.
        forced: units that an earlier attempt of the same flow run already rebuilt by force. They count as cached.
        on_made: called with each unit that was made.
    """

    engine: Engine
    stage: str
    survey: StageSurvey
    units: list[int]
    workers: Workers
    force: bool = False
    retry_failed: bool = False
    forced: Container[int] = ()
    on_made: Callable[[int], None] = lambda unit: None
    outcome: StageOutcome = field(default_factory=StageOutcome)
    _lost: set[int] = field(default_factory=set)
    """Units that were on their way when a worker process died. They run once more."""
    _broken: bool = False
    """Whether a worker process died in the current subflow, which ends the others."""
    _first: FirstUnits | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Pickle as nothing: Prefect sends a flow, and everything it refers to, with each unit that runs elsewhere."""
        return object, ()

    def is_cached(self, unit: int) -> bool:
        if self.survey.units.get(unit) != "complete" or (self.force and unit not in self.forced):
            return False
        if self.retry_failed and unit in self.survey.markers:
            return not any(status == "failed" for status, _ in self.survey.markers[unit].counts)
        return True

    def due(self) -> list[int]:
        """The units that `survey` does not show as complete. Another process may make them meanwhile."""
        return [unit for unit in self.units if not self.is_cached(unit)]

    def run(self) -> StageOutcome:
        """Run the stage as a subflow of the current flow.

        Raises:
            InputError, ModelError, StoreError: the user's input cannot be used.
        """
        started = time.monotonic()
        units, idle = self.units, 0
        due = len(self.due()) if self.engine.graph.is_map(self.stage) else 0
        place = self.workers.place(self.engine.make(self.stage), due) if due else Place("threads", 1)
        while True:
            before = len(self.outcome.made)
            self._run_flow(units, place, started)
            if not self._broken or self.outcome.stopped:
                return self.outcome
            self.outcome.restarts += 1
            idle = 0 if len(self.outcome.made) > before else idle + 1
            units = [unit for unit in units if not self._has_ended(unit)]
            if idle == IDLE_RESTARTS:
                self.outcome.failed |= dict.fromkeys(units, GONE)
            if not units or idle == IDLE_RESTARTS:
                return self.outcome

    def _has_ended(self, unit: int) -> bool:
        outcome = self.outcome
        return unit in outcome.failed or unit in outcome.pending or unit in outcome.made or self.is_cached(unit)

    def _run_flow(self, chosen: list[int], place: Place, started: float) -> None:
        """Run the `chosen` units as one subflow: all of them, or those that are left after worker processes died."""
        is_reduce = not self.engine.graph.is_map(self.stage)
        runner = self.workers.task_runner(place)
        self._broken = False

        @flow(
            name=self.stage,
            flow_run_name=self.stage if is_reduce else "units {units}",
            task_runner=runner,
            persist_result=False,
            validate_parameters=False,
        )
        def stage_flow(units: str, force: bool, retry_failed: bool) -> State[Any]:
            self._reduce() if is_reduce else self._map(chosen, place)
            self.outcome.seconds = time.monotonic() - started
            if self._broken:
                return Failed(message="a worker process died, as when memory runs out")
            if self.outcome.failed or self.outcome.stopped:
                return Failed(message=self.outcome.stopped or self.outcome.message())
            return Completed(message=self.outcome.message())

        state = stage_flow(numbers(chosen), self.force, self.retry_failed, return_state=True)
        if state.is_completed() or self.outcome.failed or self.outcome.stopped or self._broken:
            return
        # raise what is not a failed unit: bad input, an interruption, a bug
        state.result()
        raise AssertionError(f"{self.stage}: the flow ended {state.name} without a reason")

    def _map(self, units: list[int], place: Place) -> None:
        due = []
        found = cached_unit.with_options(name=self.stage)
        for unit in units:
            if self.is_cached(unit):
                self._note(unit, found(unit, return_state=True))
            else:
                due.append(unit)
        config = self.engine.config
        in_process = place.runner == "threads"
        stage = self.engine.make(self.stage)
        assert isinstance(stage, MapStage)
        first = self._first = self._first or self._first_units(stage, due)
        if first.problem or not due:
            self.outcome.stopped = first.problem
            return
        made_by = (make_unit if in_process else make_unit_elsewhere).with_options(name=self.stage, tags=_tags(stage))
        if not in_process:
            release()  # this process has no use for the models that it holds, and the workers need the memory
        # after a worker died, only as many units are on their way as can be lost with one
        ahead = 0 if stage.sequential else place.workers - 1 if self.outcome.restarts else 2 * place.workers
        lost = set(self._lost)

        def settle() -> None:
            self._await(waiting, lost, first)
            if not in_process:
                bar.advance(config.unit_size)
            share(self.outcome.total(), len(self.units), "")

        with (
            display.current.stage(self.stage, len(due) * config.unit_size) as bar,
            artifacts.stage_progress(self.stage) as share,
            self.workers.placing(stage),
        ):
            waiting: deque[tuple[int, PrefectFuture[Any]]] = deque()
            try:
                for unit in due:
                    # until the first units are judged, none waits behind those that run
                    if len(waiting) > (ahead if first.decided else min(ahead, place.workers - 1)):
                        settle()
                    if first.problem or self._broken:
                        break
                    work: Any = _InProcess(self.engine, bar) if in_process else dump_config(config)
                    with interrupt.keeping_ctrl_c() if place.runner == "processes" else nullcontext():
                        future = made_by.submit(work, self.stage, unit, self.force, self.retry_failed)
                    waiting.append((unit, future))
                while waiting:
                    settle()
                self.outcome.stopped = first.problem
            except BaseException as error:
                interrupt.stop(error, multiprocessing.active_children() if place.runner == "processes" else ())
                raise

    def _first_units(self, stage: MapStage, due: list[int]) -> FirstUnits:
        """The judge of the first units, which knows those that are complete."""
        complete = self.survey.markers.keys() - set(due)
        first = FirstUnits(stage, complete | set(due), self.engine.config.max_rejected)
        for unit in sorted(complete):
            first.add(unit, self.survey.markers[unit].counts)
        return first

    def _counts(self, unit: int) -> Counter[tuple[str, str]] | None:
        """The rows of a unit that this run made, by status and reason. None if it has no marker."""
        with suppress(CorruptPart):
            marker = Parts(self.engine.root, self.stage, self.survey.fingerprint).marker(unit)
            return None if marker is None else marker.counts
        return None

    def _await(self, waiting: deque[tuple[int, PrefectFuture[Any]]], lost: Container[int], first: FirstUnits) -> None:
        """Wait for the first of the `waiting` units. `lost`: those that were already lost with a worker process."""
        unit, future = waiting.popleft()
        try:
            future.wait()
            gone = future.state.is_cancelled()
        except BrokenExecutor:  # a process of the pool was killed; the pool accepts no more units
            gone = True
        self._broken |= gone
        if gone and unit not in lost:
            self._lost.add(unit)
            return
        if gone:
            self.outcome.failed[unit] = GONE
        else:
            self._note(unit, future.state)
        if not first.decided and unit not in self.outcome.pending:
            first.add(unit, None if unit in self.outcome.failed else self._counts(unit))

    def _reduce(self) -> None:
        """Make the result in this thread, so that SIGTERM reaches it and its `finally` blocks run."""
        if self.is_cached(0):
            self._note(0, cached_unit.with_options(name=self.stage)(0, return_state=True))
            return
        with display.current.stage(self.stage, 1) as bar, artifacts.stage_progress(self.stage) as share:
            work = _InProcess(self.engine, bar, share)
            made_by = make_result.with_options(name=self.stage, tags=_tags(self.engine.make(self.stage)))
            self._note(0, made_by(work, self.stage, self.force, return_state=True))

    def _note(self, unit: int, state: State[Any]) -> None:
        self.outcome.last_task = state.state_details.task_run_id
        if state.name == "Cached" and unit not in self._lost:  # a process that died may have made it
            self.outcome.cached += 1
        elif state.name == "Postponed":
            self.outcome.pending[unit] = str(state.message)
        elif state.is_completed():
            self.outcome.made.append(unit)
            self.on_made(unit)
        else:
            error = state.result(raise_on_failure=False) if state.data is not None else None
            if isinstance(error, LOST):
                raise error
            lost = "" if state.is_final() else GONE
            message = str(error or lost or state.message or state.name).strip()
            self.outcome.failed[unit] = next(iter(message.splitlines()), state.name or "failed")


class _InProcess:
    """What a unit needs to run in this process. Opaque to Prefect, which would otherwise search it for futures."""

    __slots__ = ("bar", "engine", "share")

    def __init__(
        self, engine: Engine, bar: display.StageBar, share: Callable[[int, int, str], None] = lambda *_: None
    ) -> None:
        self.engine = engine
        self.bar = bar
        self.share = share

    def result_progress(self, done: int, total: int, text: str) -> None:
        """The progress callback of a reduce stage."""
        self.bar.result()(done, total, text)
        self.share(done, total, text)


@task(task_run_name="unit {unit}", persist_result=False, cache_policy=NO_CACHE)
def cached_unit(unit: int) -> State[Any]:
    return Completed(name="Cached", message="complete in the store")


@task(task_run_name="unit {unit}", persist_result=False, cache_policy=NO_CACHE)
def make_unit(work: _InProcess, stage: str, unit: int, force: bool, retry_failed: bool) -> State[Any]:
    """Make one unit in a thread of this process."""
    progress = interrupt.stoppable(work.bar.unit())
    return _state(work.engine.run_unit(stage, unit, force=force, retry_failed=retry_failed, progress=progress))


@task(task_run_name="unit {unit}", persist_result=False, cache_policy=NO_CACHE)
def make_unit_elsewhere(config: str, stage: str, unit: int, force: bool, retry_failed: bool) -> State[Any]:
    """Make one unit in another process, from the configuration's YAML."""
    progress = interrupt.stoppable(quiet)
    with interrupt.working():
        try:
            progress(0, 1, "")  # it may have been on its way to this process when that was told to end
            made = _engine(config).run_unit(stage, unit, force=force, retry_failed=retry_failed, progress=progress)
        except interrupt.Stopped:
            return Cancelled(message="stopped")
    return _state(made)


@lru_cache(maxsize=1)
def _engine(config: str) -> Engine:
    """The engine of this process. Kept, because it has already looked up its models."""
    return Engine(with_trained_models(parse_config(config)))


@task(task_run_name="{stage}", persist_result=False, cache_policy=NO_CACHE)
def make_result(work: _InProcess, stage: str, force: bool) -> State[Any]:
    """Make the result of a reduce stage."""
    return _state(work.engine.run_reduce(stage, force=force, progress=work.result_progress))


def _state(report: UnitReport) -> State[Any]:
    if report.state == "failed":
        get_run_logger().error(report.message)
        return Failed(message=report.message)
    if report.state == "cached":
        return Completed(name="Cached", message="complete in the store")
    if report.state == "pending":
        return Completed(name="Postponed", message=report.message)
    rows = ", ".join(f"{count} {status}" for status, count in report.rows.items())
    return Completed(message=f"{rows or 'made'} in {report.seconds:.1f} s")


def _tags(stage: Stage) -> list[str]:
    """Tags for a concurrency limit on the user's server. A temporary server has no limits, and asking it takes time."""
    return [GPU_TAG] if stage.device() != "cpu" and not is_own() else []


def numbers(units: Iterable[int]) -> str:
    """Unit numbers as text, with ranges: `0-3, 7`. Shows at most the first `SHOWN_SPANS` ranges and the last number."""
    spans: list[list[int]] = []
    for unit in sorted(units):
        if spans and unit == spans[-1][1] + 1:
            spans[-1][1] = unit
        else:
            spans.append([unit, unit])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in spans[:SHOWN_SPANS]]
    return ", ".join(shown) + (f", … {spans[-1][1]}" if len(spans) > SHOWN_SPANS else "")
