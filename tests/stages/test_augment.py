"""References show the whole subject on white, are drawn by (sample, k), and contain no background."""

import hashlib
import random

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from bootpig.stages.augment import Augment, AugmentConfig, draw_reference, prepare_reference, reference_side
from bootpig.stages.engine.contract import Sample
from bootpig.stages.pictures import decode_png
from tests.stages.samples import cut_out, cut_out_files, rgba, scenes

ALL_ON = {"jitter_probability": 1.0, "erase_probability": 1.0}


def pixels(sample: Sample, name: str) -> np.ndarray:
    return np.asarray(decode_png(sample.files[name]))


def subject_box(picture: Image.Image | np.ndarray) -> tuple[int, int, int, int]:
    """The box (xyxy) of all pixels that are not white."""
    inked = (np.asarray(picture) < 250).any(-1)
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def solid(width: int, height: int, colour: tuple[int, int, int] = (200, 30, 30)) -> Image.Image:
    """A box of one colour in the middle of a green 64×64 picture."""
    image = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    corner = ((64 - width) // 2, (64 - height) // 2)
    image.paste((*colour, 255), (*corner, corner[0] + width, corner[1] + height))
    return image


@pytest.mark.parametrize(
    ("config", "digest"),
    [
        ({}, "8a37c856a9eee93c"),
        (ALL_ON, "a5a060eaaf0e6e6a"),
        ({"enabled": False}, "c678dc025769c6aa"),
        ({"size": 48}, "012740e1f0ed2632"),
    ],
)
def test_golden_pixels(config: dict, digest: str):
    """Guards `Augment.version`: the same sample and seed must always give the same pixels."""
    y, x = np.mgrid[0:64, 0:64]
    inside = (x - 30) ** 2 + 2 * (y - 34) ** 2 < 400
    picture = np.dstack([4 * x, 4 * y, 2 * (x + y), 255 * inside]).astype(np.uint8)
    sample = Sample("0" * 16, 0, {}, cut_out_files(Image.fromarray(picture)))
    (made,) = Augment(AugmentConfig(**config), seed=3).process([sample])
    drawn = hashlib.sha256()
    for name in sorted(made.files):
        drawn.update(name.encode() + pixels(made, name).tobytes())
    assert drawn.hexdigest()[:16] == digest


def test_files_sizes_and_meta():
    sample = cut_out(scenes(1)[0])
    (made,) = Augment(AugmentConfig(references=3), seed=0).process([sample])
    assert sorted(made.files) == ["reference0.png", "reference1.png", "reference2.png", "target.png"]
    assert {pixels(made, name).shape for name in made.files} == {(64, 64, 3)}
    assert np.array_equal(pixels(made, "target.png"), scenes(1)[0].image)
    assert made.meta == sample.meta


def test_each_reference_is_drawn_by_sample_and_number_only():
    first, second = (cut_out(scene, f"{i:016d}") for i, scene in enumerate(scenes(2)))
    together = Augment(AugmentConfig(), seed=0).process([first, second])
    alone = Augment(AugmentConfig(references=6), seed=0).process([second])
    for k in range(4):
        assert together[1].files[f"reference{k}.png"] == alone[0].files[f"reference{k}.png"]
    assert len({together[0].files[f"reference{k}.png"] for k in range(4)}) == 4
    (other,) = Augment(AugmentConfig(), seed=1).process([second])
    assert other.files["reference0.png"] != alone[0].files["reference0.png"]


def test_subject_stays_whole_within_its_scale_and_moves_everywhere():
    config = AugmentConfig(scale=(0.4, 0.6))
    boxes = [subject_box(draw_reference(solid(30, 20), 64, config, random.Random(seed))) for seed in range(200)]
    widths = [x1 - x0 for x0, _, x1, _ in boxes]
    assert round(0.4 * 64) <= min(widths) <= 28
    assert 36 <= max(widths) <= round(0.6 * 64)
    assert all(abs((x1 - x0) / (y1 - y0) - 1.5) < 0.1 for x0, y0, x1, y1 in boxes)
    assert min(box[0] for box in boxes) == 0
    assert max(box[2] for box in boxes) == 64
    assert min(box[1] for box in boxes) == 0
    assert max(box[3] for box in boxes) == 64


def test_without_move_and_flip_the_subject_stays_in_the_middle():
    config = AugmentConfig(move=False, flip=0.0, scale=(0.5, 0.5))
    left_heavy = solid(40, 40)
    left_heavy.paste((0, 0, 200, 255), (12, 12, 22, 52))
    for seed in range(8):
        reference = draw_reference(left_heavy, 64, config, random.Random(seed))
        assert subject_box(reference) == (16, 16, 48, 48)
        assert reference.getpixel((18, 32)) == (0, 0, 200)
    flipped = draw_reference(left_heavy, 64, config.model_copy(update={"flip": 1.0}), random.Random(0))
    assert flipped.getpixel((45, 32)) == (0, 0, 200)


def test_background_does_not_bleed_into_the_reference():
    for seed in range(20):
        reference = np.asarray(draw_reference(solid(21, 33), 96, AugmentConfig(), random.Random(seed))).astype(int)
        inside = reference[(reference < 250).any(-1)]
        assert (inside[:, 1] <= inside[:, 0] + 2).all(), "green from behind the subject"


def test_jitter_changes_the_subject_and_leaves_white_white():
    plain, jittered = AugmentConfig(), AugmentConfig(jitter_probability=1.0, move=False, flip=0.0, scale=(0.5, 0.5))
    base = np.asarray(prepare_reference(solid(40, 40), 64, 0.5))
    seen = set()
    for seed in range(20):
        reference = np.asarray(draw_reference(solid(40, 40), 64, jittered, random.Random(seed)))
        assert subject_box(reference) == subject_box(base)
        assert (reference[:16] == 255).all()
        seen.add(tuple(reference[32, 32]))
    assert len(seen) > 15
    assert plain.jitter_probability == 0
    assert plain.erase_probability == 0


def test_erasing_covers_its_share_of_the_subject():
    config = AugmentConfig(erase_probability=1.0, move=False, flip=0.0, scale=(0.75, 0.75))
    shares = []
    for seed in range(100):
        reference = np.asarray(draw_reference(solid(40, 40), 64, config, random.Random(seed)))
        shares.append(1 - (reference < 250).any(-1).sum() / 48**2)
    assert 0.015 <= min(shares) < 0.06
    assert 0.2 < max(shares) <= 0.26


def test_disabled_gives_one_plain_reference():
    scene = scenes(1)[0]
    (made,) = Augment(AugmentConfig(enabled=False), seed=0).process([cut_out(scene)])
    assert sorted(made.files) == ["reference0.png", "target.png"]
    expected = prepare_reference(rgba(scene), 64, AugmentConfig().middle_scale)
    assert np.array_equal(pixels(made, "reference0.png"), np.asarray(expected))
    x0, y0, x1, y1 = subject_box(expected)
    assert abs(max(x1 - x0, y1 - y0) - 48) <= 1
    assert abs(x0 + x1 - 64) <= 2


def test_size_resizes_target_and_references():
    (made,) = Augment(AugmentConfig(size=32), seed=0).process([cut_out(scenes(1)[0])])
    assert {pixels(made, name).shape for name in made.files} == {(32, 32, 3)}


def test_what_cannot_be_a_reference_is_refused():
    with pytest.raises(ValueError, match="is RGB; give RGBA"):
        prepare_reference(Image.new("RGB", (64, 64)), 64, 0.75)
    with pytest.raises(ValueError, match="its mask is empty"):
        prepare_reference(Image.new("RGBA", (64, 64)), 64, 0.75)


@pytest.mark.parametrize(("config", "side"), [({}, 64), ({"enabled": False}, 64), ({"size": 32}, 32)])
def test_a_target_that_is_not_square_keeps_its_size_beside_square_references(config: dict, side: int):
    sample = Sample("0" * 16, 0, {}, cut_out_files(solid(20, 20).resize((80, 48))))
    (made,) = Augment(AugmentConfig(**config), 0).process([sample])
    assert made.files.pop("target.png") == sample.files["png"]
    assert {pixels(made, name).shape for name in made.files} == {(side, side, 3)}


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (448, 576), (512, 768), (64, 640), (512, 1536)])
def test_networks_that_take_a_target_take_its_references(size: tuple[int, int]):
    side = reference_side(*size)
    assert all(side % factor == 0 for factor in range(1, 65) if not any(each % factor for each in size))
    assert min(size) <= side <= max(size)
    assert reference_side(size[1], size[0]) == side


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": (0.9, 0.5)}, r"scale \[0\.9, 0\.5\].*swap them"),
        ({"scale": (0.5, 1.5)}, "less than or equal to 1"),
        ({"size": 60}, "multiple of 8"),
        ({"flips": 0.5}, "Extra inputs"),
    ],
)
def test_bad_config_names_the_field(changes: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        AugmentConfig(**changes)
