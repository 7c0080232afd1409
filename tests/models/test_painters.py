"""The contract of painters, held by a tiny random-weight pipeline of the real classes of each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from bootpig.models.painters.loading import load_refiner, load_text_to_image
from bootpig.models.painters.painter import Brush, Painter, setting_problems
from bootpig.models.pretrained.source import ModelError, ModelSource
from tests.models.families import save_refiner, save_sd21, save_sdxl
from tests.models.painters.more_pipelines import MORE
from tests.models.painters.pipelines import PIPELINES, SIDE

FAMILIES = {**PIPELINES, **MORE}
CAPTIONS = ["a photo of a mug, on the table", "a teapot"]
CPU = {"device": torch.device("cpu"), "dtype": torch.float32}

Make = Callable[[str], Painter]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """One painter per family, made when it is first asked for."""
    made: dict[str, Painter] = {}

    def painter(name: str) -> Painter:
        if name not in made:
            pipeline = FAMILIES[name](tmp_path_factory.mktemp("pipeline"))
            pipeline.set_progress_bar_config(disable=True)
            made[name] = Painter("synthesize.model", pipeline)
        return made[name]

    return painter


def brush(**changes: Any) -> Brush:
    usual = {"steps": 2, "guidance_scale": 4.0, "negative_prompt": "", "height": SIDE, "width": SIDE}
    return Brush(**{**usual, **changes})


def draw(painter: Painter, captions: list[str], seeds: list[int], **changes: Any) -> list[np.ndarray]:
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    painted = painter.paint(captions, generators, brush(**changes))
    assert list(painted.flagged) == [False] * len(captions)
    return list(painted.pictures)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_sample_decides_the_picture_whatever_the_batch(make: Make, name: str) -> None:
    painter = make(name)
    both = draw(painter, CAPTIONS, [1, 2])
    for picture in both:
        assert picture.shape == (SIDE, SIDE, 3)
        assert picture.dtype == np.float32
        assert 0 <= picture.min() < picture.max() <= 1
    (alone,) = draw(painter, CAPTIONS[1:], [2])
    assert np.abs(both[1] - alone).max() < 2e-5
    (other_seed,) = draw(painter, CAPTIONS[1:], [3])
    (other_text,) = draw(painter, CAPTIONS[:1], [2])
    assert difference(alone, other_seed) > 1e-2
    assert difference(alone, other_text) > 4e-5


@pytest.mark.parametrize("name", list(FAMILIES))
def test_guidance_and_negative_prompt_act_or_are_refused(make: Make, name: str) -> None:
    painter = make(name)
    (usual,) = draw(painter, CAPTIONS[1:], [2])
    kind, configs = type(painter.pipeline), painter.configs
    size = painter.family.sizes[0] if painter.family.sizes else (SIDE, SIDE)
    for changes, setting in (
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"negative_prompt": "an ugly photo of a mug"}, "negative_prompt"),
    ):
        (changed,) = draw(painter, CAPTIONS[1:], [2], **changes)
        asked = brush(**{"guidance_scale": 7.5, "height": size[0], "width": size[1], **changes})
        problems = setting_problems("synthesize.model", kind, configs, asked)
        if problems:
            assert [line.split(":")[0] for line in problems] == [f"synthesize.{setting}"]
            assert np.array_equal(changed, usual)
        else:
            assert difference(changed, usual) > 4e-5, "it acts"


@pytest.mark.parametrize("name", list(FAMILIES))
def test_sizes_that_fit_are_drawn_and_others_are_named(make: Make, name: str) -> None:
    painter = make(name)
    kind, configs = type(painter.pipeline), painter.configs
    if painter.family.sizes:
        assert setting_problems("synthesize.model", kind, configs, brush(guidance_scale=7.5))
        return
    multiple = painter.family.multiple(configs)
    fits = {"height": max(SIDE, 2 * multiple), "width": max(SIDE, 2 * multiple) + multiple}
    assert setting_problems("synthesize.model", kind, configs, brush(guidance_scale=7.5, **fits)) == []
    (picture,) = draw(painter, CAPTIONS[1:], [2], **fits)
    assert picture.shape == (fits["height"], fits["width"], 3)
    odd = brush(guidance_scale=7.5, height=fits["height"] + multiple // 2, width=fits["width"])
    (line,) = setting_problems("synthesize.model", kind, configs, odd)
    assert line.startswith(
        f"synthesize.width and height: {odd.width}x{odd.height}, but a {kind.__name__} draws multiples"
    )


def test_a_picture_of_another_size_is_one_line(make: Make) -> None:
    with pytest.raises(ModelError, match=r"^synthesize.model: a FluxPipeline draws 80x64 pixels where 88x72 are asked"):
        draw(make("FLUX.1 dev"), CAPTIONS[1:], [2], height=72, width=88)


def test_an_unknown_pipeline_is_called_by_its_signature(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    known = make("Lumina 2")
    monkeypatch.delitem(
        __import__("bootpig.models.painters.families", fromlist=["BY_CLASS"]).BY_CLASS, "Lumina2Pipeline"
    )
    painter = Painter("synthesize.model", known.pipeline)
    assert painter.family.name == "Lumina2Pipeline"
    for one, other in zip(draw(painter, CAPTIONS, [1, 2]), draw(known, CAPTIONS, [1, 2]), strict=True):
        assert np.abs(one - other).max() < 2e-5


def load(folder: Path) -> Painter:
    source = ModelSource("synthesize.model", str(folder), str(folder))
    return Painter("synthesize.model", load_text_to_image(source, **CPU))


def test_the_refiner_goes_on_where_the_base_stops(tmp_path: Path) -> None:
    base = load(save_sdxl(tmp_path / "base"))
    found = save_refiner(tmp_path / "refiner")
    source = ModelSource("synthesize.refiner", str(found), str(found))
    refiner = Painter("synthesize.refiner", load_refiner(source, base.pipeline, **CPU))
    settings = brush(steps=4)

    def refined(captions: list[str], seeds: list[int]) -> list[np.ndarray]:
        first, second = ([torch.Generator("cpu").manual_seed(seed + add) for seed in seeds] for add in (0, 100))
        begun = base.paint(captions, first, settings, output_type="latent", denoising_end=0.5)
        return list(refiner.paint(captions, second, settings, denoising_start=0.5, image=begun.pictures).pictures)

    both = refined(CAPTIONS, [1, 2])
    assert both[0].shape == (SIDE, SIDE, 3)
    assert np.abs(both[1] - refined(CAPTIONS[1:], [2])[0]).max() < 2e-5
    (unrefined,) = [base.paint(CAPTIONS[1:], [torch.Generator("cpu").manual_seed(2)], settings).pictures[0]]
    assert difference(both[1], unrefined) > 1e-3


def test_a_safety_checker_flags_its_picture(tmp_path: Path) -> None:
    painter = load(save_sd21(tmp_path / "base"))
    painter.pipeline.run_safety_checker = lambda image, *_: (image, [True] * len(image))
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (1, 2)]
    assert list(painter.paint(CAPTIONS, generators, brush()).flagged) == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("Kandinsky 5",)])
def test_saved_and_loaded_it_draws_the_same(make: Make, name: str, tmp_path: Path) -> None:
    painter = make(name)
    painter.pipeline.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded.pipeline).__name__ in dir(diffusers)
    assert loaded.family is painter.family
    (one,), (other,) = (draw(each, CAPTIONS[1:], [2]) for each in (painter, loaded))
    assert np.abs(one - other).max() < 2e-5
