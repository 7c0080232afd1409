"""Pictures depend on their seeds alone, and a batch for which memory runs out is halved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.stages.engine.contract import FatalError
from bootpig.stages.sampling import Sampling, Seeds, draw_pictures
from tests.models.drawing import memory_for, picture
from tests.models.networks import sd_pipeline, train_a_little

PROMPTS = [f"a photo of a mug, on a {place}" for place in ("beach", "hill", "table", "road", "lawn", "roof")]
SAMPLING = Sampling(steps=3, batch_size=4)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> BootPIGPipeline:
    pipeline = sd_pipeline(tmp_path_factory.mktemp("pipeline"))
    train_a_little(pipeline)
    return pipeline


def inputs(batch: Sequence[int]) -> dict[str, Any]:
    return {"prompt": [PROMPTS[place] for place in batch], "reference_images": [[picture(1)]] * len(batch)}


def draw(pipeline: BootPIGPipeline, seeds: Sequence[Seeds], sampling: Sampling = SAMPLING, **options: Any) -> list[Any]:
    batches = draw_pictures(pipeline, seeds, inputs, sampling, setting="batch_size", **options)
    return [drawn.image for batch in batches for drawn in batch]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def equal(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


ALONE = Sampling(steps=3, batch_size=1)
"""Batches of another size can differ in the last bits."""


def test_the_first_noise_and_the_rest_have_seeds_of_their_own(pipeline: BootPIGPipeline) -> None:
    drawn = draw(pipeline, [Seeds(3, 9), Seeds(4, 9)], ALONE)
    for place, image in enumerate(drawn):
        noise = torch.randn((1, 16, 8, 8), generator=seeded(3 + place))
        expected = pipeline(**inputs([place]), num_inference_steps=3, latents=noise, generator=[seeded(9)]).images[0]
        assert equal(image, expected)
    assert not equal(drawn[0], draw(pipeline, [Seeds(3, 8)], ALONE)[0])


def test_one_seed_is_what_the_pipeline_draws_by_itself(pipeline: BootPIGPipeline) -> None:
    wide = {"height": 64, "width": 128}
    expected = pipeline(**inputs([0]), **wide, num_inference_steps=3, generator=[seeded(3)]).images[0]
    assert equal(draw(pipeline, [Seeds(3)], ALONE, size=(64, 128))[0], expected)


def test_the_batch_is_halved_when_memory_runs_out(
    pipeline: BootPIGPipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seeds = [Seeds(place, 7) for place in range(6)]
    expected = draw(pipeline, seeds, Sampling(steps=3, batch_size=2))
    steps: list[tuple[int, int]] = []
    memory_for(2, monkeypatch, calls=2)
    drawn = draw(pipeline, seeds, progress=lambda done, total, text: steps.append((done, total)))
    assert len(drawn) == 6 and all(map(equal, drawn, expected))
    assert "continuing with batches of 2 (batch_size)" in caplog.text
    assert steps == sorted(steps) and steps[0] == (4, 18) and steps[-1] == (18, 18)


def test_too_little_memory_for_one_picture(pipeline: BootPIGPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    memory_for(0, monkeypatch)
    with pytest.raises(FatalError, match=r"^out of memory with a single sample; "):
        draw(pipeline, [Seeds(1), Seeds(2)])
