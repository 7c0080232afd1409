"""Scores of rendered scenes by the toy models: each sees what it is meant to see, and nothing is rejected."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from pydantic import ValidationError
from safetensors.numpy import load, save_file
from scipy import ndimage

from bootpig.models.toy.world import Scene, render_scene
from bootpig.stages.engine.contract import Sample
from bootpig.stages.engine.engine import Engine
from bootpig.stages.pictures import decode_png, encode_mask, encode_png
from bootpig.stages.registry import STAGES
from bootpig.stages.score.config import NEEDS, ScoreConfig
from bootpig.stages.score.measures import outline, sharpness
from bootpig.stages.score.stage import Score
from bootpig.stages.select.stage import read_selected
from bootpig.stages.view.config import ViewConfig
from bootpig.stages.view.stage import View
from tests.stages.doubles import _Double, doubles  # noqa: F401
from tests.stages.doubles import config as small_config
from tests.stages.samples import cut_out

WIDTH = 96
"""Of the toy CLIP's embeddings."""


def config(**changes: Any) -> ScoreConfig:
    models = {name: f"models/toy/checkpoints/{folder}" for name, folder in MODELS.items()}
    return ScoreConfig(**{**models, "device": "cpu", **changes})


MODELS = {"clip": "clip", "dino": "dino", "detector": "owlvit"}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("head") / "head.safetensors"
    weight = np.random.default_rng(0).normal(size=(1, WIDTH)).astype(np.float32)
    save_file({"linear.weight": weight, "linear.bias": np.array([0.25], np.float32)}, path)
    return path


@pytest.fixture(scope="module")
def stage(head: Path) -> Iterator[Score]:
    stage = Score(config(head=str(head)), seed=0)
    assert stage.check_models() == []
    stage.setup()
    yield stage
    stage.teardown()


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [
        render_scene("score/0", "held_out", kind="robot", position="on the left"),
        render_scene("score/1", "held_out", kind="mug", position="on the right"),
    ]


@pytest.fixture(scope="module")
def made(stage: Score, scenes: list[Scene]) -> list[Sample]:
    return stage.process([cut_out(scene, f"{i:016d}") for i, scene in enumerate(scenes)])


def test_every_sample_gets_all_columns_and_embeddings(made: list[Sample], scenes: list[Scene], head: Path) -> None:
    for sample, scene in zip(made, scenes, strict=True):
        assert sample.status == "ok" and set(sample.columns) == set(Score.columns.names)
        assert sample.columns["object"] == scene.kind
        assert sample.columns["area"] == pytest.approx(scene.mask.mean())
        rows, columns = np.nonzero(scene.mask)
        assert sample.columns["center_x"] == pytest.approx((columns.mean() + 0.5) / 64)
        assert sample.columns["center_y"] == pytest.approx((rows.mean() + 0.5) / 64)
        assert sample.columns["detections"] == 1
        vectors = load(sample.files["safetensors"])
        assert {name: row.dtype for name, row in vectors.items()} == dict.fromkeys(
            ("clip", "clip_subject", "dino"), np.float16
        )
        assert all(np.linalg.norm(row.astype(float)) == pytest.approx(1, abs=2e-3) for row in vectors.values())
        weight = np.asarray(load(head.read_bytes())["linear.weight"][0], float)
        assert sample.columns["head_score"] == pytest.approx(vectors["clip"].astype(float) @ weight + 0.25, abs=0.02)
    assert made[0].columns["center_x"] < 0.5 < made[1].columns["center_x"]


def test_what_is_spoilt_scores_lower(stage: Score, made: list[Sample], scenes: list[Scene]) -> None:
    robot, mug = (cut_out(scene) for scene in scenes)
    blurred = decode_png(robot.files["png"]).filter(ImageFilter.GaussianBlur(1.6))
    wrong, soft = stage.process(
        [
            replace(robot, meta=mug.meta),
            replace(robot, files={**robot.files, "png": encode_png(blurred)}),
        ]
    )
    assert wrong.columns["caption_score"] < made[0].columns["caption_score"] - 0.3
    assert wrong.columns["detections"] == 0
    assert soft.columns["sharpness"] < 0.8 * made[0].columns["sharpness"]


def test_boxes_that_overlap_are_one_thing(stage: Score, scenes: list[Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = torch.tensor([[0.0, 0, 30, 30], [2, 0, 32, 30], [34, 30, 60, 60]])
    found = [{"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0.3])}]
    monkeypatch.setattr(stage._detector, "_detect", lambda images, texts, threshold: found)
    (sample,) = stage.process([cut_out(scenes[0])])
    assert sample.columns["detections"] == 2


def test_a_score_does_not_depend_on_the_batch(stage: Score, made: list[Sample], scenes: list[Scene]) -> None:
    (alone,) = stage.process([cut_out(scenes[1], made[1].id)])
    assert {n: v for n, v in alone.columns.items() if n != "object"} == pytest.approx(
        {n: v for n, v in made[1].columns.items() if n != "object"}, abs=1e-4
    )


def test_without_models_only_what_can_be_measured(scenes: list[Scene]) -> None:
    stage = Score(ScoreConfig(clip=None, dino=None), seed=0)
    assert stage.models() == {}
    stage.setup()
    (sample,) = stage.process([cut_out(scenes[0])])
    assert sample.files == {} and sample.status == "ok"
    made = set(sample.columns) - {"object"}
    assert made == {name for name in Score.columns.names if name not in NEEDS} - {"object"}
    empty = replace(
        cut_out(scenes[0]), files={**cut_out(scenes[0]).files, "mask.json": encode_mask(np.zeros((64, 64), bool))}
    )
    with pytest.raises(ValueError, match="mask is empty"):
        stage.process([empty])


class Viewer(_Double):
    """Replaces view: every third subject lost all of its views, and of every other one the second."""

    name, upstream, config_class = "view", ("segment",), ViewConfig
    columns = View.columns

    def make(self, sample: Sample) -> Sample:
        place = int(sample.id, 16) % 3
        identity: list[float | None] = [[0.9, 0.7], [0.9, 0.1], [None, 0.1]][place]
        dropped = [["", ""], ["", "other_subject"], ["no_detection", "other_subject"]][place]
        return sample.ok(files=sample.files, views=2 - place, scenes=["a", "b"], identity=identity, dropped=dropped)


@pytest.mark.usefixtures("doubles")
def test_the_identity_of_kept_views_is_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "view", Viewer)
    sections: dict[str, Any] = {
        "view": {"model": "none", "dino": "none", "count": 2},
        "augment": {"references_from": "both"},
        "caption__other_scenes": 2,
        "score": {"clip": None, "dino": None},
        "select": {"min_view_identity": 0.8},
    }
    engine = Engine(small_config(tmp_path, **sections))
    for stage in ("caption", "synthesize", "segment", "view", "score"):
        for unit in engine.units():
            assert engine.run_unit(stage, unit).state == "done"
    markers = engine.survey("score").markers
    found = {row["id"]: row.get("view_identity") for marker in markers.values() for row in marker.rows}
    assert found == {id: pytest.approx([0.7, 0.9, None][int(id, 16) % 3]) for id in found}
    assert len(set(found.values())) == 3
    assert engine.run_reduce("select").state == "done"
    result = engine.survey("select").result
    assert result is not None
    assert read_selected(tmp_path / result.path) == [id for id in found if int(id, 16) % 3]
    with pytest.raises(
        ValidationError, match=r"select\.min_view_identity: 0.8 → there are no views; add the stage view"
    ):
        small_config(tmp_path, score={}, select={"min_view_identity": 0.8})


def test_sharpness_is_between_0_and_1_and_ignores_contrast() -> None:
    rng = np.random.default_rng(0)
    noise = rng.random((64, 64)) * 255
    assert 0.8 < sharpness(noise) <= 1
    assert sharpness(noise / 4 + 30) == pytest.approx(sharpness(noise))
    moved = ndimage.uniform_filter1d(noise, 9, axis=1)
    assert sharpness(moved) == pytest.approx(sharpness(moved.T)) < 0.85 * sharpness(noise), "in one direction only"
    assert sharpness(np.full((64, 64), 7.0)) == sharpness(np.zeros((1, 1))) == 0
    assert sharpness(np.add.outer(np.arange(64.0), np.arange(64.0))) < 0.1


def test_a_mask_that_does_not_fit_has_no_edges_on_its_outline(scenes: list[Scene]) -> None:
    for scene in scenes:
        picture = Image.fromarray(scene.image)
        fits = outline(picture, scene.mask)
        assert fits > 1.35
        assert outline(picture, np.roll(scene.mask, 12, axis=1)) < 0.75 * fits
        large = picture.resize((256, 256), Image.Resampling.BICUBIC)
        assert outline(large, scene.mask.repeat(4, 0).repeat(4, 1)) == pytest.approx(fits, rel=0.2)
    plain = Image.new("RGB", (64, 64), "red")
    assert outline(plain, scenes[0].mask) == 0
    assert outline(picture, np.ones((64, 64), bool)) == 0, "no outline at all"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": (1, WIDTH + 1)}, f"reads embeddings of width {WIDTH + 1}, but those of score.clip .* have {WIDTH}"),
        ({"0.weight": (8, WIDTH), "1.weight": (1, 8)}, r"holds \(8, 96\), \(1, 8\), not one linear layer"),
        ({"weight": (2, WIDTH)}, "not one linear layer"),
        ({"bias": (1,)}, "not one linear layer"),
    ],
)
def test_a_head_that_does_not_fit_is_one_line(
    tensors: dict[str, tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "head.pth"
    torch.save({name: torch.zeros(shape) for name, shape in tensors.items()}, file)
    problems = Score(config(head=str(file), dino=None, detector=None), 0).check_models()
    assert len(problems) == 1 and "\n" not in problems[0]
    assert problems[0].startswith("score.head: ")
    assert re.search(message, problems[0])


def test_a_damaged_or_missing_head_is_named(tmp_path: Path) -> None:
    file = tmp_path / "head.safetensors"
    file.write_bytes(b"no tensors")
    stage = Score(config(head=str(file), dino=None, detector=None), 0)
    assert [str(file) in problem and "score.head" in problem for problem in stage.check_models()] == [True]
    file.unlink()
    with pytest.raises(ValueError, match=r"score\.head: .* does not exist"):
        stage.models()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"safety_revision": "main"}, "safety_revision: no effect without its model"),
        ({"query": "a mug"}, r"no \{object\}; insert it"),
        ({"clip": None, "head": "x"}, "head: reads CLIP's embeddings, but clip is null"),
        ({"detector": None, "detection_threshold": 0.5}, "detection_threshold: no effect without its model"),
        ({"head_sha256": "0" * 64}, "head_sha256: no effect"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_models_are_identified_and_speed_is_not_hashed() -> None:
    assert set(Score(config(), 0).models()) == set(MODELS)
    assert config().hashed() == config(batch_size=1, device="auto").hashed()
    assert config().hashed() != config(detection_threshold=0.3).hashed()
