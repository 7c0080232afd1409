"""Every class of detectors that segment accepts, with random weights: phrases of any kind, batches of any mix."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES

from bootpig.models.pretrained.phrases import FAMILIES, detector_problem
from bootpig.models.pretrained.segmenters import ZeroShotDetector
from bootpig.models.pretrained.source import PROJECT, ModelError
from bootpig.models.pretrained.sources import resolve
from bootpig.stages.engine.contract import Sample
from bootpig.stages.pictures import encode_png
from bootpig.stages.segment.stage import Segment, SegmentConfig
from tests.models.detectors import FAMILIES as SAVE
from tests.models.tiny import save_clip, save_vit

CHECKPOINTS = PROJECT / "models" / "toy" / "checkpoints"
SAM = str(CHECKPOINTS / "sam" / "sam_vit_toy.safetensors")

PHRASES = [
    "mug",
    "St. Bernard",
    "No. 5 perfume bottle",
    'old teapot, with a lid\nand a "spout".',
    "what? a mug!",
    "a mug...",
    "3.5 mm jack",
    "猫",
    "قطة صغيرة",
    "🐱🐱",
    "old teapot " * 300,
    "猫" * 700,
    "\ud800 mug",
    "[SEP] a mug [PAD] <|endoftext|>",
    "A MUG",
    "{object}",
]


def load(folder: Path) -> ZeroShotDetector:
    return ZeroShotDetector(resolve("segment.detector", str(folder)), device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module", params=SAVE)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAVE[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def detector(folder: Path) -> ZeroShotDetector:
    return load(folder)


def noise(count: int, *sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    rows = (sizes[row % len(sizes)] for row in range(count))
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)) for width, height in rows]


def assert_equal(first, second) -> None:
    assert [row is None for row in first] == [row is None for row in second]
    for a, b in zip(first, second, strict=True):
        if a is not None and b is not None:
            np.testing.assert_allclose((*a.box, a.score), (*b.box, b.score), atol=1e-3)


def test_all_classes_of_transformers_are_known_and_tested():
    assert set(FAMILIES) == set(MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES) == set(SAVE)


def test_a_box_lies_within_the_picture(detector: ZeroShotDetector):
    images = noise(6, (96, 64))
    found = [row for row in detector.detect(images, ["mug"] * 6, threshold=0.0) if row is not None]
    assert found
    for row in found:
        x0, y0, x1, y1 = row.box
        assert 0 <= x0 < x1 <= 96
        assert 0 <= y0 < y1 <= 64
        assert 0 < row.score <= 1
    assert detector.detect(images, ["mug"] * 6, threshold=1.0) == [None] * 6


def test_any_phrase_gives_a_result_that_its_batch_mates_do_not_change(detector: ZeroShotDetector):
    images = noise(len(PHRASES), (96, 64))
    together = detector.detect(images, PHRASES, threshold=0.0)
    alone = [detector.detect([i], [p], threshold=0.0)[0] for i, p in zip(images, PHRASES, strict=True)]
    assert_equal(together, alone)


def test_pictures_of_other_sizes_in_the_batch_change_nothing(detector: ZeroShotDetector):
    images = noise(6, (96, 64), (64, 96), (80, 80))
    phrases = ["mug", "old teapot", "a mug"] * 2
    together = detector.detect(images, phrases, threshold=0.0)
    alone = [detector.detect([i], [p], threshold=0.0)[0] for i, p in zip(images, phrases, strict=True)]
    assert_equal(together, alone)


def test_a_phrase_without_a_word_finds_nothing(detector: ZeroShotDetector):
    images = noise(3, (64, 64))
    assert detector.detect(images, ["", " ", "\n"], threshold=0.0) == [None] * 3
    assert detector.detect([], [], threshold=0.0) == []


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
def test_grounding_dino_gets_one_phrase_that_ends_with_its_only_dot(family, tmp_path: Path):
    found = load(SAVE[family](tmp_path))
    put = found._phrases.text
    assert put("St. Bernard") == "St Bernard"
    assert put("  No. 5 perfume\nbottle. ") == "No 5 perfume bottle"
    assert put("...") == put("? .") == ""
    (image,) = noise(1, (96, 64))
    assert found.detect([image], ["..."], threshold=0.0) == [None]
    # the words alone decide, as the model's own processor would put them
    for phrase, same in (("St. Bernard", "st bernard"), ("mug?", "mug"), ("A Mug.", "a mug")):
        assert found.detect([image], [phrase], 0.0) == found.detect([image], [same], 0.0)
    # a long phrase still ends with the dot, without which the model does not read it as one phrase
    cut = put("old teapot " * 300)
    ids = AutoTokenizer.from_pretrained(tmp_path)(f"{cut.lower()}.").input_ids
    assert len(ids) == 32  # max_text_len
    assert ids[-2:] == [1012, 102]
    assert [i for i in ids if i in (1012, 1029)] == [1012]


def test_a_phrase_that_is_cut_off_is_warned_of_once(detector: ZeroShotDetector, caplog: pytest.LogCaptureFixture):
    detector._phrases._warned = False
    with caplog.at_level(logging.WARNING):
        detector.detect(noise(2, (64, 64)), ["old teapot " * 300, "mug " * 300], threshold=0.0)
    assert [record.message.split(";")[1] for record in caplog.records] == [" shorten such phrases"]


def test_the_toy_owlvit_is_given_the_same_text_as_ever():
    found = load(CHECKPOINTS / "owlvit")
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "owlvit")
    assert found._phrases.length == tokenizer.model_max_length
    for phrase in ("mug", "A St. Bernard, 5 years old?", "a  mug.\n"):
        assert found._phrases.text(phrase) == phrase


def test_a_model_that_cannot_be_asked_is_named_before_any_work(tmp_path: Path):
    for save, kind in ((save_clip, "clip"), (save_vit, "vit")):
        (line,) = Segment(
            SegmentConfig(detector=str(save(tmp_path / kind)), sam=SAM, sam_type="vit_toy"), 0
        ).check_models()
        assert line.startswith(f"segment.detector: '{tmp_path / kind}' is a '{kind}' model, which does not look for")
        with pytest.raises(ModelError, match="OWLv2"):
            load(tmp_path / kind)


@pytest.mark.parametrize("family", SAVE)
def test_the_stage_judges_a_phrase_with_dots_in_any_query(family, tmp_path: Path):
    settings = {"detector": str(SAVE[family](tmp_path)), "sam": SAM, "sam_type": "vit_toy", "device": "cpu"}
    stage = Segment(SegmentConfig(**settings, query='A photo of "{object}".', detection_threshold=0), 0)
    stage.setup()
    pictures = [encode_png(image) for image in noise(2, (64, 64))]
    phrases = ("St. Bernard", "No. 5 perfume bottle")
    rows = [Sample(p, 0, {"object": p}, {"png": png}) for p, png in zip(phrases, pictures, strict=True)]
    assert {row.status for row in stage.process(rows)} <= {"ok", "rejected"}


def test_a_missing_package_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    folder = SAVE["omdet-turbo"](tmp_path)
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "use_timm_backbone": True, "backbone": "swin_tiny_patch4_window7_224"}))
    source = resolve("segment.detector", str(folder))
    assert detector_problem(source) == f"segment.detector: {str(folder)!r} needs the package timm; pip install timm"


def test_the_models_that_segment_accepts_have_no_problem(folder: Path):
    assert detector_problem(resolve("segment.detector", str(folder))) is None
    assert load_file(folder / "model.safetensors")
