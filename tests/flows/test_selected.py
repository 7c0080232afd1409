"""A selection in runs: one that leaves too little is noticed before train, and versions without a model have one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bootpig.flows.runs.records import latest_run, list_runs
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.engine import Engine
from bootpig.storage.root import Root
from tests.stages.doubles import Cutter, config, doubles

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
        "train: not started; 40.0% of the captions became samples that are selected, min_yield is 50.0%; "
        "see bootpig status and bootpig select for what drops most, or lower min_yield"
    )
    assert bootstrap(selecting(tmp_path, 0.4), return_state=True).is_completed()


def test_a_selection_of_nothing_is_complete_and_the_later_stages_are_not_started(tmp_path: Path) -> None:
    from bootpig.flows.pipeline import bootstrap

    settings = config(tmp_path, score={"clip": None, "dino": None}, select={"min_area": 0.99}, min_yield=0)
    state = bootstrap(settings, return_state=True)
    assert state.is_failed() and state.result(raise_on_failure=False) is None, "no exception, so the exit code is 1"
    line = "augment, encode, train, evaluate: not started; no sample is left of "
    fix = "loosen these settings of select"
    assert state.message.startswith(line) and state.message.endswith(fix)
    (record,) = list_runs(Root(settings.root))
    assert (record.state, record.message) == ("failed", state.message)
    assert record.stages["select"].made == [0] and "augment" not in record.stages
    assert (tmp_path / record.folder / "report.html").exists()
    again = bootstrap(settings, run=record.id, return_state=True)
    assert again.is_failed() and again.message == state.message
    assert bootstrap(settings, until="select", return_state=True).is_completed(), "all that was asked for is made"
    assert fix in (tmp_path / list_runs(Root(settings.root))[-1].folder / "log.txt").read_text()
    below = bootstrap(settings, first="augment", return_state=True)
    assert below.is_failed() and below.message.startswith("train: not started; no sample is left of ")


@pytest.mark.parametrize("selects", [True, False])
def test_samples_that_are_all_rejected_before_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selects: bool
) -> None:
    from bootpig.flows.pipeline import bootstrap

    monkeypatch.setattr(Cutter, "make", lambda self, sample: sample.rejected("blank"))
    sections: dict[str, Any] = {"score": {"clip": None, "dino": None}, "select": {"min_area": 0.1}} if selects else {}
    # a handful, which does not stop the run at once
    state = bootstrap(config(tmp_path, caption__count=5, min_yield=0, **sections), return_state=True)
    assert state.is_failed() and state.result(raise_on_failure=False) is None
    assert state.message == (
        "augment, encode, train, evaluate: not started; there is no scored sample to select from; see bootpig status "
        "for what rejected them"
        if selects
        else "train: not started; 0.0% of the captions became samples, min_yield is 0.0%; see bootpig status for what "
        "drops most"
    )


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
