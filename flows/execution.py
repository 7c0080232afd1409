"""One run of selected stages inside a Prefect flow: preflight, the stages in order, the record, the report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
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
from bootpig.storage.errors import StoreError
from bootpig.storage.root import Root
from bootpig.storage.secrets import mask, mask_logs

SHOWN = 5
"""Warnings of a stage that are shown; the log has all."""


def execute(
    config: PipelineConfig,
    run: str | None,
    selection: Selection,
    promotes: bool,
    scheduled: datetime | None = None,
    until: str | None = None,
) -> State[Any]:
    """Run the selected stages in the current flow, and keep the run's record.

    Args:
        run: the id of the run to continue, or `latest`; None for a new one.
        promotes: make it the `latest` version of the data set if all of it succeeds.
        scheduled: the time a new version was due; `until`: the last stage that a run continuing this one makes.

    Returns:
        The state of the flow: completed, failed or cancelled.

    Raises:
        InputError, ModelError, StoreError: what the user gave cannot be used.
    """
    interrupt.reset()
    mask_logs()
    spare_loopback(config.caption.openai.base_url if config.caption.openai else None)
    if os.environ.get("PREFECT__FLOW_RUN_ID"):
        # a worker has started this process for the run: with the worker gone nobody would look after it
        interrupt.end_with_parent(kill=False)
    root = Root(config.root)
    flow_id = str(flow_run.id)
    record = read_run(root, run) if run else run_of_flow(root, flow_id)
    ends: tuple[RunState, str] = ("done", "")
    if record is not None:
        config = read_config(root, record)
        if record.flow_run != flow_id and record.state != "done" and not promotes:
            # only a part was repaired: whether the whole is done is for a run of the whole to decide
            ends = ("interrupted", "") if record.state == "running" else (record.state, record.message)
        record.state, record.ended, record.message, record.process = "running", None, "", Process.current()
    _export_key(config)
    engine = current() or prepare(config, selection.stages)
    fetch_models(engine, selection.stages, display.current.line)
    if record is None:
        record = new_run(engine.root, engine.config, flow_run=flow_id, scheduled=scheduled, until=until)
    else:
        record.save(engine.root)
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
            # training answers a signal itself, by a checkpoint, so Prefect does not know which signal it was
            if isinstance(error, SystemExit) and _cancelling():
                return Cancelled(message="cancelled; complete units are kept")
            if isinstance(error, Exception) and mask(str(error)) != str(error):
                # Prefect keeps the text, and that of all its causes
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


def _cancelling() -> bool:
    """Whether somebody has asked the server to cancel this flow run."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(str(flow_run.id))).state
    except Exception:  # without a server nobody has
        return False
    return state is not None and state.is_cancelling()


def _export_key(config: PipelineConfig) -> None:
    """Copy the Secret block `caption.openai.api_key_secret` into the variable `api_key_env`, unless that is set.

    A missing block is not an error here: complete captions need no key, and the stage reports a key that it needs.
    """
    llm = config.caption.openai
    if llm is None or llm.api_key_secret is None or llm.api_key_env is None or os.environ.get(llm.api_key_env):
        return
    try:
        block = Secret.load(llm.api_key_secret)
    except ValueError:
        return
    assert isinstance(block, Secret)
    os.environ[llm.api_key_env] = str(block.get())


class _Work:
    """The stages of one run, one after the other."""

    def __init__(self, engine: Engine, record: RunRecord, selection: Selection, flow_id: str) -> None:
        self.engine = engine
        self.record = record
        self.selection = selection
        self.flow_id = flow_id
        self.workers = Workers(engine.config)
        self.last_task: Any = None
        self._survey()

    def _survey(self) -> None:
        """Look at the store, and note what the run uses there before it does."""
        self.surveys = self.engine.survey_all(self.selection.stages)
        news = [self.record.use(name, survey.fingerprint) for name, survey in self.surveys.items()]
        if any(news):
            self.record.save(self.engine.root)

    def stages(self) -> list[str]:
        """Run them. Returns what went wrong, one line a stage; empty when nothing did."""
        failures: list[str] = []
        for stage in self.selection.stages:
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
            if outcome.made or outcome.failed:
                # what was made changes what is due below
                self._survey()
            self._note(stage, outcome)
            if outcome.failed:
                failures.append(f"{stage}: {outcome.message()}")
            if not any(state == "complete" for state in self.surveys[stage].units.values()):
                changed = "a model or a file changed while it ran, so what it made is out of date; run again"
                return failures or [f"{stage}: {changed if outcome.made else 'no unit to work on'}"]
        return failures

    def _units(self, stage: str) -> list[int]:
        """The chosen units; below the first stage of a run only those that are complete above."""
        if not self.engine.graph.is_map(stage):
            return [0]
        chosen = self.selection.units
        units = list(self.record.units if chosen is None else chosen)
        if stage == self.selection.stages[0]:
            return units
        above = [self.surveys[name].units for name in self.engine.graph.upstream[stage]]
        return [unit for unit in units if all(states.get(unit) == "complete" for states in above)]

    def _remember(self, forced: list[int]) -> Callable[[int], None]:
        """What notes, in the record, each unit that was made by force."""

        def note(unit: int) -> None:
            forced.append(unit)
            self._keep()

        return note

    def thin(self) -> str | None:
        """Why the data set is too thin to train on or to be used, or None."""
        if "train" in self.surveys and self.surveys["train"].units == {0: "complete"}:
            return None
        captions, encoded = self.surveys["caption"], self.surveys["encode"]
        written = sum(marker.counts.total() for marker in captions.markers.values())
        asked = written + (len(captions.units) - len(captions.markers)) * self.engine.config.unit_size
        share = encoded.rows()["ok"] / max(asked, 1)
        if share >= self.engine.config.min_yield and encoded.markers:
            return None
        return f"{share:.1%} of the captions arrived, min_yield is {self.engine.config.min_yield:.1%}"

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
        if lost := sum(rows.get("failed", {}).values()):
            lines.append(f"  warning: {lost} rows failed; --retry-failed makes them again")
        self._keep(*lines)
        display.current.line(lines[0])
        for line in lines[1 : 1 + SHOWN]:
            display.current.line(line, "yellow")
            get_run_logger().warning(line.strip())
        if len(lines) > 1 + SHOWN:
            display.current.line(f"  and {len(lines) - 1 - SHOWN} more: runs/{self.record.id}/log.txt", "yellow")

    def report(self) -> None:
        """Write the run's report, and its metrics where there are some; a run is no worse for a report that fails."""
        folder, root = self.record.folder, self.engine.root
        done = {name: StageDone(len(stage.made), stage.seconds) for name, stage in self.record.stages.items()}
        when = f"{self.record.started:%Y-%m-%d %H:%M} UTC"
        try:
            report = gather(self.engine, self.record.id, done, config=dump_config(self.engine.config), when=when)
            if report.metrics is not None:
                root.write(f"{folder}/metrics.json", json.dumps(report.metrics, indent=2).encode())
            root.write(f"{folder}/report.html", build_report(report).encode())
            artifacts.publish(report, str(root.fs.unstrip_protocol(root.join(folder, "report.html"))))
        except (ValueError, OSError) as error:
            display.current.line(f"  warning: no report: {error}", "yellow")

    def end(self, state: RunState, message: str) -> None:
        message = mask(message)
        self.record.state, self.record.message, self.record.ended = state, message, datetime.now(UTC)
        self._keep(f"{state}{': ' if message else ''}{message}")

    def _keep(self, *lines: str) -> None:
        """Save the record and add to its log. A store that takes no more is said, and ends nothing by itself."""
        try:
            self.record.save(self.engine.root)
            for line in lines:
                self.record.log(self.engine.root, line)
        except (StoreError, OSError) as error:
            display.current.line(f"  warning: the run's record is not kept: {error}", "yellow")
