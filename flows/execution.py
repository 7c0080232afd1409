"""Runs selected stages inside a Prefect flow: preflight, the stages in order, the run's record, the report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from bootpig.flows import artifacts, interrupt
from bootpig.flows.cli import display
from bootpig.flows.loading import dump_config
from bootpig.flows.prepared import current, prepare
from bootpig.flows.proxies import spare_loopback
from bootpig.flows.rounds import with_round_before
from bootpig.flows.runners import Workers
from bootpig.flows.runs.records import (
    Process,
    RunRecord,
    RunState,
    StageRecord,
    alive,
    new_run,
    promote,
    read_config,
    read_run,
    run_of_flow,
)
from bootpig.flows.selection import Selection
from bootpig.flows.server import wait_recorded
from bootpig.flows.stage_run import StageOutcome, StageRun
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.preflight import fetch_models
from bootpig.stages.engine.survey import StageSurvey
from bootpig.stages.report.gather import StageDone, gather
from bootpig.stages.report.html import build_report
from bootpig.stages.select.rules import nothing_left
from bootpig.stages.select.stage import FACTS, SELECTED
from bootpig.storage.errors import StoreError
from bootpig.storage.jsonio import parse_json
from bootpig.storage.root import Root
from bootpig.storage.secrets import mask, mask_logs

SHOWN = 5
"""Maximum number of warnings shown per stage. The log has all of them."""


def execute(
    config: PipelineConfig,
    run: str | None,
    selection: Selection,
    promotes: bool,
    scheduled: datetime | None = None,
    until: str | None = None,
) -> State[Any]:
    """Run the selected stages in the current flow and write the run's record.

    Args:
        config: the configuration of a new run.
        run: the id of the run to continue, or `latest`. None: a new run.
        selection: the stages and units to run.
        promotes: make it the `latest` version of the data set if everything succeeds.
        scheduled: the scheduled time of a new version.
        until: `encode` if this run, and runs that continue it, only make the data set.

    Returns:
        The state of the flow: completed, failed or cancelled.

    Raises:
        InputError, ModelError, StoreError: the user's input cannot be used.
    """
    interrupt.reset()
    mask_logs()
    spare_loopback(*(endpoint.base_url for endpoint in config.endpoints))
    if os.environ.get("PREFECT__FLOW_RUN_ID"):
        # this process was started by a worker: end it with the worker, because nothing else would stop it
        interrupt.end_with_parent(kill=False)
    root = Root(config.root)
    flow_id = str(flow_run.id)
    record = read_run(root, run) if run else run_of_flow(root, flow_id)
    ends: tuple[RunState, str] = ("done", "")
    if record is not None:
        config = read_config(root, record)
        if record.flow_run != flow_id and record.state != "done" and not promotes:
            # only part of the run was repaired, so the state of the whole run does not change
            ends = ("interrupted", "") if record.state == "running" else (record.state, record.message)
        record.state, record.ended, record.message, record.process = "running", None, "", Process.current()
    _export_keys(config)
    engine = current(config) or prepare(config, selection.stages)
    fetch_models(engine, selection.stages, display.current.line)
    if record is None:
        record = new_run(engine.root, engine.config, flow_run=flow_id, scheduled=scheduled, until=until)
    else:
        record.save(engine.root)
    engine.run = record.id
    with alive(engine.root, record):
        work = _Work(engine, record, selection, flow_id)
        try:
            with work.workers:
                failures = work.stages()
            if not failures and promotes and (thin := work.thin()):
                failures = [f"not promoted: {thin}"]
        except BaseException as error:
            if isinstance(error, Exception):
                work.end("failed", str(error).strip() or type(error).__name__)
            else:
                work.end("interrupted", "by a signal; complete units are kept")
            # training handles the signal itself and saves a checkpoint, so Prefect does not know of the signal
            if isinstance(error, SystemExit) and cancelling():
                return Cancelled(message="cancelled; complete units are kept")
            if isinstance(error, Exception) and mask(str(error)) != str(error):
                # Prefect stores the message, and those of all causes
                raise RuntimeError(f"{type(error).__name__}: {mask(str(error))}") from None
            raise
        work.report()
    wait_recorded(work.last_task)
    if failures:
        work.end("failed", "; ".join(failures))
        return Failed(message="; ".join(failures))
    work.end(*ends)
    if promotes:
        promote(engine.root, record)
    return Completed(message=f"run {record.id}")


def cancelling() -> bool:
    """Whether cancelling this flow run was requested on the server."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(str(flow_run.id))).state
    except Exception:  # the server cannot be reached
        return False
    return state is not None and state.is_cancelling()


def _export_keys(config: PipelineConfig) -> None:
    """Copy the Secret block `api_key_secret` of each endpoint to the variable `api_key_env`, unless that is set.

    A missing block is not an error here: complete units need no key, and otherwise the stage reports it.
    """
    for endpoint in config.endpoints:
        name, variable = endpoint.api_key_secret, endpoint.api_key_env
        if name is None or variable is None or os.environ.get(variable):
            continue
        try:
            block = Secret.load(name)
        except ValueError:
            continue
        assert isinstance(block, Secret)
        os.environ[variable] = str(block.get())


class _Work:
    """Runs the stages of one run, one after the other."""

    def __init__(self, engine: Engine, record: RunRecord, selection: Selection, flow_id: str) -> None:
        self.engine = engine
        self.record = record
        self.selection = selection
        self.flow_id = flow_id
        self.workers = Workers(engine.config)
        self.last_task: Any = None
        self._survey()

    def _survey(self) -> None:
        """Survey the store, and record the fingerprints that the run uses before it uses them."""
        self.surveys = self.engine.survey_all(self.selection.stages)
        news = [self.record.use(name, survey.fingerprint) for name, survey in self.surveys.items()]
        if any(news):
            self.record.save(self.engine.root)

    def stages(self) -> list[str]:
        """Run the stages. Returns one line per stage that failed."""
        failures: list[str] = []
        self._warn()
        for place, stage in enumerate(self.selection.stages, 1):
            if stage == "train" and (thin := self.thin()):
                return [*failures, f"train: not started; {thin}"]
            forced = self.record.made_by_force(self.flow_id, stage) if self.selection.force else []
            work = StageRun(
                self.engine,
                stage,
                self.surveys[stage],
                self._units(stage),
                self.workers,
                self.selection.force,
                self.selection.retry_failed,
                tuple(forced),
                self._remember(forced) if self.selection.force else lambda unit: None,
            )
            outcome = work.run()
            if work.due():
                # they exist now, made here or by another process at the same time; units of later stages can be stale
                self._survey()
            self._note(stage, outcome)
            if outcome.failed:
                failures.append(f"{stage}: {outcome.message()}")
            if outcome.stopped:
                return [*failures, outcome.stopped]
            if not any(state == "complete" for state in self.surveys[stage].units.values()):
                changed = "a model or a file changed during the run, so the result is out of date; run again"
                return failures or [f"{stage}: {changed if outcome.made else 'no unit to work on'}"]
            if stage == "select" and (empty := self._nothing_selected()):
                if later := self.selection.stages[place:]:  # nothing would use what they make
                    return [*failures, f"{', '.join(later)}: not started; {empty}"]
                self._tell(f"warning: {empty}")
        return failures

    def _warn(self) -> None:
        """Show what users should know of the stages with something to make."""
        chosen = self.record.units if self.selection.units is None else self.selection.units
        for name in self.selection.stages:
            units = chosen if self.engine.graph.is_map(name) else [0]
            if all(self.surveys[name].units.get(unit) == "complete" for unit in units) and not self.selection.force:
                continue
            for line in self.engine.make(name).warnings():
                self._tell(f"warning: {line}")

    def _tell(self, line: str) -> None:
        display.current.line(line, "yellow")
        get_run_logger().warning(line.removeprefix("warning: "))
        self._keep(line)

    def _units(self, stage: str) -> list[int]:
        """The selected units. For all but the first stage of a run, only those that are complete in the upstreams."""
        if not self.engine.graph.is_map(stage):
            return [0]
        chosen = self.selection.units
        units = list(self.record.units if chosen is None else chosen)
        if stage == self.selection.stages[0]:
            return units
        above = [self.surveys[name].units for name in self.engine.graph.upstream[stage]]
        return [unit for unit in units if all(states.get(unit) == "complete" for states in above)]

    def _remember(self, forced: list[int]) -> Callable[[int], None]:
        """A callback that records each unit that was rebuilt by force."""

        def note(unit: int) -> None:
            forced.append(unit)
            self._keep()

        return note

    def thin(self) -> str | None:
        """The reason why too few captions (or given pictures) became samples to train on. None if enough did."""
        if "train" in self.surveys and self.surveys["train"].units == {0: "complete"}:
            return None
        if (empty := self._nothing_selected()) is not None:
            return empty
        source = self.engine.config.source
        drawn = self.surveys[source]
        written = sum(marker.counts.total() for marker in drawn.markers.values())
        asked = written + (len(drawn.units) - len(drawn.markers)) * self.engine.config.unit_size
        usable = self._usable()
        share, wanted = usable / max(asked, 1), self.engine.config.min_yield
        if usable and share >= wanted:
            return None
        what = {"caption": "captions", "pictures": "pictures"}[source]
        became, where = "became samples", "bootpig status"
        if "select" in self.surveys:
            became, where = "became samples that are selected", "bootpig status and bootpig select"
        fix = ", or lower min_yield" if usable else ""  # no min_yield trains a model on nothing
        return f"{share:.1%} of the {what} {became}, min_yield is {wanted:.1%}; see {where} for what drops most{fix}"

    def _nothing_selected(self) -> str | None:
        """Why the selection is empty, and the fix. None if it is not, or is not made."""
        return None if self._selected() != set() else nothing_left(self._read_selection(FACTS))

    def _selected(self) -> set[str] | None:
        """The ids that are selected. None without a selection, or while it is not made."""
        made = "select" in self.surveys and self.surveys["select"].result is not None
        return set(self._read_selection(SELECTED)) if made else None

    def _read_selection(self, name: str) -> Any:
        result = self.surveys["select"].result
        assert result is not None
        return parse_json(self.engine.root.read(f"{result.path}/{name}"))

    def _usable(self) -> int:
        """The number of encoded samples, and selected ones where there is a selection."""
        encoded, chosen = self.surveys["encode"], self._selected()
        if chosen is None:
            return encoded.rows()["ok"]
        rows = (row for marker in encoded.markers.values() for row in marker.read(["id", "status"]))
        return sum(row["status"] == "ok" and row["id"] in chosen for row in rows)

    def _note(self, stage: str, outcome: StageOutcome) -> None:
        survey: StageSurvey = self.surveys[stage]
        self.last_task = outcome.last_task or self.last_task
        rows = survey.rows() if self.engine.graph.is_map(stage) else {}
        self.record.stages[stage] = StageRecord(
            fingerprint=survey.fingerprint,
            made=outcome.made,
            cached=outcome.cached,
            failed=outcome.failed,
            rows=rows,
            seconds=round(outcome.seconds, 3),
        )
        lines = [f"{stage:<11} {outcome.message()}, {outcome.seconds:.1f} s"]
        lines += [f"  {why}" for why in dict.fromkeys((*outcome.failed.values(), *list(outcome.pending.values())[:1]))]
        lines += [f"  {outcome.stopped}"] if outcome.stopped else []
        if outcome.restarts:
            lines.append(f"  warning: a worker process died {outcome.restarts} times, as when memory runs out")
        if lost := sum(rows.get("failed", {}).values()):
            lines.append(f"  warning: {lost} rows failed; retry them with --retry-failed")
        self._keep(*lines)
        display.current.line(lines[0])
        for line in lines[1 : 1 + SHOWN]:
            display.current.line(line, "yellow")
            get_run_logger().warning(line.strip())
        if len(lines) > 1 + SHOWN:
            display.current.line(f"  and {len(lines) - 1 - SHOWN} more: runs/{self.record.id}/log.txt", "yellow")

    def report(self) -> None:
        """Write the run's report, and its metrics if there are any. A failure is only a warning."""
        folder, root = self.record.folder, self.engine.root
        done = {name: StageDone(len(stage.made), stage.seconds) for name, stage in self.record.stages.items()}
        when = f"{self.record.started:%Y-%m-%d %H:%M} UTC"
        try:
            report = gather(self.engine, self.record.id, done, config=dump_config(self.engine.config), when=when)
            if report.metrics is not None:
                root.write(f"{folder}/metrics.json", json.dumps(report.metrics, indent=2).encode())
                report = replace(report, metrics=with_round_before(report.metrics, root, self.engine.config))
            root.write(f"{folder}/report.html", build_report(report).encode())
            artifacts.publish(report, str(root.fs.unstrip_protocol(root.join(folder, "report.html"))))
        except (ValueError, OSError) as error:
            display.current.line(f"  warning: no report: {error}", "yellow")

    def end(self, state: RunState, message: str) -> None:
        message = mask(message)
        self.record.state, self.record.message, self.record.ended = state, message, datetime.now(UTC)
        self._keep(f"{state}{': ' if message else ''}{message}")

    def _keep(self, *lines: str) -> None:
        """Save the record and append lines to its log. If the store fails, only show a warning."""
        try:
            self.record.save(self.engine.root)
            for line in lines:
                self.record.log(self.engine.root, line)
        except (StoreError, OSError) as error:
            display.current.line(f"  warning: the run's record was not saved: {error}", "yellow")
