"""References of a benchmark stand in scenes: they are cut out once, and a later evaluation finds the masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bootpig.models.toy.world import Scene
from bootpig.stages.engine.checkpoints import StoredCheckpoints
from bootpig.stages.engine.contract import ReduceInput
from bootpig.stages.evaluate.benchmarks.cut_outs import chosen_references, cut_out_references, reference_rows
from bootpig.stages.evaluate.drawing import prepared_references
from bootpig.stages.evaluate.stage import Evaluate
from bootpig.stages.evaluate.subjects import Subject, benchmark_subjects
from bootpig.stages.segment.stage import Segment, SegmentConfig
from bootpig.storage.root import Root
from tests.stages.evaluate.world import evaluate_config, make_world
from tests.stages.samples import scenes

CONFIG = SegmentConfig(
    detector="models/toy/checkpoints/owlvit",
    sam="models/toy/checkpoints/sam/sam_vit_toy.safetensors",
    sam_type="vit_toy",
    min_score=0.1,
    min_sam_iou=0.3,
    device="cpu",
)


def stage(**changes: float) -> Segment:
    return Segment(CONFIG.model_copy(update={"border": 0.0, "min_area": 0.0, "max_area": 1.0, **changes}), seed=0)


@pytest.fixture(scope="module")
def some() -> list[Scene]:
    return scenes(4)


def benchmark(folder: Path, some: list[Scene]) -> Path:
    """One subject per scene: the scene, noise, and the scene cut out."""
    folder.mkdir()
    for number, scene in enumerate(some):
        (folder / f"s{number}").mkdir()
        Image.fromarray(scene.image).save(folder / f"s{number}" / "00.png")
        noise = np.random.default_rng(number).integers(0, 255, scene.image.shape, np.uint8)
        Image.fromarray(noise).save(folder / f"s{number}" / "01.png")
        Image.fromarray(np.dstack([scene.image, scene.mask.astype(np.uint8) * 255])).save(
            folder / f"s{number}" / "02.png"
        )
    table = [f"s{number},{scene.kind}" for number, scene in enumerate(some)]
    text = ["subject_name,class", *table, "Object Prompts", "'a {0} {1} on a shelf',", "'a red {0} {1}'"]
    text += ["Live Subject Prompts", *text[-2:]]
    (folder / "prompts_and_classes.txt").write_text("\n".join(text))
    return folder


@pytest.fixture
def subjects(tmp_path: Path, some: list[Scene]) -> list[Subject]:
    return benchmark_subjects(benchmark(tmp_path / "dataset", some), "dreambooth", "all")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pictures that the segment models get."""
    found: list[int] = []
    real = Segment.process

    def counted(self: Segment, samples: list) -> list:
        found.append(len(samples))
        return real(self, samples)

    monkeypatch.setattr(Segment, "process", counted)
    return found


def test_masks_are_kept_by_content_and_models(
    subjects: list[Subject], loads: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = StoredCheckpoints(Root(str(tmp_path / "store")), "evaluate/0123456789abcdef", tmp_path).kept("cut-outs")
    first = cut_out_references(subjects, stage(), kept)
    assert len(loads) == 8, "the cut-out pictures are cut out already"
    assert all(first[each.references[0]].status == "ok" for each in subjects)
    again = StoredCheckpoints(Root(str(tmp_path / "store")), "evaluate/fedcba9876543210", tmp_path).kept("cut-outs")
    assert cut_out_references(subjects, stage(), again) == first and len(loads) == 8
    assert len(cut_out_references(subjects, stage(**{"min_score": 0.05}), again)) == len(first)
    assert len(loads) == 16, "other settings, other masks"
    cut_out_references(subjects[:1], stage(), None)
    assert len(loads) == 18

    strict = cut_out_references(subjects, stage(**{"min_sam_iou": 0.999999}), again)
    rows = reference_rows(subjects, strict)
    assert {row["reason"] for row in rows if row["status"] == "rejected"} <= {
        "low_sam_quality",
        "no_detection",
        "low_score",
    }
    assert "left out" in caplog.text and not all(row["used"] for row in rows)
    assert [path.name for path in chosen_references(subjects[0], strict)] == ["02.png"]


def test_cut_out_references_stand_on_white(subjects: list[Subject], some: list[Scene]) -> None:
    (each,) = subjects[:1]
    made = cut_out_references([each], stage(), None)
    prepared = dict(prepared_references([each], 64, made))["s0"]
    assert len(prepared) == len(chosen_references(each, made))
    assert np.asarray(prepared[0])[0].min() == 255
    alpha = np.asarray(made[each.references[0]].apply(Image.open(each.references[0])).getchannel("A")) > 0
    assert (alpha & some[0].mask).sum() / (alpha | some[0].mask).sum() > 0.7


def test_a_whole_evaluation_of_a_benchmark(tmp_path: Path, some: list[Scene]) -> None:
    world = make_world(tmp_path / "world", 1)
    folder = benchmark(tmp_path / "dataset", some[:2])
    config = evaluate_config(world, subjects=str(folder), benchmark="dreambooth", segment=CONFIG, references="all")
    evaluation = Evaluate(config, seed=0)
    assert evaluation.check_models() == []
    work = tmp_path / "work"
    work.mkdir()
    evaluation.run(ReduceInput((), lambda unit: b"", world / "result"), work, None, lambda *_: None)
    rows = json.loads((work / "references.json").read_text())
    assert {(row["subject"], row["file"]) for row in rows} == {
        (s, f) for s in ("s0", "s1") for f in ("00.png", "01.png")
    }
    metrics = json.loads((work / "metrics.json").read_text())
    assert (metrics["subjects"], metrics["images"]) == (2, 4)
