"""Training on pictures of several sizes: exact resume, validation, sample pictures, SDXL's conditions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bootpig.models.core.bootpig import BootPIG
from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.stages.engine.contract import InputError, ReduceInput
from bootpig.stages.train.dataset import ShardLoader, same_shapes
from bootpig.stages.train.grid import SampleGrid
from bootpig.stages.train.objective import Objective
from bootpig.stages.train.validation import MEASURED, Validation
from tests.stages.train.test_train import equal, log, recipe, train
from tests.stages.train.training_data import save_base, write_units

SIZES = ((8, 8), (4, 12), (12, 4))


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SampleGrid, "STEPS", 2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReduceInput:
    return write_units(tmp_path_factory.mktemp("units"), (9, 4, 8), sizes=SIZES)


def test_resume_is_exact_and_pictures_and_losses_are_measured(
    base: Path, data: ReduceInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[torch.Size] = []
    forward = BootPIG.forward

    def spy(self: BootPIG, *arguments: torch.Tensor, **options: object) -> torch.Tensor:
        if self.training:
            shapes.append(arguments[0].shape[2:])
        return forward(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(BootPIG, "forward", spy)
    settings = {
        "checkpoint_every": 4,
        "mixed_precision": "no",
        "validation": 0.3,
        "validate_every": 3,
        "sample_every": 6,
        "references_per_sample": (1, 2),
    }
    whole = train(recipe(base, **settings), data, tmp_path / "whole", tmp_path / "kept")
    assert {tuple(shape) for shape in shapes} == set(SIZES)
    again = train(recipe(base, **settings), data, tmp_path / "again", tmp_path / "kept")
    assert equal(whole, again)
    assert all(np.isfinite(line["loss"]) for line in log(tmp_path / "again") if "loss" in line)
    assert any("reference_gain" in line for line in log(tmp_path / "whole"))
    assert (tmp_path / "whole/samples/step-000006.png").exists()


def test_the_grid_centres_pictures_in_cells_of_the_largest(base: Path, data: ReduceInput) -> None:
    pipeline = BootPIGPipeline.from_pretrained(base)
    samples = ShardLoader(data, seed=0, batch_size=4).first(SampleGrid.ROWS)
    drawn = np.asarray(SampleGrid(pipeline, samples, 0)())
    assert drawn.shape == (4 * 24, 3 * 24, 3)
    for row, sample in enumerate(samples):
        alone = np.asarray(SampleGrid(pipeline, [sample], row)())
        height, width = (2 * side for side in sample.tensors["target"].shape[1:])
        cell = drawn[row * 24 : row * 24 + 24, 24:48]
        assert (cell[: (24 - height) // 2] == 255).all() and (cell[:, : (24 - width) // 2] == 255).all()
        top, left = (alone.shape[0] - height) // 2, alone.shape[1] // 3 + (alone.shape[1] // 3 - width) // 2
        inside = cell[(24 - height) // 2 :, (24 - width) // 2 :][:height, :width]
        expected = alone[top : top + height, left : left + width]
        assert np.abs(inside.astype(int) - expected.astype(int)).max() <= 1


def test_validation_measures_every_size_with_noise_of_its_own(base: Path, data: ReduceInput) -> None:
    pipeline = BootPIGPipeline.from_pretrained(base)
    objective = Objective(BootPIG.from_unet(pipeline.unet), pipeline.scheduler)
    samples = ShardLoader(data, seed=0, batch_size=4).first(7)
    mixed, alone = (
        Validation(objective, chosen, timesteps=1000, seed=0, clean=False)
        for chosen in (samples, [samples[place] for place in same_shapes(samples)[0]])
    )
    assert [tuple(inputs.target.shape[2:]) for inputs in mixed.inputs] == list(SIZES)
    assert sum(len(inputs.target) for inputs in mixed.inputs) == MEASURED
    times = torch.cat([inputs.timesteps for inputs in mixed.inputs])
    assert torch.equal(times.sort().values, alone.inputs[0].timesteps), "spread evenly over all sizes together"
    for inputs in mixed.inputs:
        assert inputs.reference_noise is not None and inputs.reference_noise.shape == inputs.reference.shape
    reading = mixed(4, torch.device("cpu"))
    assert np.isfinite(reading.loss) and reading.low <= reading.gain <= reading.high


def test_sdxl_reads_the_size_of_each_batch_and_of_its_references() -> None:
    objective = Objective(torch.nn.Identity(), scheduler=None, vae_scale_factor=8)  # type: ignore[arg-type]
    pooled = torch.zeros(2, 5)
    for shape, expected in (((2, 4, 6, 10), [48, 80]), ((2, 4, 8, 8), [64, 64])):
        time_ids = objective._conditions(pooled, torch.zeros(shape))["time_ids"]
        assert time_ids.tolist() == [[*expected, 0, 0, *expected]] * 2


def test_a_size_that_the_base_cannot_take_is_one_line(base: Path, tmp_path: Path) -> None:
    data = write_units(tmp_path / "units", (6,), sizes=[(8, 8), (8, 7)])
    with pytest.raises(InputError, match=r"^train.model: .* needs latents divisible by 2, but encode made 8 x 7 and 8"):
        train(recipe(base), data, tmp_path / "out")


def test_squares_are_drawn_as_before(tmp_path: Path) -> None:
    """Rows that give one size change nothing."""
    plain, sized = write_units(tmp_path / "a", (5, 4)), write_units(tmp_path / "b", (5, 4), sizes=[(8, 8)])
    one, other = (ShardLoader(data, seed=1, batch_size=4) for data in (plain, sized))
    for step in range(6):
        assert (
            one.batch(step).ids
            == other.batch(step).ids
            == [f"{unit:03d}-{index:03d}" for _, unit, index in map(one.order.at, range(4 * step, 4 * step + 4))]
        )
