"""`train.references_per_sample`: how many references a step reads, which, and what the networks make of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from bootpig.flows.loading import load_config
from bootpig.models.core.bootpig import BootPIG
from bootpig.models.core.reference_unet import record_features
from bootpig.models.pipelines.bases import training_schedule
from bootpig.models.pretrained.source import PROJECT
from bootpig.stages.engine.contract import InputError, ReduceInput
from bootpig.stages.train.dataset import ShardLoader
from bootpig.stages.train.objective import Draws, Objective
from tests.stages.train.test_train import equal, recipe, train
from tests.stages.train.training_data import REFERENCES, save_base, write_units


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReduceInput:
    return write_units(tmp_path_factory.mktemp("units"), (5, 4, 3))


def test_a_step_reads_different_references_and_the_first_as_before(data: ReduceInput) -> None:
    one = ShardLoader(data, seed=1, batch_size=6)
    several = ShardLoader(data, seed=1, batch_size=6, references=(1, REFERENCES))
    counts = set()
    for step in range(24):
        alone, many = one.batch(step).tensors["reference"], several.batch(step).tensors["reference"]
        count = many.shape[1] if many.ndim == 5 else 1
        counts.add(count)
        rows = many if many.ndim == 5 else many[:, None]
        assert torch.equal(rows[:, 0], alone)
        for row in rows:
            assert len({reference.numpy().tobytes() for reference in row}) == count
    assert counts == {1, 2, 3}


def test_ranks_read_the_same_number(data: ReduceInput) -> None:
    loaders = [
        ShardLoader(data, seed=1, batch_size=6, rank=rank, ranks=2, references=(1, REFERENCES)) for rank in range(2)
    ]
    for step in range(12):
        first, second = (loader.batch(step).tensors["reference"] for loader in loaders)
        assert first.shape == second.shape


@pytest.mark.parametrize("clean", [True, False])
def test_references_are_pooled_as_at_inference(base: Path, data: ReduceInput, clean: bool) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    model = BootPIG.from_unet(pipeline.unet)
    objective = Objective(model, training_schedule(pipeline.scheduler))
    loader = ShardLoader(data, seed=1, batch_size=4, references=(3, 3))
    draws = Draws(
        seed=0,
        timesteps=1000,
        empty_prompt=torch.zeros(1, 1, 1),
        drop_caption=0.0,
        drop_reference=0.0,
        drop_reference_per="step",
        clean_references=clean,
    )
    given = draws(0, loader.batch(0)).on(torch.device("cpu"))
    prediction, _ = objective._predicted(**given)
    schedule, timesteps = objective.scheduler, given["timesteps"]
    for row in range(4):
        read, times = given["reference"][row], torch.zeros(3, dtype=torch.long)
        if not clean:
            times = timesteps[row].expand(3)
            read = schedule.add_noise(read, given["reference_noise"][row], times)
        text = given["reference_prompt_embeds"][row].expand(3, -1, -1)
        features = record_features(model.reference_unet, read, times, text, [(0, 1, 2)])
        noisy = schedule.add_noise(given["target"][row], given["noise"][row], timesteps[row])
        expected = model.unet(
            noisy[None],
            timesteps[row],
            encoder_hidden_states=given["prompt_embeds"][row : row + 1],
            cross_attention_kwargs={"reference": features},
        ).sample
        torch.testing.assert_close(prediction[row : row + 1], expected, rtol=1e-4, atol=1e-5)
    prediction.square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def test_training_resumes_exactly(base: Path, data: ReduceInput, tmp_path: Path) -> None:
    settings = {"references_per_sample": (1, 3), "checkpoint_every": 3, "mixed_precision": "no"}
    whole = train(recipe(base, **settings), data, tmp_path / "whole", tmp_path / "kept")
    again = train(recipe(base, **settings), data, tmp_path / "again", tmp_path / "kept")
    assert equal(whole, again)
    assert not equal(whole, train(recipe(base, mixed_precision="no"), data, tmp_path / "one"))
    small = {"per_device_batch_size": 2, **settings}
    parts = train(recipe(base, **small), data, tmp_path / "parts")
    differences = torch.cat([(whole[name] - parts[name]).abs().flatten() for name in whole])
    assert differences.mean() < 1e-6, "AdamW turns rounding of gradients near zero into whole steps"


@pytest.mark.parametrize(
    "sets",
    [
        ["train.references_per_sample=[1, 5]"],
        ["train.references_per_sample=[0, 1]"],
        ["train.references_per_sample=[3, 2]"],
        ["train.references_per_sample=[1, 2]", "augment.enabled=false"],
    ],
)
def test_numbers_that_cannot_be(sets: list[str]) -> None:
    with pytest.raises(InputError, match="references_per_sample") as caught:
        load_config(PROJECT / "configs" / "toy.yaml", sets)
    assert str(caught.value).count("\n") == 0


def test_too_few_stored_references_are_named(data: ReduceInput) -> None:
    with pytest.raises(InputError, match="4 references, but the encoded samples have 3"):
        ShardLoader(data, seed=1, batch_size=4, references=(4, 4)).batch(0)
