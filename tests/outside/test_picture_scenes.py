"""Scenes to inpaint: the network sees right proportions, and the smallest mask is repainted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bootpig.models.pipelines.inpaint_view import in_proportion, view_box
from bootpig.models.pipelines.known_region import InpaintTask
from bootpig.models.pipelines.references import prepare_picture


@pytest.mark.parametrize(
    ("picture", "mask", "box"),
    [
        ((64, 64), (1, 1, 5, 5), (0, 0, 64, 64)),
        ((1920, 640), (900, 300, 1000, 400), (630, 0, 1270, 640)),
        ((1920, 640), (0, 0, 10, 10), (0, 0, 640, 640)),
        ((1920, 640), (1900, 600, 1920, 640), (1280, 0, 1920, 640)),
        ((640, 1920), (100, 1000, 200, 1100), (0, 730, 640, 1370)),
        ((1920, 640), (100, 100, 1800, 200), (0, -640, 1920, 1280)),
    ],
)
def test_the_network_sees_right_proportions(
    picture: tuple[int, int], mask: tuple[int, int, int, int], box: tuple[int, int, int, int]
) -> None:
    assert view_box(picture, mask, (512, 512)) == box


@pytest.mark.parametrize(
    ("picture", "cropped", "box"),
    [
        ((640, 640), (100, 100, 164, 165), (100, 100, 164, 165)),
        ((1920, 640), (90, 0, 1810, 640), (90, -540, 1810, 1180)),
        ((640, 1920), (0, 90, 640, 1810), (-540, 90, 1180, 1810)),
        ((1000, 700), (0, 0, 800, 700), (0, -50, 800, 750)),
    ],
)
def test_a_crop_that_meets_the_edge_keeps_proportions(
    picture: tuple[int, int], cropped: tuple[int, int, int, int], box: tuple[int, int, int, int]
) -> None:
    assert in_proportion(cropped, picture, (512, 512)) == box


def test_a_wide_scene_is_neither_squashed_nor_changed_outside(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for place in ((10, 10, 15, 15), (10, 10, 170, 40)):
        scene = Image.fromarray(rng.integers(0, 255, (64, 192, 3), np.uint8))
        mask = Image.new("L", scene.size)
        mask.paste(255, place)
        task = InpaintTask.read(scene, mask, (64, 64), 1.0, None, 1)
        view = task._view(task.pictures[0], task.boxes[0])
        assert view.shape == (64, 64, 3)
        generated = np.ones((1, 64, 64, 3)) * np.array([1.0, 0.0, 0.0])
        (made,), _ = task.paste(generated)
        pixels, kept = np.asarray(made), np.asarray(mask) == 0
        assert np.array_equal(pixels[kept], np.asarray(scene)[kept])
        assert (pixels[~kept] == [255, 0, 0]).all(), "all of the mask is repainted"


@pytest.mark.parametrize("corner", [(0, 0), (13, 29), (507, 507)])
def test_the_smallest_mask_repaints_the_cells_that_it_touches(corner: tuple[int, int]) -> None:
    import torch

    scene = Image.new("RGB", (512, 512), "grey")
    mask = Image.new("L", scene.size)
    mask.paste(255, (*corner, corner[0] + 5, corner[1] + 5))
    task = InpaintTask.read(scene, mask, (64, 64), 1.0, None, 1)
    region = task.region(lambda pixels: torch.zeros(len(pixels), 4, 8, 8), torch.zeros(1, 4, 8, 8))
    cells = region.repaint[0, 0]
    assert cells[corner[1] // 64, corner[0] // 64] == 1 and 1 <= cells.sum() <= 4


def cells_of(mask: Image.Image) -> np.ndarray:
    import torch

    task = InpaintTask.read(Image.new("RGB", mask.size, "grey"), mask, (64, 64), 1.0, None, 1)
    return task.region(lambda pixels: torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)).repaint[0, 0].numpy()


def test_a_pixel_in_a_huge_scene_and_thin_lines_repaint_what_they_touch() -> None:
    dot = Image.new("L", (9000, 9000))
    dot.putpixel((8999, 0), 255)
    assert np.argwhere(cells_of(dot)).tolist() == [[0, 7]]
    line = Image.new("L", (512, 512))
    line.paste(255, (0, 70, 512, 73))
    assert cells_of(line).sum() == 8 and cells_of(line)[1].all()
    cross = Image.new("L", (512, 512))
    for k in range(512):
        cross.putpixel((k, k), 255)
    assert np.array_equal(np.diag(cells_of(cross)), np.ones(8)) and cells_of(cross).sum() == 8


def test_cells_of_a_large_mask_are_those_whose_middle_is_white() -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (5, 5, 41, 41))  # touches cells 0 to 5 of each axis, covers the middle of 1 to 4
    mask.putpixel((63, 63), 255)
    expected = np.zeros((8, 8))
    expected[1:5, 1:5] = 1
    expected[7, 7] = 1
    assert np.array_equal(cells_of(mask), expected)


def test_the_pipelines_refuse_what_they_would_misread() -> None:
    grey = Image.new("I;16", (64, 64))
    mask = Image.new("L", (64, 64), 255)
    with pytest.raises(ValueError, match=r"^image: mode I;16 has more than 8 bits"):
        InpaintTask.read(grey, mask, (64, 64), 1.0, None, 1)
    drawn = Image.new("RGBA", (64, 64))
    drawn.paste((255, 255, 255, 255), (0, 0, 8, 8))
    with pytest.raises(ValueError, match=r"^mask_image: a part of it is transparent"):
        InpaintTask.read(mask, drawn, (64, 64), 1.0, None, 1)
    scene = Image.new("RGB", (64, 64), "red")
    scene.info["icc_profile"] = b"a profile"
    (made,), _ = InpaintTask.read(scene, mask, (64, 64), 1.0, None, 1).paste(np.zeros((1, 64, 64, 3)))
    assert made.info == {}
    screenshot = Image.new("RGBA", (64, 64), (200, 30, 30, 255))
    assert np.array_equal(prepare_picture(screenshot, 64), prepare_picture(screenshot.convert("RGB"), 64))
