"""Every scheduler of diffusers draws, or is named in one line before anything is drawn."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers.schedulers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler, PNDMScheduler
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor

from bootpig.models.pipelines.guidance import Denoiser
from tests.models.drawing import picture
from tests.models.pipelines_suite.kinds import INPAINTING, arguments, build, draw

NEEDS_TORCHSDE = {"DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"}

RUNS = (
    *(kind.name for kind in KarrasDiffusionSchedulers if kind.name not in NEEDS_TORCHSDE),
    "CogVideoXDDIMScheduler",
    "CMStochasticIterativeScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "EDMDPMSolverMultistepScheduler",
    "LCMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
)

ONLY_WITHOUT_REFERENCES = ("DDIMInverseScheduler", "IPNDMScheduler")
"""They cannot noise a picture."""

ONLY_TEXT_TO_IMAGE = ("DPMSolverMultistepInverseScheduler",)


def made(name: str, pipeline: Any, **config: Any) -> Any:
    kind = getattr(diffusers.schedulers, name)
    given = {**pipeline.scheduler.config, "skip_prk_steps": True, **config}
    known = inspect.signature(kind.__init__).parameters
    needed = [p.name for p in known.values() if p.default is p.empty and p.name != "self" and p.kind != p.VAR_KEYWORD]
    if set(needed) - given.keys():
        pytest.skip("not for pictures")
    try:
        return kind.from_config({key: value for key, value in given.items() if key in known or key in config})
    except (ValueError, ImportError):
        pytest.skip("not with this noise schedule, or torchsde is missing")


@pytest.fixture
def scheduled(shared: Any) -> Iterator[Any]:
    """The shared pipeline, which gets its scheduler back."""
    own = shared.scheduler
    yield shared
    shared.scheduler = own


@pytest.mark.parametrize("name", RUNS)
def test_schedulers_keep_shapes(scheduled: Any, kind: str, name: str) -> None:
    scheduled.scheduler = made(name, scheduled)
    for strength in (1.0, 0.5) if kind in INPAINTING else (None,):
        changes: dict[str, Any] = {} if strength is None else {"strength": strength}
        out = draw(scheduled, **changes)
        assert out.shape == (1, 16, 8, 8)
        assert torch.isfinite(out).all()


def others() -> list[str]:
    names = [name for name in dir(diffusers.schedulers) if name.endswith("Scheduler")]  # loaded only when asked for
    return sorted(set(names) - set(RUNS) - NEEDS_TORCHSDE)


@pytest.mark.parametrize("name", others())
def test_other_schedulers_are_named_before_anything_runs(scheduled: Any, kind: str, name: str) -> None:
    scheduled.scheduler = made(name, scheduled)
    ran: list[int] = []
    parts = [part for part in scheduled.components.values() if isinstance(part, torch.nn.Module)]
    handles = [part.register_forward_pre_hook(lambda *_: ran.append(1)) for part in parts]
    allowed = name in ONLY_TEXT_TO_IMAGE or (name in ONLY_WITHOUT_REFERENCES)
    try:
        if kind not in INPAINTING and allowed:
            bare = {} if name in ONLY_TEXT_TO_IMAGE else {"reference_images": None}
            assert torch.isfinite(draw(scheduled, **bare)).all()
            ran.clear()
            if name in ONLY_TEXT_TO_IMAGE:
                return
        with pytest.raises(ValueError, match=r"\w") as error:
            draw(scheduled, num_inference_steps=3)
    finally:
        for handle in handles:
            handle.remove()
    assert "\n" not in str(error.value)
    assert not ran


@pytest.fixture(scope="module")
def exact(words: Path) -> Any:
    """An inpainting pipeline with a scheduler for epsilon."""
    pipeline = build("sd-inpaint", words)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type="epsilon")
    return pipeline


def errors_of_the_exact_prediction(exact: Any, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[float, float]:
    """Draw with a prediction that always points at the picture: what a scheduler leaves besides it is its own error.

    Returns:
        The root mean square errors of the repainted and of the known latents.
    """
    given = arguments(exact, reference_images=None, **changes)
    clean = exact._encode_pixels(torch.from_numpy(np.asarray(picture(4)).copy()).permute(2, 0, 1)[None] / 127.5 - 1)

    def predict(self: Denoiser, latents: Tensor, timestep: Tensor, *_: Any) -> Tensor:
        one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
        signal = self.scheduler.add_noise(one, zero, timestep.reshape(1))
        noise = self.scheduler.add_noise(zero, one, timestep.reshape(1))
        if hasattr(self.scheduler, "scale_model_input"):
            self.scheduler.scale_model_input(latents, timestep)  # some find their first step here
        return (latents - signal * clean) / noise

    monkeypatch.setattr(Denoiser, "predict", predict)
    error = (exact(**given).images - clean)[0]
    white = np.asarray(given["mask_image"])[4::8, 4::8] == 255
    return tuple(error[:, cells].square().mean().sqrt().item() for cells in (white, ~white))  # type: ignore[return-value]


EXACT = [name for name in RUNS if not name.startswith(("EDM", "CM"))]
"""Those two have noise levels of their own, which no UNet of Stable Diffusion was trained on."""


NEED_SOME_STEPS = ("LMSDiscreteScheduler", "PNDMScheduler")
"""Begun within their schedule, these multistep methods treat the first steps as later ones, in diffusers' own
image-to-image too: one to six steps leave noise of up to 0.1."""


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("name", EXACT)
@torch.no_grad()
def test_every_strength_ends_at_the_picture(
    exact: Any, monkeypatch: pytest.MonkeyPatch, name: str, karras: bool
) -> None:
    if karras and "use_karras_sigmas" not in inspect.signature(getattr(diffusers.schedulers, name).__init__).parameters:
        pytest.skip("no Karras sigmas")
    own = exact.scheduler
    for steps, strength in ((20, 1.0), (20, 0.5), (20, 0.3), (100, 0.1), (7, 0.01)):
        if steps > 50 and name in ("LCMScheduler", "TCDScheduler"):
            continue  # they were distilled at 50 steps, and say so
        if steps * strength < 8 and name in NEED_SOME_STEPS:
            continue
        exact.scheduler = made(name, exact, **({"use_karras_sigmas": True} if karras else {}))
        try:
            repainted, known = errors_of_the_exact_prediction(
                exact, monkeypatch, num_inference_steps=steps, strength=strength
            )
        finally:
            exact.scheduler = own
        # a DDIM of this schedule leaves the noise of its first timestep, 0.03
        assert repainted < 0.06, (steps, strength)
        assert known < 1e-5


@torch.no_grad()
def test_pndm_with_prk_steps_runs_whole_or_is_named(exact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = exact.scheduler
    exact.scheduler = PNDMScheduler.from_config(own.config, skip_prk_steps=False)
    try:
        assert errors_of_the_exact_prediction(exact, monkeypatch, num_inference_steps=10)[0] < 0.06
        with pytest.raises(ValueError, match="skip_prk_steps"):
            errors_of_the_exact_prediction(exact, monkeypatch, num_inference_steps=10, strength=0.5)
    finally:
        exact.scheduler = own


@torch.no_grad()
@pytest.mark.parametrize("strength", [1.0, 0.5, 0.2])
def test_given_timesteps_of_a_second_order_scheduler(
    exact: Any, monkeypatch: pytest.MonkeyPatch, strength: float
) -> None:
    own, seen = exact.scheduler, []
    exact.scheduler = HeunDiscreteScheduler.from_config(own.config)
    try:
        repainted, _ = errors_of_the_exact_prediction(
            exact,
            monkeypatch,
            timesteps=[900, 700, 500, 300, 100],
            strength=strength,
            callback_on_step_end=lambda _, step, t, tensors: seen.append(int(t)) or {},
        )
    finally:
        exact.scheduler = own
    assert repainted < 0.06
    # each step but the last runs at its own timestep and at the next one's
    kept = {1.0: [900, 700, 700, 500, 500, 300, 300, 100, 100], 0.5: [300, 100, 100], 0.2: [100]}
    assert seen == kept[strength]


def test_what_a_scheduler_does_not_take(scheduled: Any) -> None:
    scheduled.scheduler = PNDMScheduler.from_config(scheduled.scheduler.config, skip_prk_steps=True)
    for changes in (
        {"timesteps": [900, 500]},
        {"sigmas": [3.0, 1.0]},
        {"timesteps": [900], "sigmas": [3.0]},
        {"num_inference_steps": 0},
    ):
        with pytest.raises(ValueError, match=r"\w") as error:
            draw(scheduled, **changes)
        assert "\n" not in str(error.value)
