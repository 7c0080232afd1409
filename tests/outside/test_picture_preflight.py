"""Pictures that a later stage needs are decoded before the first one works."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bootpig.flows.loading import load_config
from bootpig.flows.runs.plan import plan
from bootpig.models.toy.subject_folder import FOLDER
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.preflight import preflight

TOY = str(Path(__file__).parents[2] / "configs" / "toy.yaml")


@pytest.fixture
def config(tmp_path: Path) -> PipelineConfig:
    """A run whose subjects are the first two of the committed ones."""
    for subject in sorted(path for path in FOLDER.iterdir() if path.is_dir())[:2]:
        shutil.copytree(subject, tmp_path / "subjects" / subject.name)
    prompts = 'evaluate.prompts=["a photo of a {object}"]'
    return load_config(TOY, [f"root={tmp_path / 'store'}", f"evaluate.subjects={tmp_path / 'subjects'}", prompts])


def problems(config: PipelineConfig) -> list[str]:
    engine = Engine(config)
    found = preflight(engine, engine.graph.stages)
    assert plan(config)["missing"] == found
    return found


def test_all_that_cannot_be_used_is_found_at_once(config: PipelineConfig, tmp_path: Path) -> None:
    assert problems(config) == []
    first, second = sorted((tmp_path / "subjects").iterdir())
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(first / "09.jpg")
    data = (first / "09.jpg").read_bytes()
    (first / "09.jpg").write_bytes(data[: len(data) // 2])
    with Image.open(first / "09.jpg") as header:
        header.verify()  # what is not enough: the header is whole
    Image.new("RGBA", (64, 64)).save(second / "00.png")
    Image.new("RGB", (3, 3)).save(second / "01.png")  # small, but no reference
    cut, empty = problems(config)
    assert cut.startswith(f"evaluate.subjects: {str(first / '09.jpg')!r} → is not a readable picture")
    assert empty.startswith(f"evaluate.subjects: {str(second / '00.png')!r} → is transparent everywhere")


def test_a_picture_that_is_repaired_is_read_again(config: PipelineConfig, tmp_path: Path) -> None:
    picture = next((tmp_path / "subjects").glob("*/02.png"))
    whole = picture.read_bytes()
    picture.write_bytes(whole[:-40])
    assert len(problems(config)) == 1
    picture.write_bytes(whole)
    assert problems(config) == []


def test_many_damaged_pictures_are_counted(config: PipelineConfig, tmp_path: Path) -> None:
    subject = next((tmp_path / "subjects").iterdir())
    for number in range(30):
        (subject / f"{number + 20}.png").write_bytes(b"\x89PNG")
    found = problems(config)
    assert len(found) == 21
    assert found[-1] == "evaluate.subjects: 10 more pictures cannot be used"
