"""The shipped configs for real models, run from caption to evaluate with random weights of the same classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bootpig.flows.loading import load_config
from bootpig.flows.runs.plan import plan
from bootpig.models.toy.subject_folder import write_folder
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.preflight import preflight
from tests.models.detectors import save_grounding_dino
from tests.models.families import save_refiner, save_sd15, save_sd21, save_sdxl
from tests.models.pretrained.test_segmenters import SAM
from tests.models.tiny import save_clip, save_vit

CONFIGS = Path(__file__).parents[2] / "configs"
PAINTS = {"sd15": "sd15", "sd21": "sd21", "sdxl-data": "sdxl", "sdxl": "sdxl"}
TRAINED = {"sd15": "sd15", "sd21": "sd21", "sdxl-data": "sd21", "sdxl": "sdxl"}
CAPTION = "{source: grammar, count: 4, objects: [a mug, a teapot], positions: [on the left], scenes: [here, there]}"
SMALL = (
    "unit_size=2",
    f"caption={CAPTION}",
    "synthesize.steps=2",
    "synthesize.min_contrast=0",
    "synthesize.batch_size=2",
    "segment.sam_sha256=null",
    "segment.sam_type=vit_toy",
    "segment.detection_threshold=0",
    "segment.min_score=0",
    "segment.min_sam_iou=0",
    "segment.border=0",
    "segment.min_area=0",
    "segment.max_area=1",
    "augment.size=64",
    "train.steps=2",
    "train.warmup_steps=1",
    "train.global_batch_size=2",
    "train.per_device_batch_size=1",
    "evaluate.steps=2",
    "evaluate.images_per_prompt=1",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for save, name in (
        (save_sd15, "sd15"),
        (save_sd21, "sd21"),
        (save_sdxl, "sdxl"),
        (save_refiner, "refiner"),
        (save_grounding_dino, "detector"),
        (save_clip, "clip"),
        (save_vit, "dino"),
    ):
        save(folder / name)
    write_folder(folder / "subjects", 2)
    names = sorted(path.name for path in (folder / "subjects").iterdir() if path.is_dir())
    lists = ["subject_name,class", *(f"{name},mug" for name in names), "Object Prompts", "'a {0} {1} on a shelf',"]
    (folder / "subjects" / "prompts_and_classes.txt").write_text("\n".join(lists))  # for sd21
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PAINTS))
def test_caption_to_evaluate(name: str, models: Path, tmp_path: Path) -> None:
    side = 128 if name == "sdxl-data" else 64
    overrides = [
        f"root={tmp_path}",
        *SMALL,
        f"synthesize.model={models / PAINTS[name]}",
        f"synthesize.height={side}",
        f"synthesize.width={side}",
        f"segment.detector={models / 'detector'}",
        f"segment.sam={SAM}",
        f"encode.model={models / TRAINED[name]}",
        f"train.model={models / TRAINED[name]}",
        *(f"evaluate.{field}={models / field}" for field in ("clip", "dino", "subjects")),
    ]
    if name == "sdxl-data":
        overrides += [f"synthesize.refiner={models / 'refiner'}", "synthesize.resize=64"]
    config = load_config(CONFIGS / f"{name}.yaml", overrides)
    planned = plan(config)
    assert planned["missing"] == []
    assert planned["total"]["gpu_hours"] > 0 and planned["total"]["bytes"] > 0

    engine = Engine(config)
    assert preflight(engine, engine.graph.stages) == []
    for stage in engine.graph.maps():
        for unit in engine.units():
            report = engine.run_unit(stage, unit)
            assert (report.state, report.rows) == ("done", {"ok": 2, "rejected": 0, "failed": 0}), report.message
    for stage in ("train", "evaluate"):
        report = engine.run_reduce(stage)
        assert report.state == "done", report.message
    surveys = engine.survey_all()
    assert all(set(survey.units.values()) == {"complete"} for survey in surveys.values())
    info = json.loads((tmp_path / surveys["train"].result.path / "model" / "bootpig.json").read_text())
    assert info["reference_caption"] == config.encode.reference_caption
    assert info["key_scale"] == config.train.key_scale
    metrics = json.loads((tmp_path / surveys["evaluate"].result.path / "metrics.json").read_text())
    assert {"text_only", "untrained", "bootpig", "real"} <= metrics["methods"].keys()
