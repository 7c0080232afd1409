"""What users of diffusers and of tools upon it reported, done with ours. Each test names its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
)
from diffusers.callbacks import SD3CFGCutoffCallback
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from tests.models.drawing import picture
from tests.models.pipelines_suite.kinds import PROMPT, build, draw


@pytest.fixture(scope="module")
def inpainting(words: Path) -> Any:
    return build("sd-inpaint", words)


def with_scheduler(pipeline: Any, kind: type[Any], **config: Any) -> Any:
    """A second pipeline around the same networks."""
    scheduler = kind.from_config(pipeline.scheduler.config, **config)
    made = type(pipeline)(**{**pipeline.components, "scheduler": scheduler})
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(("steps", "strength"), [(100, 0.1), (120, 0.1), (90, 0.1), (200, 0.05), (50, 0.05)])
def test_dpm_with_few_of_many_steps(inpainting: Any, steps: int, strength: float) -> None:
    """huggingface/diffusers#9366: some combinations of steps and strength were an IndexError."""
    pipeline = with_scheduler(inpainting, DPMSolverMultistepScheduler, use_karras_sigmas=True)
    ran: list[int] = []
    draw(
        pipeline,
        reference_images=None,
        num_inference_steps=steps,
        strength=strength,
        callback_on_step_end=lambda _, step, t, tensors: ran.append(step) or {},
    )
    assert len(ran) == int(steps * strength)


@pytest.mark.parametrize("strength", [0.05, 0.15, 0.25, 0.5, 0.75, 1.0])
def test_single_step_solvers_at_every_strength(inpainting: Any, strength: float) -> None:
    """huggingface/diffusers#1866: a NoneType in the middle of the schedule at certain strengths."""
    pipeline = with_scheduler(inpainting, DPMSolverSinglestepScheduler)
    assert torch.isfinite(draw(pipeline, num_inference_steps=10, strength=strength)).all()


def test_a_strength_below_one_step(inpainting: Any) -> None:
    """invoke-ai/InvokeAI#2337: too low a strength left no step, and an IndexError."""
    ran: list[int] = []
    out = draw(inpainting, strength=0.01, callback_on_step_end=lambda _, step, t, tensors: ran.append(step) or {})
    assert ran == [0] and torch.isfinite(out).all()


def test_stochastic_solver_on_an_oblong_picture(inpainting: Any) -> None:
    """easydiffusion/easydiffusion#1594: inpainting with an SDE solver at strength 0.8 and another aspect ratio."""
    pipeline = with_scheduler(inpainting, DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++")
    out = draw(pipeline, height=96, width=64, strength=0.8, num_inference_steps=5, output_type="np")
    assert np.isfinite(out).all()


def test_ddim_with_a_number_of_steps_that_does_not_divide(inpainting: Any) -> None:
    """AUTOMATIC1111/stable-diffusion-webui#1954: 110 steps asked for the 1001st of 1000 timesteps."""
    pipeline = with_scheduler(inpainting, DDIMScheduler)
    assert torch.isfinite(draw(pipeline, num_inference_steps=110, strength=0.02)).all()


def test_an_edm_solver_in_inpainting(inpainting: Any) -> None:
    """huggingface/diffusers#8523: a solver with noise levels of its own in image-to-image. Refused by name."""
    with pytest.raises(
        ValueError, match=r"scheduler\.class EDMDPMSolverMultistepScheduler: it has noise levels of its"
    ):
        with_scheduler(inpainting, EDMDPMSolverMultistepScheduler)


def test_processors_stay_after_drawing(inpainting: Any) -> None:
    """huggingface/diffusers#13635: a pipeline discarded the processors that were set before."""
    before = dict(inpainting.unet.attn_processors)
    draw(inpainting)
    assert all(held is before[name] for name, held in inpainting.unet.attn_processors.items())


def test_slicing_after_an_adapter(words: Path) -> None:
    """huggingface/diffusers#7263: attention slicing after an IP-Adapter failed only in the call, with a traceback."""
    pipeline = build("sd", words)
    with pytest.raises(ValueError, match="load_ip_adapter"):
        pipeline.load_ip_adapter("somewhere", subfolder="models", weight_name="ip-adapter_sd15.bin")
    with pytest.raises(ValueError, match="enable_attention_slicing"):
        pipeline.enable_attention_slicing()
    assert torch.isfinite(draw(pipeline)).all()


def test_a_processor_changed_by_hand(words: Path) -> None:
    """huggingface/diffusers#8872: processors set after loading were used in silence."""
    pipeline = build("sd", words)
    before = draw(pipeline)
    pipeline.unet.set_attn_processor(AttnProcessor())
    torch.testing.assert_close(draw(pipeline), before)


def test_a_callback_of_another_family(inpainting: Any) -> None:
    """huggingface/diffusers#11890: a cutoff for SD3 needs tensors that Stable Diffusion has not."""
    with pytest.raises(ValueError, match="pooled_prompt_embeds"):
        draw(inpainting, callback_on_step_end=SD3CFGCutoffCallback(cutoff_step_ratio=0.3))


def test_prompts_that_change_with_the_step_at_low_guidance(inpainting: Any) -> None:
    """vladmandic/sdnext#3535: with a guidance scale from 0 to 1, a callback's embeds had the wrong number of rows."""
    texts = inpainting.encode_prompt([PROMPT, "a red ball"], "cpu", 1, False)[0]

    def travel(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["prompt_embeds"] = texts[step : step + 1]
        return tensors

    changes: dict[str, Any] = {"callback_on_step_end": travel, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    for scale in (0.0, 0.5, 1.0, 7.5):
        out = draw(inpainting, guidance_scale=scale, reference_images=picture(2), **changes)
        assert torch.isfinite(out).all()
