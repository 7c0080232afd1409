"""The flows against a real Prefect server: states, cached units, failed units, records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bootpig.flows.loading import load_config
from bootpig.flows.runs.records import latest_run, list_runs, read_run
from bootpig.flows.stage_run import StageOutcome, StageRun
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine, UnitReport
from bootpig.storage.root import Root
from tests.flows.conftest import TOY
from tests.stages.doubles import config as doubles_config
from tests.stages.doubles import doubles

__all__ = ["doubles"]

pytestmark = [pytest.mark.usefixtures("prefect_api"), pytest.mark.slow]


def task_states(flow_run_id: Any, expected: int) -> list[tuple[str, str]]:
    """(name, state) of the task runs below the subflows of a flow run, once the server shows `expected` of them."""
    import time

    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId

    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while True:
            parent = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run_id]))
            runs = client.read_task_runs(flow_run_filter=parent, limit=200)
            ended = sorted((run.name, run.state_name or "") for run in runs if run.end_time is not None)
            if len(ended) >= expected or time.monotonic() > deadline:
                return ended
            time.sleep(0.5)


def test_the_second_run_is_cached_and_shown_so(config: PipelineConfig) -> None:
    from bootpig.flows.pipeline import bootstrap

    first = bootstrap(config, until="caption", return_state=True)
    assert first.is_completed()
    second = bootstrap(config, until="caption", return_state=True)
    assert second.is_completed()
    states = task_states(second.state_details.flow_run_id, 4)
    assert states == [(f"unit {unit}", "Cached") for unit in range(4)]
    a, b = list_runs(Root(config.root))
    assert (a.stages["caption"].made, a.stages["caption"].cached) == ([0, 1, 2, 3], 0)
    assert (b.stages["caption"].made, b.stages["caption"].cached) == ([], 4)
    assert b.stages["caption"].rows["ok"] == 40
    with pytest.raises(InputError):  # a part of the DAG is no version of the data set
        latest_run(Root(config.root))


def test_force_makes_the_chosen_units_again(config: PipelineConfig) -> None:
    from bootpig.flows.pipeline import bootstrap, run_stage

    bootstrap(config, until="caption", return_state=True)
    state = run_stage("caption", config, units=[2, 0], force=True, return_state=True)
    assert state.is_completed()
    record = list_runs(Root(config.root))[-1]
    assert (record.stages["caption"].made, record.stages["caption"].cached) == ([0, 2], 0)


def test_failed_units_are_named_and_the_others_go_on(settings: list[str]) -> None:
    from bootpig.flows.pipeline import bootstrap, run_stage

    config = load_config(TOY, settings[:3])  # with models that can be opened
    bootstrap(config, until="caption", return_state=True)
    root = Root(config.root)
    markers = list(root.local.rglob("part-00001*")) if root.local else []
    for path in markers:
        path.unlink()
    # synthesize reads captions: without that of unit 1 its unit 1 fails before any model is loaded
    state = run_stage("synthesize", config, units=[1], return_state=True)
    assert state.is_failed()
    assert state.message == "synthesize: 1/1 units failed: 1"
    record = list_runs(root)[-1]
    assert record.state == "failed"
    assert "unit 1" in record.stages["synthesize"].failed[1]


def test_a_file_that_changes_under_a_run_is_named_as_the_cause(
    config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bootpig.flows.pipeline import bootstrap

    captions = tmp_path / "captions.txt"
    captions.write_text("A photo of a mug, on a table\n" * 10)
    from_file = {"source": "file", "file": str(captions), "count": 10}
    edited = PipelineConfig.model_validate(config.model_dump(exclude_unset=True) | {"caption": from_file})
    made = Engine.run_unit

    def run_unit(self: Engine, *arguments: Any, **options: Any) -> UnitReport:
        report = made(self, *arguments, **options)
        captions.write_text("A photo of a vase, on a table\n" * 10)
        return report

    monkeypatch.setattr(Engine, "run_unit", run_unit)
    state = bootstrap(edited, until="caption", return_state=True)
    assert state.is_failed()
    assert state.message is not None and "caption: a model or a file changed during the run" in state.message


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("ahead", ["caption", "segment", "train", "evaluate"])
def test_what_another_run_makes_at_the_same_time_is_used(
    ahead: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bootpig.flows.pipeline import bootstrap

    small = doubles_config(tmp_path / "store", workers=1, caption__count=10)
    run = StageRun.run

    def overtaken(self: StageRun) -> StageOutcome:
        if self.stage == ahead:  # surveyed as pending, and made by another run before it begins
            other = Engine(small)
            for unit in other.units():
                other.run_unit(ahead, unit) if other.graph.is_map(ahead) else other.run_reduce(ahead)
        return run(self)

    monkeypatch.setattr(StageRun, "run", overtaken)
    state = bootstrap(small, return_state=True)
    assert state.is_completed(), state.message
    (record,) = list_runs(Root(small.root))
    assert record.state == "done"
    assert record.stages[ahead].made == [] and record.stages[ahead].cached > 0
    assert all(stage.made for name, stage in record.stages.items() if name != ahead)
    assert latest_run(Root(small.root)) == record.id


def test_bad_input_fails_the_flow_before_any_record(config: PipelineConfig) -> None:
    from bootpig.flows.pipeline import bootstrap, run_stage

    gone = config.model_copy(update={"synthesize": config.synthesize.model_copy(update={"model": "/nowhere/model"})})
    with pytest.raises(InputError, match=r"synthesize\.model"):
        bootstrap(gone, until="synthesize")
    with pytest.raises(InputError, match="no such stage"):
        run_stage("segmint", config)
    with pytest.raises(InputError, match="not in this run"):
        run_stage("caption", config, units=[77])
    assert list_runs(Root(config.root)) == []


def test_a_run_is_continued_by_its_id(config: PipelineConfig) -> None:
    from bootpig.flows.pipeline import TOY, bootstrap, run_stage

    bootstrap(config, until="caption", return_state=True)
    root = Root(config.root)
    (record,) = list_runs(root)
    elsewhere = TOY.model_copy(update={"root": config.root})
    state = bootstrap(elsewhere, run=record.id, until="caption", return_state=True)
    assert state.is_completed()
    assert [run.id for run in list_runs(root)] == [record.id]
    assert read_run(root, record.id).stages["caption"].cached == 4

    record.state, record.message = "failed", "encode: 1/4 units failed: 3"
    record.save(root)
    assert run_stage("caption", config, run=record.id, return_state=True).is_completed()
    mended = read_run(root, record.id)
    assert (mended.state, mended.message) == (record.state, record.message), "a part that is well is not the whole"
