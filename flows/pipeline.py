"""The three flows that users trigger: `bootstrap` (the DAG), `run_stage` (one stage), `regenerate` (on a schedule)."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from bootpig.flows.execution import execute
from bootpig.flows.loading import load_config, shipped_configs
from bootpig.flows.parameters import StoredParameters, opened
from bootpig.flows.runs import gc
from bootpig.flows.runs.records import read_config, read_run, run_of_flow
from bootpig.flows.schedule import due, due_behind
from bootpig.flows.selection import Selection, known_stage, known_units, span
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.survey import graph_of
from bootpig.storage.root import Root

TOY = load_config(shipped_configs()["toy"])
"""Where a deployment's form of parameters begins."""


@flow(flow_run_name="bootstrap {config.name}", persist_result=False)
def bootstrap(
    config: PipelineConfig = TOY,
    run: str | None = None,
    first: str | None = None,
    until: str | None = None,
    force: bool = False,
    retry_failed: bool = False,
    stored: StoredParameters | None = None,
) -> State[Any]:
    """The whole DAG, or the stages from `first` to `until`. What is complete in the store is not made again.

    Args:
        config: what the YAML file says.
        run: a run id, or `latest`: config and units come from its record, which this run continues.
        first: the stage to begin with.
        until: the last stage.
        force: make complete units again.
        retry_failed: make failed rows again, then whatever became stale.
        stored: where a configuration is kept that is too large for Prefect; `config` then only names the run.
    """
    config, _ = opened(config, None, stored)
    promotes = until is None
    if run is not None and until is None:
        until = read_run(Root(config.root), run).until
    return execute(config, run, Selection(span(graph_of(config), first, until), None, force, retry_failed), promotes)


@flow(flow_run_name="run_stage {stage}", persist_result=False)
def run_stage(
    stage: str,
    config: PipelineConfig = TOY,
    units: list[int] | None = None,
    run: str | None = None,
    force: bool = False,
    retry_failed: bool = False,
    downstream: bool = False,
    stored: StoredParameters | None = None,
) -> State[Any]:
    """One stage, all of its units or those chosen; `downstream` carries it on to the stages below.

    Args as in `bootstrap`.
    """
    config, units = opened(config, units, stored)
    graph = graph_of(config)
    known_stage("stage", stage, graph)
    stages = graph.below(stage) if downstream else (stage,)
    if run is not None:
        config = read_config(Root(config.root), read_run(Root(config.root), run))
    units_known = known_units(config, graph, stages, units)
    return execute(config, run, Selection(stages, units_known, force, retry_failed), promotes=False)


@flow(flow_run_name="regenerate {config.name}", persist_result=False)
def regenerate(
    config: PipelineConfig = TOY,
    train: bool = True,
    keep: Annotated[int, Field(ge=1)] | None = None,
    max_age_hours: Annotated[float, Field(gt=0, le=87_600)] = 12.0,
    stored: StoredParameters | None = None,
) -> State[Any]:
    """A new version of the data set, its seed drawn from the time for which the run was scheduled.

    It becomes the `latest` one when all of it has succeeded and `min_yield` of its captions have arrived. A retry of
    the same flow run finds its record and goes on with the same version.

    Args:
        config: what the YAML file says; its `seed` is one half of the seed.
        train: train a model on it and evaluate that, too.
        keep: promoted versions to keep; older ones are removed as by `bootpig gc`. None: all.
        max_age_hours: a run that starts later than this after its time is skipped: nobody was there to do it. If it
            has kept one from running that is not so late, it makes that one's version.
        stored: as in `bootstrap`.
    """
    config, _ = opened(config, None, stored)
    scheduled = due()
    root = Root(config.root)
    now = datetime.now(UTC)
    oldest = now - timedelta(hours=max_age_hours)
    if scheduled < oldest and run_of_flow(root, str(flow_run.id)) is None:
        newest = due_behind(scheduled)
        if newest is None or newest < oldest:
            hours = (now - scheduled).total_seconds() / 3600
            when = f"was due {scheduled:%Y-%m-%d %H:%M} UTC, {hours:.1f} h ago"
            return Completed(name="Skipped", message=f"{when}; max_age_hours is {max_age_hours:g}")
        get_run_logger().warning("too late for its own time, so this makes the version due %s", newest)
        scheduled = newest
    seed = int.from_bytes(hashlib.sha256(f"{config.seed}/{scheduled.isoformat()}".encode()).digest()[:8], "big") >> 1
    seeded = config.model_copy(update={"seed": seed})
    until = None if train else "encode"
    stages = span(graph_of(config), None, until)
    state = execute(seeded, None, Selection(stages), promotes=True, scheduled=scheduled, until=until)
    if state.is_completed() and keep is not None:
        try:
            gc.collect(root, gc.garbage(root, keep))
        except (ValueError, OSError) as error:
            get_run_logger().warning("old versions are not removed: %s", error)
    return state
