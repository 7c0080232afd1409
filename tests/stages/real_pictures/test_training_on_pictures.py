"""The shipped configs/pictures.yaml on a folder of the toy's pictures, with the toy's models: from files to a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig.flows.loading import load_config, shipped_configs
from bootpig.flows.runs.plan import plan
from bootpig.flows.runs.status import status
from bootpig.models.pretrained.source import PROJECT
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.loaded import release
from bootpig.stages.engine.preflight import preflight
from bootpig.stages.report.gather import gather
from bootpig.stages.report.html import build_report
from tests.stages.real_pictures.sets import write_pictures

TOY = PROJECT / "models/toy/checkpoints"
SETTINGS = (
    "unit_size=4",
    "pictures={count: 8, size: 64}",
    f"segment={{detector: {TOY / 'owlvit'}, sam: {TOY / 'sam/sam_vit_toy.safetensors'}, sam_type: vit_toy, border: 0}}",
    "augment.size=64",
    "augment.references=1",
    f"encode={{model: {TOY / 'stable-diffusion'}}}",
    f"train={{model: {TOY / 'stable-diffusion'}, steps: 1, global_batch_size: 2, per_device_batch_size: 2}}",
    f"evaluate.clip={TOY / 'clip'}",
    f"evaluate.dino={TOY / 'dino'}",
    f"evaluate.subjects={PROJECT / 'models/toy/subjects_held_out'}",
)


@pytest.mark.slow
def test_a_folder_becomes_a_model(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", range(8))
    place = [f"root={tmp_path / 'store'}", f"pictures.url={tmp_path / 'set'}"]
    config = load_config(shipped_configs()["pictures"], [*SETTINGS, *place])
    planned = plan(config)
    assert planned["missing"] == [] and list(planned["stages"])[:2] == ["pictures", "segment"]
    engine = Engine(config)
    assert preflight(engine, engine.graph.stages) == []
    for stage in ("pictures", "segment", "augment", "encode"):
        for unit in engine.units():
            report = engine.run_unit(stage, unit)
            assert report.state == "done" and report.rows["ok"] > 0, (stage, report)
    trained = engine.run_reduce("train")
    assert trained.state == "done", trained.message
    release()
    facts = status(config)["stages"]
    assert all(facts[stage]["units"]["complete"] for stage in ("pictures", "segment", "augment", "encode", "train"))
    assert engine.verify("pictures") == []
    report = gather(engine, "run", {})
    assert report.examples and report.subjects and report.stages[0].ok == 8
    assert "of 8 pictures came through every stage" in build_report(report)
