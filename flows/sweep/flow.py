"""The flow `sweep`: runs the cells of a sweep one after the other, then writes their scores, a table and a page."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed

from bootpig.flows import artifacts
from bootpig.flows.cli import display
from bootpig.flows.execution import cancelling, execute
from bootpig.flows.prepared import prepared as prepared_run
from bootpig.flows.rounds import first_round
from bootpig.flows.runs.records import run_of_flow
from bootpig.flows.selection import Selection, span
from bootpig.flows.sweep.file import SweepBaseline, SweepCell, SweepFile
from bootpig.flows.sweep.prepared import PreparedRun, PreparedSweep, current, prepare_sweep
from bootpig.flows.sweep.records import SweepRunRecord
from bootpig.flows.sweep.results import write_results
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.loaded import release
from bootpig.stages.engine.survey import graph_of
from bootpig.stages.plain_text import one_line

EXAMPLE = SweepFile(
    name="references",
    base="toy",
    cells=(
        SweepCell(name="one reference", set={"evaluate.references": 1}),
        SweepCell(name="three references", set={"evaluate.references": 3}),
    ),
    seeds={"train.seed": [0, 1, 2]},
    baseline=SweepBaseline(name="one reference"),
)
"""The initial values in the parameter form of the deployment."""

REASON = 300
"""Characters of the reason of a failed run."""


@flow(flow_run_name="sweep {sweep.name}", persist_result=False)
def sweep(sweep: SweepFile = EXAMPLE, retry_failed: bool = False) -> State[Any]:
    """Run a base configuration with several settings and seeds, in one store, and compare the results.

    What runs have in common is made once. Complete runs are reused, so a sweep that was stopped continues.

    Args:
        sweep: the content of the sweep's YAML file. `base` is the name of a shipped configuration, or a file that the
            worker can read.
        retry_failed: retry failed rows in every run, then rebuild what became stale.
    """
    ready = current(sweep, retry_failed) or prepare_sweep(sweep, retry_failed)
    ready.record.save(ready.root)
    try:
        for number, (run, record) in enumerate(zip(ready.runs, ready.record.runs, strict=True), 1):
            display.current.line(f"[{number}/{len(ready.runs)}] {run.of.label}", "bold")
            _run(ready, run, record)
            ready.record.save(ready.root)
    except SystemExit:
        # only this flow run, and not that of the cell, was cancelled on the server
        if cancelling():
            return Cancelled(message="cancelled; complete units are kept")
        raise
    page = write_results(ready)
    artifacts.publish_sweep(page, ready.root.address(ready.record.folder, "report.html"))
    failed = [run.of.label for run, record in zip(ready.runs, ready.record.runs, strict=True) if record.reason]
    if failed:
        return Failed(message=f"{len(failed)}/{len(ready.runs)} runs failed: {'; '.join(failed)}")
    return Completed(message=f"sweep {ready.record.folder}")


def _run(ready: PreparedSweep, run: PreparedRun, record: SweepRunRecord) -> None:
    """Run one cell with one seed, and note the outcome. A failure ends no other run."""
    if run.complete is not None:
        cached_cell(run.of.label, run.complete.id, return_state=True)
        display.current.line(f"cached: run {run.complete.id}", "dim")
        return
    config, label = run.of.config, run.of.label
    before = first_round(config, span(graph_of(config)))
    state = None if before is None else _ordinary_run(f"{label}, first round", before, None, ready.retry_failed)
    if state is None or state.is_completed():
        state = _ordinary_run(label, config, run.engine, ready.retry_failed)
    made = run_of_flow(ready.root, str(state.state_details.flow_run_id))
    record.run = None if made is None else made.id
    if state.is_completed() and made is not None:
        record.state, record.evaluated = "done", made.stages["evaluate"].fingerprint
        return
    error = state.result(raise_on_failure=False) if state.data is not None else None
    record.state, record.reason = "failed", one_line(str(error or state.message or state.name), REASON)
    display.current.line(f"failed: {record.reason}", "yellow")
    get_run_logger().warning("%s failed: %s", label, record.reason)


def _ordinary_run(label: str, config: PipelineConfig, engine: Engine | None, retry_failed: bool) -> State[Any]:
    """Run the whole DAG as a subflow. It does not become the `latest` version of the data set."""

    # the configuration is no parameter of the subflow, because it may be too large for one
    @flow(name="cell", flow_run_name="{cell}", persist_result=False, validate_parameters=False)
    def cell_flow(cell: str) -> State[Any]:
        selection = Selection(span(graph_of(config)), None, False, retry_failed)
        with nullcontext() if engine is None else prepared_run(config, engine):
            return execute(config, None, selection, promotes=False)

    try:
        return cell_flow(label, return_state=True)
    finally:
        release()  # the models of its last stage would be in the way of the next cell


@task(task_run_name="{cell}", persist_result=False, cache_policy=NO_CACHE)
def cached_cell(cell: str, run: str) -> State[Any]:
    return Completed(name="Cached", message=f"complete in the store: run {run}")
