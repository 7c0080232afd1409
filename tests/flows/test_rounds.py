"""Which model draws the views of a run, and the first round that makes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig.flows.loading import load_config, shipped_configs
from bootpig.flows.rounds import first_round, with_round_before, with_view_model
from bootpig.flows.runs.records import StageRecord, new_run
from bootpig.models.pretrained.source import PROJECT
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.survey import graph_of
from bootpig.storage.folders import publish_folder
from bootpig.storage.root import Root

BASE = PROJECT / "models/toy/checkpoints/stable-diffusion"


def config(root: Path, *overrides: str) -> PipelineConfig:
    return load_config(shipped_configs()["toy-views"], [f"root={root}", *overrides])


def publish(root: Path, fingerprint: str, folder: Path) -> str:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "bootpig.json").write_text('{"base": "x"}')
    return publish_folder(Root(str(root)), f"train/{fingerprint}/result", folder).path


def test_the_first_round_is_the_same_without_views(tmp_path: Path) -> None:
    asked = config(tmp_path)
    stages = graph_of(asked).stages
    first = first_round(asked, stages)
    assert first is not None and first.view is None and first.augment.references_from == "cut_out"
    assert graph_of(first).stages.keys() == stages.keys() - {"view"}
    assert first_round(asked, ("caption", "synthesize")) is None, "no view will be drawn"
    assert first_round(config(tmp_path, f"view.model={BASE}"), stages) is None
    assert with_view_model(asked) == asked, "not made yet"
    fingerprint = Engine(first).survey("train").fingerprint
    path = publish(tmp_path, fingerprint, tmp_path / "made")
    found = with_view_model(asked).view
    assert found is not None and found.model == str(tmp_path / path / "model")


def test_a_run_latest_or_a_folder(tmp_path: Path) -> None:
    for name in (str(BASE), "owner/editing-pipeline"):
        asked = config(tmp_path, f"view.model={name}")
        assert with_view_model(asked) == asked
    for name in ("latest", "20261127-000000-toy-00000000"):
        with pytest.raises(InputError, match=r"^view\.\w*"):
            with_view_model(config(tmp_path, f"view.model={name}"))
    with pytest.raises(InputError, match=r"^view\.model: .*holds no bootpig\.json"):
        with_view_model(config(tmp_path, f"view.model={tmp_path}"))
    path = publish(tmp_path, "0" * 16, tmp_path / "made")
    record = new_run(Root(str(tmp_path)), config(tmp_path))
    record.stages["train"] = StageRecord(fingerprint="0" * 16)
    record.save(Root(str(tmp_path)))
    found = with_view_model(config(tmp_path, f"view.model={record.id}"))
    assert found.view is not None and found.view.model == str(tmp_path / path / "model")

    likeness = {"dino": {"mean": 0.5, "ci95": [0.4, 0.6]}}
    metrics = {"methods": {"bootpig": {"dino": {"mean": 0.7, "ci95": [0.6, 0.8]}}}}
    assert with_round_before(metrics, Root(str(tmp_path)), found) == metrics, "that run was not evaluated"
    Root(str(tmp_path)).write(
        f"{record.folder}/metrics.json", b'{"methods": {"bootpig": {"dino": {"mean": 0.5, "ci95": [0.4, 0.6]}}}}'
    )
    both = with_round_before(metrics, Root(str(tmp_path)), found)
    assert both["methods"] == {**metrics["methods"], "round_before": likeness}
