"""Three flows that users trigger: `bootstrap` (the DAG), `run_stage` (one stage), `regenerate` (on a schedule)."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import Field

from bootpig.flows.execution import execute
from bootpig.flows.loading import load_config, shipped_configs
from bootpig.flows.parameters import StoredParameters, opened
from bootpig.flows.rounds import first_round, or_first_round
from bootpig.flows.runs import gc
from bootpig.flows.runs.records import read_config, read_run, run_of_flow
from bootpig.flows.schedule import due, due_behind
from bootpig.flows.selection import Selection, data_stages, known_stage, known_units, span
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.survey import graph_of
from bootpig.storage.root import Root

TOY = load_config(shipped_configs()["toy"])
"""The initial values in the parameter form of a deployment."""


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
    """Run the whole DAG, or the stages from `first` to `until`. Complete units in the store are reused.

    Args:
        config: the content of the YAML file.
        run: continue a run, given by its id or as `latest`, with the config and units in its record.
        first: the first stage to run.
        until: the last stage to run.
        force: rebuild complete units.
        retry_failed: retry failed rows, then rebuild what became stale.
        stored: where a configuration is stored that is too large for Prefect. `config` then only has the run's name.
    """
    config, _ = opened(config, None, stored)
    promotes = until is None
    graph = graph_of(config)
    data_only = run is not None and promotes and read_run(Root(config.root), run).until is not None
    stages = data_stages(graph, first) if data_only else span(graph, first, until)
    if run is None and first is None and (failed := _first_round(config, stages)) is not None:
        return failed
    return execute(config, run, Selection(stages, None, force, retry_failed), promotes)


def _first_round(config: PipelineConfig, stages: tuple[str, ...]) -> State[Any] | None:
    """Make the model that draws the views, if that is a first round and is not in the store. None unless it failed."""
    before = first_round(config, stages)
    state: State[Any] | None = None if before is None else make_first_round(config=before, return_state=True)
    if state is None or state.is_completed():
        return None
    return Failed(message=f"the first round: {state.message}")


@flow(name="first_round", flow_run_name="first round {config.name}", persist_result=False)
def make_first_round(config: PipelineConfig) -> State[Any]:
    """Run the whole DAG, for its model alone: `latest` stays as it is until the second round is complete."""
    return execute(config, None, Selection(tuple(graph_of(config).stages)), promotes=False)


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
    """Run one stage.

    Args:
        stage: the stage.
        units: the units to run. Default: all.
        downstream: also run the stages that depend on it.

    The other arguments are as in `bootstrap`.
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
    """Make a new version of the data set. Its seed depends on the scheduled time of the run.

    It becomes the `latest` version if everything succeeds and at least `min_yield` of its captions become samples to
    train on. A retry of the same flow run finds its record and continues with the same version.

    Args:
        config: the content of the YAML file. The version's seed is derived from its `seed` and the scheduled time.
        train: also train and evaluate a model on the new version.
        keep: number of promoted versions to keep. Older ones are removed as by `bootpig gc`. None: keep all.
        max_age_hours: a run that starts more than this after its scheduled time is skipped, as after a downtime of the
            workers. If a newer scheduled run that is not too late was cancelled because of it, it makes the version of
            that run instead.
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
        get_run_logger().warning("too late for its scheduled time; making the version due %s instead", newest)
        scheduled = newest
    seed = int.from_bytes(hashlib.sha256(f"{config.seed}/{scheduled.isoformat()}".encode()).digest()[:8], "big") >> 1
    seeded = or_first_round(config).model_copy(update={"seed": seed})
    graph = graph_of(config)
    stages = span(graph) if train else data_stages(graph)
    until = None if train else "encode"
    state = _first_round(seeded, stages) or execute(
        seeded, None, Selection(stages), promotes=True, scheduled=scheduled, until=until
    )
    if state.is_completed() and keep is not None:
        try:
            gc.collect(root, gc.garbage(root, keep))
        except (ValueError, OSError) as error:
            get_run_logger().warning("old versions were not removed: %s", error)
    return state
