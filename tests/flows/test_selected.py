"""A selection in runs: one that leaves too little is noticed before train, and versions without a model have one."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig.flows.runs.records import latest_run, list_runs
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.engine import Engine
from bootpig.storage.root import Root
from tests.stages.doubles import config, doubles

pytestmark = [pytest.mark.usefixtures("prefect_api", "doubles"), pytest.mark.slow]

__all__ = ["doubles"]


def selecting(root: Path, min_yield: float) -> PipelineConfig:
    score = {"clip": None, "dino": None}
    return config(root, score=score, select={"max_samples": 8}, min_yield=min_yield)  # 8 of 20 captions


def test_a_selection_that_leaves_too_little_is_noticed_before_train(tmp_path: Path) -> None:
    from bootpig.flows.pipeline import bootstrap

    state = bootstrap(selecting(tmp_path, 0.5), return_state=True)
    assert state.is_failed()
    assert state.message == (
        "train: not started; 40.0% of the captions became samples that are selected, min_yield is 50.0%"
    )
    assert bootstrap(selecting(tmp_path, 0.4), return_state=True).is_completed()


def test_a_version_without_a_model_is_selected_too(tmp_path: Path) -> None:
    from bootpig.flows.pipeline import bootstrap, regenerate

    settings = selecting(tmp_path, 0.4)
    root = Root(settings.root)
    assert regenerate(settings, train=False, return_state=True).is_completed()
    (record,) = list_runs(root)
    assert latest_run(root) == record.id
    assert {"encode", "select"} <= record.stages.keys() and "train" not in record.stages
    assert root.folders("select") and not root.folders("train")
    again = bootstrap(settings, run=record.id, return_state=True)
    assert again.is_completed() and not root.folders("train")
    strict = regenerate(selecting(tmp_path, 0.9), train=False, return_state=True)
    assert strict.is_failed() and "not promoted: 40.0% of the captions became samples that" in strict.message
    assert Engine(settings).survey("train").result is None
