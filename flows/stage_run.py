"""One stage of a run as a Prefect flow: its units as tasks, or its one result as a task called directly."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container, Iterable
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from uuid import UUID

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from bootpig.flows import artifacts, interrupt
from bootpig.flows.cli import display
from bootpig.flows.loading import dump_config, parse_config
from bootpig.flows.runners import Workers
from bootpig.flows.server import is_own
from bootpig.stages.engine.contract import MapStage, Stage
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.survey import StageSurvey
from bootpig.stages.engine.units import UnitReport

GPU_TAG = "bootpig-gpu"
"""Of the tasks of stages that have a device. `prefect gcl create tag:bootpig-gpu --limit 1` lets one work at a time,
across hosts too: Prefect's task engine holds a lease of 60 s for as long as it lives."""

LOST = (ValueError, AssertionError)
"""What further units would meet too: bad input (`InputError`, `ModelError`, `StoreError`) or a broken contract."""

SHOWN_SPANS = 20

GONE = "the worker that made it is gone, as when memory runs out; run again"


@dataclass
class StageOutcome:
    """What one stage flow did."""

    made: list[int] = field(default_factory=list)
    cached: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    """Unit → why, one line."""
    pending: dict[int, str] = field(default_factory=dict)
    """Likewise of units that could not be made now, though nothing is wrong with them."""
    seconds: float = 0.0
    last_task: UUID | None = None
    """The task run that ended last: once the server shows it, it shows all."""

    def total(self) -> int:
        return len(self.made) + self.cached + len(self.failed) + len(self.pending)

    def message(self) -> str:
        left = f"{len(self.pending)} left pending: {numbers(self.pending)}" if self.pending else ""
        if self.failed:
            return f"{len(self.failed)}/{self.total()} units failed: {numbers(self.failed)}{left and '; ' + left}"
        return f"{self.total()} units: {len(self.made)} made, {self.cached} cached{left and ', ' + left}"


@dataclass
class StageRun:
    """What one stage of a run has to do.

    Args:
        survey: the stage as the store shows it before.
        units: those chosen, of a map stage.
        workers: of the run; those of a reduce stage idle.
        forced: units that an earlier attempt of the same flow run has made by force: they are not made once more.
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

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Nothing: Prefect sends a flow, and all that it refers to, along with each unit that runs elsewhere."""
        return object, ()

    def is_cached(self, unit: int) -> bool:
        if self.survey.units.get(unit) != "complete" or (self.force and unit not in self.forced):
            return False
        if self.retry_failed and unit in self.survey.markers:
            return not any(status == "failed" for status, _ in self.survey.markers[unit].counts)
        return True

    def run(self) -> StageOutcome:
        """Run the stage as a subflow of the current flow.

        Raises:
            InputError, ModelError, StoreError: what the user gave cannot be used.
        """
        started = time.monotonic()
        is_reduce = not self.engine.graph.is_map(self.stage)
        idle = is_reduce or all(self.is_cached(unit) for unit in self.units)
        runner: TaskRunner[Any] = ThreadPoolTaskRunner(1) if idle else self.workers.task_runner()

        @flow(
            name=self.stage,
            flow_run_name=self.stage if is_reduce else "units {units}",
            task_runner=runner,
            persist_result=False,
            validate_parameters=False,
        )
        def stage_flow(units: str, force: bool, retry_failed: bool) -> State[Any]:
            self._reduce() if is_reduce else self._map()
            self.outcome.seconds = time.monotonic() - started
            if self.outcome.failed:
                return Failed(message=self.outcome.message())
            return Completed(message=self.outcome.message())

        state = stage_flow(numbers(self.units), self.force, self.retry_failed, return_state=True)
        if state.is_completed() or self.outcome.failed:
            return self.outcome
        # what a stage cannot answer for is the caller's: bad input, an interruption, a fault of ours
        state.result()
        raise AssertionError(f"{self.stage}: the flow ended {state.name} without a reason")

    def _map(self) -> None:
        due = []
        found = cached_unit.with_options(name=self.stage)
        for unit in self.units:
            if self.is_cached(unit):
                self._note(unit, found(unit, return_state=True))
            else:
                due.append(unit)
        if not due:
            return
        config = self.engine.config
        in_process = config.runner == "threads"
        stage = self.engine.make(self.stage)
        assert isinstance(stage, MapStage)
        made_by = (make_unit if in_process else make_unit_elsewhere).with_options(name=self.stage, tags=_tags(stage))
        ahead = 0 if stage.sequential else 2 * config.workers
        with (
            display.current.stage(self.stage, len(due) * config.unit_size) as bar,
            artifacts.stage_progress(self.stage) as share,
            self.workers.placing(self.stage),
        ):
            waiting: deque[tuple[int, PrefectFuture[Any]]] = deque()
            try:
                for unit in due:
                    if len(waiting) > ahead:
                        self._await(waiting, bar)
                        share(self.outcome.total(), len(self.units))
                    place: Any = _Place(self.engine, bar) if in_process else dump_config(config)
                    waiting.append((unit, made_by.submit(place, self.stage, unit, self.force, self.retry_failed)))
                while waiting:
                    self._await(waiting, bar)
                    share(self.outcome.total(), len(self.units))
            except BaseException as error:
                interrupt.stop(error)
                raise

    def _await(self, waiting: deque[tuple[int, PrefectFuture[Any]]], bar: display.StageBar) -> None:
        unit, future = waiting.popleft()
        try:
            future.wait()
        except BrokenExecutor:  # a process of the pool was killed; the pool takes no more units
            self.outcome.failed[unit] = GONE
        else:
            self._note(unit, future.state)
        if self.engine.config.runner != "threads":
            bar.advance(self.engine.config.unit_size)

    def _reduce(self) -> None:
        """Called in this very thread, so that SIGTERM reaches it and its `finally` runs."""
        if self.is_cached(0):
            self._note(0, cached_unit.with_options(name=self.stage)(0, return_state=True))
            return
        with display.current.stage(self.stage, 1) as bar, artifacts.stage_progress(self.stage) as share:
            place = _Place(self.engine, bar, share)
            made_by = make_result.with_options(name=self.stage, tags=_tags(self.engine.make(self.stage)))
            self._note(0, made_by(place, self.stage, self.force, return_state=True))

    def _note(self, unit: int, state: State[Any]) -> None:
        self.outcome.last_task = state.state_details.task_run_id
        if state.name == "Cached":
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


class _Place:
    """Where a unit runs in this process. Opaque to Prefect, which else would look for futures in all it holds."""

    __slots__ = ("bar", "engine", "share")

    def __init__(
        self, engine: Engine, bar: display.StageBar, share: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        self.engine = engine
        self.bar = bar
        self.share = share

    def result_progress(self, done: int, total: int, text: str) -> None:
        """The progress of a stage that makes one result."""
        self.bar.result()(done, total, text)
        self.share(done, total)


@task(task_run_name="unit {unit}", persist_result=False, cache_policy=NO_CACHE)
def cached_unit(unit: int) -> State[Any]:
    return Completed(name="Cached", message="complete in the store")


@task(task_run_name="unit {unit}", persist_result=False, cache_policy=NO_CACHE)
def make_unit(place: _Place, stage: str, unit: int, force: bool, retry_failed: bool) -> State[Any]:
    """One unit in a thread of this process."""
    progress = interrupt.stoppable(place.bar.unit())
    return _state(place.engine.run_unit(stage, unit, force=force, retry_failed=retry_failed, progress=progress))


@task(task_run_name="unit {unit}", persist_result=False, cache_policy=NO_CACHE)
def make_unit_elsewhere(config: str, stage: str, unit: int, force: bool, retry_failed: bool) -> State[Any]:
    """One unit in another process, from the configuration's YAML."""
    return _state(_engine(config).run_unit(stage, unit, force=force, retry_failed=retry_failed))


@lru_cache(maxsize=1)
def _engine(config: str) -> Engine:
    """One a process: it knows its models by then."""
    return Engine(parse_config(config))


@task(task_run_name="{stage}", persist_result=False, cache_policy=NO_CACHE)
def make_result(place: _Place, stage: str, force: bool) -> State[Any]:
    """The result of a reduce stage."""
    return _state(place.engine.run_reduce(stage, force=force, progress=place.result_progress))


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
    """What a limit on the user's own server can count; a temporary server has no limits, nor the time to ask it."""
    return [GPU_TAG] if stage.device() != "cpu" and not is_own() else []


def numbers(units: Iterable[int]) -> str:
    """Unit numbers, runs of them shortened: `0-3, 7`; of many spans the first `SHOWN_SPANS`."""
    spans: list[list[int]] = []
    for unit in sorted(units):
        if spans and unit == spans[-1][1] + 1:
            spans[-1][1] = unit
        else:
            spans.append([unit, unit])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in spans[:SHOWN_SPANS]]
    return ", ".join(shown) + (f", … {spans[-1][1]}" if len(spans) > SHOWN_SPANS else "")
