"""One stage of a run as a Prefect flow: its units as tasks, or its one result as a task called directly."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from flows import display, interrupt
from flows.loading import dump_config, parse_config
from stages.base import MapStage, ReduceStage
from stages.config import PipelineConfig
from stages.engine import Engine, UnitReport
from stages.registry import STAGES
from stages.survey import StageSurvey, make_stage

LOST = (ValueError, AssertionError)
"""What further units would meet too: bad input (`InputError`, `ModelError`, `StoreError`) or a broken contract."""


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

    def message(self) -> str:
        total = len(self.made) + self.cached + len(self.failed) + len(self.pending)
        left = f", {len(self.pending)} left pending: {numbers(self.pending)}" if self.pending else ""
        if self.failed:
            return f"{len(self.failed)}/{total} units failed: {numbers(self.failed)}{left}"
        return f"{total} units: {len(self.made)} made, {self.cached} cached{left}"


@dataclass
class StageRun:
    """What one stage of a run has to do.

    Args:
        survey: the stage as the store shows it before.
        units: those chosen, of a map stage.
    """

    engine: Engine
    stage: str
    survey: StageSurvey
    units: list[int]
    force: bool = False
    retry_failed: bool = False
    outcome: StageOutcome = field(default_factory=StageOutcome)

    def is_cached(self, unit: int) -> bool:
        if self.force or self.survey.units.get(unit) != "complete":
            return False
        if self.retry_failed and unit in self.survey.markers:
            return not any(row["status"] == "failed" for row in self.survey.markers[unit].rows)
        return True

    def run(self) -> StageOutcome:
        """Run the stage as a subflow of the current flow.

        Raises:
            InputError, ModelError, StoreError: what the user gave cannot be used.
        """
        started = time.monotonic()

        @flow(
            name=self.stage,
            task_runner=_runner(self.engine.config),
            persist_result=False,
            validate_parameters=False,
        )
        def stage_flow(units: str, force: bool, retry_failed: bool) -> State[Any]:
            self._reduce() if issubclass(STAGES[self.stage], ReduceStage) else self._map()
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
        for unit in self.units:
            if self.is_cached(unit):
                self._note(unit, cached_unit.with_options(name=self.stage)(unit, return_state=True))
            else:
                due.append(unit)
        if not due:
            return
        config = self.engine.config
        in_process = config.runner == "threads"
        made_by = (make_unit if in_process else make_unit_elsewhere).with_options(name=self.stage)
        stage = make_stage(config, self.stage)
        assert isinstance(stage, MapStage)
        ahead = 0 if stage.sequential else 2 * config.workers
        with display.current.stage(self.stage, len(due) * config.unit_size) as bar:
            waiting: deque[tuple[int, PrefectFuture[Any]]] = deque()
            try:
                for unit in due:
                    if len(waiting) > ahead:
                        self._await(waiting, bar)
                    place: Any = _Place(self.engine, bar) if in_process else dump_config(config)
                    waiting.append((unit, made_by.submit(place, self.stage, unit, self.force, self.retry_failed)))
                while waiting:
                    self._await(waiting, bar)
            except BaseException as error:
                interrupt.stop(error)
                raise

    def _await(self, waiting: deque[tuple[int, PrefectFuture[Any]]], bar: display.StageBar) -> None:
        unit, future = waiting.popleft()
        future.wait()
        self._note(unit, future.state)
        if self.engine.config.runner != "threads":
            bar.advance(self.engine.config.unit_size)

    def _reduce(self) -> None:
        """Called in this very thread, so that SIGTERM reaches it and its `finally` runs."""
        if self.is_cached(0):
            self._note(0, cached_unit.with_options(name=self.stage)(0, return_state=True))
            return
        with display.current.stage(self.stage, 1) as bar:
            place = _Place(self.engine, bar)
            self._note(0, make_result.with_options(name=self.stage)(place, self.stage, self.force, return_state=True))

    def _note(self, unit: int, state: State[Any]) -> None:
        self.outcome.last_task = state.state_details.task_run_id
        if state.name == "Cached":
            self.outcome.cached += 1
        elif state.name == "Postponed":
            self.outcome.pending[unit] = str(state.message)
        elif state.is_completed():
            self.outcome.made.append(unit)
        else:
            error = state.result(raise_on_failure=False) if state.data is not None else None
            if isinstance(error, LOST):
                raise error
            message = str(error or state.message or state.name).strip()
            self.outcome.failed[unit] = next(iter(message.splitlines()), state.name or "failed")


class _Place:
    """Where a unit runs in this process. Opaque to Prefect, which else would look for futures in all it holds."""

    __slots__ = ("bar", "engine")

    def __init__(self, engine: Engine, bar: display.StageBar) -> None:
        self.engine = engine
        self.bar = bar


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
    engine = Engine(parse_config(config))
    return _state(engine.run_unit(stage, unit, force=force, retry_failed=retry_failed))


@task(task_run_name="{stage}", persist_result=False, cache_policy=NO_CACHE)
def make_result(place: _Place, stage: str, force: bool) -> State[Any]:
    """The result of a reduce stage."""
    return _state(place.engine.run_reduce(stage, force=force, progress=place.bar.whole()))


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


def _runner(config: PipelineConfig) -> TaskRunner[Any]:
    if config.runner == "processes":
        return ProcessPoolTaskRunner(config.workers, initializer=_end_with_parent)
    return ThreadPoolTaskRunner(config.workers)


def _end_with_parent() -> None:
    """In a worker process: end when the parent is gone, however it died."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def numbers(units: Iterable[int]) -> str:
    """Unit numbers, runs of them shortened: `0-3, 7`."""
    spans: list[list[int]] = []
    for unit in sorted(units):
        if spans and unit == spans[-1][1] + 1:
            spans[-1][1] = unit
        else:
            spans.append([unit, unit])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
