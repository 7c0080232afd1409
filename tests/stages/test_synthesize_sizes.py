"""Pictures of several sizes: which sample has which, what they look like, and which lists are refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from bootpig.stages.engine.contract import Sample
from bootpig.stages.engine.slices import in_slices
from bootpig.stages.pictures import picture_size
from bootpig.stages.synthesize.stage import Synthesize
from tests.stages.samples import captioned
from tests.stages.test_synthesize import config, paint, pixels
from tests.stages.train.training_data import save_base

SIZES = ((16, 16), (16, 24), (24, 16))
ONE = {"height": 512, "width": 512}
"""The defaults, which say nothing beside `sizes`."""
SAMPLES = [captioned(f"A photo of a mug, on table {number}", f"{number:016d}") for number in range(12)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def test_the_seed_and_the_id_decide_the_size(base: Path) -> None:
    stage, other = (Synthesize(config(base, **ONE, sizes=SIZES), seed) for seed in (0, 1))
    many = [captioned(id=f"{number:016d}") for number in range(600)]
    drawn = [stage.batch_key(sample) for sample in many]
    assert drawn == [stage.batch_key(sample) for sample in reversed(many)][::-1]
    assert drawn != [other.batch_key(sample) for sample in many]
    assert all(150 < count < 250 for count in Counter(drawn).values())


def test_pictures_of_a_size_are_painted_together_and_depend_on_their_sample_alone(base: Path) -> None:
    settings = config(base, **ONE, sizes=SIZES, batch_size=3)
    stage = Synthesize(settings, 0)
    made: dict[str, Sample] = {}
    for places in in_slices(stage, SAMPLES):
        batch = [SAMPLES[place] for place in places]
        assert len({stage.batch_key(sample) for sample in batch}) == 1
        made |= {sample.id: sample for sample in paint(settings, batch)}
    assert {picture_size(sample.files["png"]) for sample in made.values()} == set(SIZES)
    for sample in SAMPLES:
        size = stage.batch_key(sample)
        assert picture_size(made[sample.id].files["png"]) == size == tuple(made[sample.id].meta["size"])
    height, width = stage.batch_key(SAMPLES[0])
    (alone,) = paint(config(base, height=height, width=width), SAMPLES[:1])
    assert np.abs(pixels(alone) - pixels(made[SAMPLES[0].id])).max() <= 2
    assert "size" not in alone.meta
    with pytest.raises(ValueError, match="too many values"):
        paint(settings, SAMPLES)


def test_the_shorter_side_is_resized(base: Path) -> None:
    settings = config(base, **ONE, sizes=[(32, 32), (32, 48)], resize=16)
    assert settings.stored == ((16, 16), (16, 24))
    stage = Synthesize(settings, 0)
    batch = [sample for sample in SAMPLES if stage.batch_key(sample) == (32, 48)]
    made = paint(settings, batch)
    assert made and all(sample.meta["size"] == [16, 24] == list(pixels(sample).shape[:2]) for sample in made)


def test_without_a_list_the_fingerprint_is_as_before(base: Path) -> None:
    assert "sizes" not in config(base).hashed()
    listed = config(base, **ONE, sizes=SIZES).hashed()
    assert tuple(listed["sizes"]) == SIZES
    assert config(base, **ONE, sizes=SIZES[::-1]).hashed() != listed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": SIZES, "width": 32}, r"height 16 and width 32: none of sizes; remove them, or add \[16, 32\] to"),
        ({**ONE, "sizes": [(16, 16), (16, 16)]}, r"sizes: \[16, 16\] is listed more than once"),
        ({**ONE, "sizes": [(16, 20)]}, "multiple of 8"),
        ({**ONE, "sizes": [(16,)]}, "sizes"),
        ({**ONE, "sizes": [(16, 5000)]}, "less than or equal to 4096"),
        ({**ONE, "sizes": SIZES, "resize": 24}, "resize 24 is larger than the picture, 16x16"),
    ],
)
def test_lists_that_are_refused(base: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(base, **changes)
