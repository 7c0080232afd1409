"""The draws of a step, and the loss against the formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from bootpig.stages.train.dataset import Batch
from bootpig.stages.train.objective import Draws, Inputs, Objective

B, SHAPE, TOKENS, WIDTH = 16, (4, 4, 4), 3, 5


def batch(seeds: range = range(B)) -> Batch:
    generator = torch.Generator().manual_seed(7)
    sizes = {
        "target": SHAPE,
        "reference": SHAPE,
        "prompt_embeds": (TOKENS, WIDTH),
        "reference_prompt_embeds": (TOKENS, WIDTH),
    }
    tensors = {name: torch.randn(B, *size, generator=generator).half() for name, size in sizes.items()}
    rows = torch.tensor([seed % B for seed in seeds])
    return Batch([str(seed) for seed in seeds], list(seeds), {name: tensor[rows] for name, tensor in tensors.items()})


def draws(**values: Any) -> Draws:
    settings = {
        "seed": 0,
        "timesteps": 1000,
        "empty_prompt": torch.full((TOKENS, WIDTH), 9.0),
        "drop_caption": 0.15,
        "drop_reference": 0.15,
        "drop_reference_per": "sample",
    }
    return Draws(**{**settings, **values})


def test_draws_follow_from_the_visit_alone() -> None:
    whole = draws()(0, batch())
    again = draws()(5, batch(range(4, 8)))
    assert torch.equal(whole.noise[4:8], again.noise)
    assert torch.equal(whole.timesteps[4:8], again.timesteps)
    assert torch.equal(whole.reference_noise[4:8], again.reference_noise)
    assert whole.use_reference[4:8] == again.use_reference
    other = draws()(0, batch(range(B, 2 * B)))
    assert not torch.equal(whole.noise, other.noise)


def test_clean_references_change_no_other_draw() -> None:
    noised, clean = draws()(0, batch()), draws(clean_references=True)(0, batch())
    assert clean.reference_noise is None
    assert torch.equal(noised.noise, clean.noise)
    assert torch.equal(noised.timesteps, clean.timesteps)
    assert noised.use_reference == clean.use_reference


def test_noise_is_normal_and_independent() -> None:
    inputs = [draws()(0, batch(range(i * B, i * B + B))) for i in range(60)]
    noise = torch.cat([i.noise for i in inputs]).flatten()
    reference_noise = torch.cat([i.reference_noise for i in inputs]).flatten()
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert abs(torch.corrcoef(torch.stack([noise, reference_noise]))[0, 1]) < 0.02
    timesteps = torch.cat([i.timesteps for i in inputs])
    assert timesteps.min() < 20
    assert timesteps.max() > 980
    assert abs(timesteps.double().mean() - 499.5) < 40


def test_dropouts() -> None:
    many = [draws(drop_caption=0.25, drop_reference=0.4)(i, batch(range(i * B, i * B + B))) for i in range(100)]
    empty = torch.cat([(i.prompt_embeds == 9.0).all(dim=(1, 2)) for i in many])
    assert 0.21 < empty.float().mean() < 0.29
    assert not any((i.reference_prompt_embeds == 9.0).any() for i in many)
    kept = torch.tensor([i.use_reference for i in many]).float()
    assert 0.56 < kept.mean() < 0.64
    assert 0 < kept.mean(1).min() < kept.mean(1).max() < 1


def test_reference_dropped_for_a_whole_step() -> None:
    make = draws(drop_reference=0.4, drop_reference_per="step")
    steps = [make(step, batch()).use_reference for step in range(300)]
    assert all(len(set(use)) == 1 for use in steps)
    assert 0.5 < sum(use[0] for use in steps) / 300 < 0.7
    # All ranks see other samples, and agree.
    assert [make(step, batch(range(90, 90 + B))).use_reference for step in range(300)] == steps


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_never_and_always(chance: float) -> None:
    for per in ("sample", "step"):
        inputs = draws(drop_caption=chance, drop_reference=chance, drop_reference_per=per)(0, batch())
        assert inputs.use_reference == (chance == 0.0,) * B
        assert (inputs.prompt_embeds == 9.0).all().item() == (chance == 1.0)


def test_parts_and_dtypes() -> None:
    inputs = draws()(0, batch())
    parts = list(inputs.parts(6))
    assert [len(part.use_reference) for part in parts] == [6, 6, 4]
    assert torch.equal(torch.cat([part.noise for part in parts]), inputs.noise)
    arguments = inputs.on(torch.device("cpu"))
    assert arguments["timesteps"].dtype == torch.int64
    assert arguments["target"].dtype == arguments["prompt_embeds"].dtype == torch.float32


class Recorder(nn.Module):
    """A model that records its calls and predicts from its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def forward(
        self,
        noisy_latents: torch.Tensor,
        timesteps: torch.Tensor,
        prompt_embeds: torch.Tensor,
        references: torch.Tensor,
        reference_prompt_embeds: torch.Tensor,
        *,
        use_reference: bool,
        reference_timesteps: torch.Tensor,
    ) -> torch.Tensor:
        self.calls.append((timesteps, reference_timesteps, use_reference))
        return 0.5 * noisy_latents + (0.25 * references if use_reference else 0.0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("per", ["sample", "step"])
@pytest.mark.parametrize("clean", [False, True])
def test_loss_is_the_formula(prediction_type: str, per: str, clean: bool) -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction_type)
    inputs = draws(drop_reference=0.5, drop_reference_per=per, clean_references=clean)(0, batch())
    given = inputs.on(torch.device("cpu"))
    model = Recorder()
    loss = Objective(model, scheduler)(**given)

    alpha = scheduler.alphas_cumprod[given["timesteps"]].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * given["target"] + (1 - alpha).sqrt() * given["noise"]
    noisy_reference = given["reference"]
    if not clean:
        noisy_reference = alpha.sqrt() * given["reference"] + (1 - alpha).sqrt() * given["reference_noise"]
    velocity = alpha.sqrt() * given["noise"] - (1 - alpha).sqrt() * given["target"]
    goal = given["noise"] if prediction_type == "epsilon" else velocity
    uses = torch.tensor(inputs.use_reference).view(-1, 1, 1, 1)
    prediction = 0.5 * noisy + 0.25 * noisy_reference * uses
    torch.testing.assert_close(loss, (prediction - goal).square().mean())
    assert len(model.calls) == len(set(inputs.use_reference)) == (2 if per == "sample" else 1)
    for timesteps, reference_timesteps, kept in model.calls:
        assert torch.equal(timesteps, given["timesteps"][list_of(inputs, kept)])
        assert torch.equal(reference_timesteps, torch.zeros_like(timesteps) if clean else timesteps)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_min_snr_weights_each_sample(prediction_type: str, zero_snr: bool) -> None:
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", prediction_type=prediction_type, rescale_betas_zero_snr=zero_snr
    )
    given = draws(drop_reference=0.0)(0, batch()).on(torch.device("cpu"))
    given["timesteps"][0] = 999  # no signal is left here, if the schedule ends with zero SNR
    objective = Objective(Recorder(), scheduler, min_snr_gamma=5.0)
    one_by_one = []
    for row in range(B):
        part = {name: value[row : row + 1] for name, value in given.items()}
        alpha = scheduler.alphas_cumprod[part["timesteps"]]
        snr = alpha / (1 - alpha)
        weight = torch.minimum(snr, torch.tensor(5.0)) / (snr + (prediction_type == "v_prediction"))
        if prediction_type == "epsilon" and snr == 0:
            weight = torch.ones(1)  # the limit
        one_by_one.append(weight * Objective(Recorder(), scheduler)(**part))
    torch.testing.assert_close(objective(**given), torch.stack(one_by_one).mean())


def test_logit_normal_timesteps() -> None:
    seen = torch.cat(
        [draws(distribution="logit_normal")(0, batch(range(i * B, i * B + B))).timesteps for i in range(60)]
    ).double()
    assert 0 <= seen.min() < 100
    assert 900 < seen.max() <= 999
    places = ((seen + 0.5) / 1000).logit()
    assert abs(places.mean()) < 0.1
    assert abs(places.std() - 1) < 0.1


def list_of(inputs: Inputs, kept: bool) -> list[int]:
    return [row for row, use in enumerate(inputs.use_reference) if use == kept]
