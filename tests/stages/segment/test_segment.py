"""Masks of rendered scenes by the toy detector and SAM; every filter has its reason, cleaning its rules."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage

from bootpig.models.toy.world import Scene
from bootpig.stages.engine.contract import Sample
from bootpig.stages.pictures import decode_mask, decode_png
from bootpig.stages.segment.stage import Segment, SegmentConfig, clean_mask, euler_number, touches_border
from tests.stages.samples import noise, painted, scenes

LENIENT = {"min_score": 0.1, "min_sam_iou": 0.3, "border": 0.0, "min_area": 0.0, "max_area": 1.0}
"""Lets whatever the small models find pass, so that each test tightens the one filter it is about."""


def config(**changes) -> SegmentConfig:
    values = {
        "detector": "models/toy/checkpoints/owlvit",
        "sam": "models/toy/checkpoints/sam/sam_vit_toy.safetensors",
        "sam_type": "vit_toy",
        "device": "cpu",
        **LENIENT,
    }
    return SegmentConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def models() -> Segment:
    stage = Segment(config(), seed=0)
    stage.setup()
    return stage


@pytest.fixture(scope="module")
def some() -> list[Scene]:
    return scenes(8)


def segment(models: Segment, samples: list[Sample], **changes) -> list[Sample]:
    """With the models of `models` and another config."""
    stage = Segment(config(**changes), seed=0)
    stage._detector, stage._segmenter = models._detector, models._segmenter
    return stage.process(samples)


def samples(some: list[Scene]) -> list[Sample]:
    return [painted(scene, f"{i:016d}") for i, scene in enumerate(some)]


def reasons(made: list[Sample]) -> set[tuple[str, str]]:
    return {(sample.status, sample.reason) for sample in made}


def test_the_mask_lies_beside_the_unchanged_picture(models: Segment, some: list[Scene]):
    given = samples(some)
    made = segment(models, given)
    kept = [(sample, scene) for sample, scene in zip(made, some, strict=True) if sample.status == "ok"]
    assert len(kept) >= 6
    overlaps = []
    for sample, scene in kept:
        assert np.array_equal(np.asarray(decode_png(sample.files["png"])), scene.image)
        mask = decode_mask(sample.files["mask.json"], 64, 64)
        assert mask.shape == (64, 64) and mask.dtype == bool
        overlaps.append((mask & scene.mask).sum() / (mask | scene.mask).sum())
        assert sample.columns["area"] == pytest.approx(mask.mean())
        assert len(sample.columns["box"]) == 4
        assert 0 < sample.columns["score"] < 1
    assert np.mean(overlaps) > 0.85
    assert [sample.id for sample in made] == [sample.id for sample in given]
    assert made[0].meta == given[0].meta


@pytest.mark.parametrize(
    ("changes", "reason", "columns"),
    [
        ({"detection_threshold": 0.999, "min_score": 1.0}, "no_detection", set()),
        ({"min_score": 0.999}, "low_score", {"score", "box"}),
        ({"min_sam_iou": 1.0}, "low_sam_quality", {"score", "box", "sam_iou", "area"}),
        ({"border": 0.45}, "touches_border", {"score", "box", "sam_iou", "area"}),
        ({"min_area": 0.9}, "too_small", {"score", "box", "sam_iou", "area"}),
        ({"max_area": 0.01}, "too_large", {"score", "box", "sam_iou", "area"}),
    ],
)
def test_each_filter_has_its_reason(models: Segment, some: list[Scene], changes: dict, reason: str, columns: set[str]):
    made = segment(models, samples(some), **changes)
    assert reasons(made) == {("rejected", reason)}
    assert set(made[0].columns) == columns
    assert reason in Segment.reasons
    assert columns <= set(Segment.columns.names)


def test_what_is_not_in_the_picture_is_not_detected(models: Segment, some: list[Scene]):
    strangers = [replace(sample, meta={"caption": "", "object": "guitar"}) for sample in samples(some)]
    assert reasons(segment(models, strangers)) == {("rejected", "no_detection")}
    mixed = segment(models, [noise(id="f" * 16, phrase="guitar"), *samples(some)[:1]])
    assert [sample.reason for sample in mixed] == ["no_detection", ""]


def test_empty_mask_is_rejected(models: Segment, some: list[Scene], monkeypatch):
    monkeypatch.setattr(models._segmenter._sam, "mask_threshold", 1e9)
    made = segment(models, samples(some))
    assert reasons(made) == {("rejected", "no_mask")}


def test_the_query_is_what_the_detector_is_asked(models: Segment, some: list[Scene]):
    settings = {"detection_threshold": 0.0, "min_score": 0.0}
    asked = segment(models, samples(some), query="a photo of a guitar, no {object}", **settings)
    plain = segment(models, samples(some), query="a photo of a {object}", **settings)
    assert sum(s.columns["score"] for s in plain) > sum(s.columns["score"] for s in asked)


def test_bytes_repeat_and_a_batch_changes_little(models: Segment, some: list[Scene]):
    given = samples(some)
    together = segment(models, given)
    assert [s.files for s in segment(models, given)] == [s.files for s in together]
    for a, b in zip(together, [segment(models, [sample])[0] for sample in given], strict=True):
        assert a.columns["box"] == pytest.approx(b.columns["box"], abs=0.05)


def test_cleaning_drops_islands_and_fills_holes():
    mask = np.zeros((64, 64), bool)
    mask[10:40, 10:40] = True  # 900 pixels
    clean = mask.copy()
    mask[50:52, 50:54] = True  # an island of 8
    mask[20:22, 20:24] = False  # a hole of 8
    assert np.array_equal(clean_mask(mask, max_island=0.02, max_hole=0.02), clean)
    assert np.array_equal(clean_mask(mask, max_island=0.0, max_hole=0.0), mask)
    assert np.array_equal(clean_mask(clean | np.pad(mask[50:], ((50, 0), (0, 0))), 0.02, 0.02), clean), "no hole at all"
    handle = clean.copy()
    handle[15:30, 15:30] = False
    assert np.array_equal(clean_mask(handle, 0.02, 0.02), handle), "a large hole is the subject's own"


def test_cleaning_leaves_notches_and_the_background_alone():
    mask = np.zeros((32, 32), bool)
    mask[0:31, 0:31] = True
    mask[0, 5] = False  # a notch in the frame's edge is no hole
    assert np.array_equal(clean_mask(mask, 0.05, 0.05), mask)
    assert not clean_mask(np.zeros((8, 8), bool), 0.05, 0.05).any()
    assert clean_mask(np.ones((8, 8), bool), 0.05, 0.05).all()


def test_pieces_hang_together_by_corners_and_holes_by_edges_only():
    mask = np.zeros((40, 40), bool)
    mask[5:25, 5:25] = True
    mask[25, 25] = True  # joined at a corner, so no island
    assert np.array_equal(clean_mask(mask, 0.05, 0.05), mask)
    ring = mask.copy()
    ring[7, 7] = ring[8, 8] = False  # two holes of 1, not one of 2
    assert np.array_equal(clean_mask(ring, 0.05, max_hole=1.5 / ring.sum()), mask)


def test_holes_are_counted_as_labelling_counts_them():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        mask = np.zeros((18, 14), bool)
        mask[1:-1, 1:-1] = ndimage.gaussian_filter(rng.random((16, 12)), rng.uniform(0.3, 1.5)) > rng.uniform(0.4, 0.55)
        pieces = ndimage.label(mask, np.ones((3, 3)))[1]
        holes = ndimage.label(~mask)[1] - 1
        assert euler_number(mask) == pieces - holes
        seen.add((min(pieces, 2), min(holes, 2)))
    assert {(1, 0), (2, 0), (1, 1), (1, 2), (2, 2)} <= seen


def test_border_is_a_share_of_each_side():
    mask = np.zeros((512, 256), bool)
    mask[25:487, 13:243] = True
    assert not touches_border(mask, 25 / 512)
    for row, column in ((24, 100), (487, 100), (100, 12), (100, 243)):
        touching = mask.copy()
        touching[row, column] = True
        assert touches_border(touching, 25 / 512)
    assert not touches_border(np.ones((8, 8), bool), 0.0)


def test_models_are_identified_and_speed_is_not_hashed():
    assert set(Segment(config(), 0).models()) == {"detector", "sam"}
    assert config().hashed() == config(batch_size=1, device="auto").hashed()
    assert config().hashed() != config(min_score=0.15).hashed()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": "a mug"}, r"no \{object\}; insert it"),
        ({"min_area": 0.5, "max_area": 0.4}, "min_area 0.5 is not below max_area 0.4"),
        ({"detection_threshold": 0.5}, "detection_threshold 0.5 is above min_score 0.1"),
        ({"sam_type": "vit_x"}, "'vit_b', 'vit_l', 'vit_h' or 'vit_toy'"),
        ({"boarder": 0.1}, "Extra inputs"),
    ],
)
def test_bad_config_names_the_field(changes: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        config(**changes)
