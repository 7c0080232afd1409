"""SDXL's own: two text encoders, an empty prompt of zeros, pooled embeds and sizes for both UNets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor

from bootpig.models.pipelines.xl import BootPIGXLPipeline
from bootpig.models.pipelines.xl_inpaint import BootPIGXLInpaintPipeline
from tests.models.networks import WIDTH, sdxl_pipeline, train_a_little

PROMPT = "a photo of a mug, on a beach"
RED = Image.new("RGB", (64, 64), "red")


@pytest.fixture(scope="module")
def shared(folder: Path) -> BootPIGXLPipeline:
    pipeline = sdxl_pipeline(folder)
    train_a_little(pipeline)
    return pipeline


def generate(pipeline: Any, references: Any = RED, **kwargs: Any) -> Tensor:
    kwargs = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(3), "prompt": PROMPT, **kwargs}
    if references is not None:
        kwargs["reference_images"] = references
    return pipeline(output_type="latent", **kwargs).images


def test_without_references_it_is_stable_diffusion_xl(shared: BootPIGXLPipeline) -> None:
    parts = {n: c for n, c in shared.components.items() if n != "reference_unet"}
    plain = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    plain.set_progress_bar_config(disable=True)
    for kwargs in (
        {"negative_prompt": "blue", "guidance_rescale": 0.7},
        {"original_size": (40, 50), "prompt_2": "a ball", "clip_skip": 1},
        {},
    ):
        expected = generate(plain, None, guidance_scale=4.0, **kwargs)
        torch.testing.assert_close(generate(shared, None, guidance_scale=4.0, **kwargs), expected, atol=1e-4, rtol=1e-4)


def test_conditions_of_both_unets(shared: BootPIGXLPipeline) -> None:
    seen: dict[str, dict[str, Any]] = {}
    handles = [
        getattr(shared, name).register_forward_pre_hook(
            lambda _, args, kwargs, name=name: seen.__setitem__(name, kwargs), with_kwargs=True
        )
        for name in ("unet", "reference_unet")
    ]
    generate(shared, reference_prompt="a photo of a mug", height=96, width=64)
    for handle in handles:
        handle.remove()
    base, reference = seen["unet"], seen["reference_unet"]
    # Self and reference branch read SDXL's empty prompt, zeros; the third the caption.
    assert not base["encoder_hidden_states"][:2].any()
    assert base["encoder_hidden_states"][2].any()
    assert not base["added_cond_kwargs"]["text_embeds"][:2].any()
    assert base["added_cond_kwargs"]["time_ids"].tolist() == [[96, 64, 0, 0, 96, 64]] * 3
    assert reference["added_cond_kwargs"]["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]]
    embeds, _, pooled, _ = shared.encode_prompt("a photo of a mug", None, "cpu", 1, False)
    torch.testing.assert_close(reference["encoder_hidden_states"], embeds)
    torch.testing.assert_close(reference["added_cond_kwargs"]["text_embeds"], pooled)


def test_an_explicit_empty_prompt_is_encoded(shared: BootPIGXLPipeline) -> None:
    assert not torch.allclose(generate(shared), generate(shared, negative_prompt=""), atol=1e-3)


def test_embeds_in_place_of_text(shared: BootPIGXLPipeline) -> None:
    embeds, _, pooled, _ = shared.encode_prompt(PROMPT, None, "cpu", 1, False)
    given = generate(
        shared,
        prompt=None,
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=torch.zeros_like(embeds),
        negative_pooled_prompt_embeds=torch.zeros_like(pooled),
        reference_prompt_embeds=embeds,
        reference_pooled_prompt_embeds=pooled,
    )
    torch.testing.assert_close(given, generate(shared), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="reference_pooled_prompt_embeds"):
        generate(shared, reference_prompt_embeds=torch.zeros(1, 40, WIDTH + WIDTH // 2))


def test_callbacks_see_the_conditions(shared: BootPIGXLPipeline) -> None:
    seen: list[dict[str, tuple[int, ...]]] = []

    def callback(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        return {"add_text_embeds": torch.zeros_like(tensors["add_text_embeds"])}

    names = ["latents", "add_text_embeds", "add_time_ids"]
    steered = generate(shared, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    assert seen == [{"latents": (1, 16, 8, 8), "add_text_embeds": (1, WIDTH), "add_time_ids": (1, 6)}] * 2
    assert not torch.allclose(steered, generate(shared), atol=1e-4)


def test_in_half_precision_the_vae_runs_in_float32(folder: Path) -> None:
    pipeline = sdxl_pipeline(folder).to(torch.float16)
    ran: list[torch.dtype] = []
    for part in (pipeline.vae.encoder, pipeline.vae.decoder):
        part.register_forward_pre_hook(lambda module, _: ran.append(next(module.parameters()).dtype))
    out = pipeline(PROMPT, RED, num_inference_steps=1, output_type="np").images
    assert ran == [torch.float32] * 2
    assert pipeline.vae.dtype == torch.float16
    assert np.isfinite(out).all()


def test_batches_and_several_references(shared: BootPIGXLPipeline) -> None:
    shared_scheduler = shared.scheduler
    shared.scheduler = EulerDiscreteScheduler.from_config(shared.scheduler.config)
    try:
        refs = [[RED], [RED, Image.new("RGB", (64, 64), "blue")]]
        out = generate(shared, refs, prompt=[PROMPT, "a ball"], num_images_per_prompt=2)
    finally:
        shared.scheduler = shared_scheduler
    assert out.shape == (4, 16, 8, 8)
    assert torch.isfinite(out).all()


@pytest.mark.slow
def test_what_was_trained_goes_there_and_back(shared: BootPIGXLPipeline, folder: Path, tmp_path: Path) -> None:
    shared.save_bootpig(tmp_path)
    fresh = sdxl_pipeline(folder)
    assert fresh.load_bootpig(tmp_path)["prediction_type"] == "epsilon"
    assert torch.equal(generate(fresh), generate(shared))


def test_inpainting(shared: BootPIGXLPipeline) -> None:
    inpaint = BootPIGXLInpaintPipeline.from_pipe(shared)
    inpaint.set_progress_bar_config(disable=True)
    scene = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    out = inpaint(PROMPT, RED, scene, mask, num_inference_steps=2)
    outside = np.asarray(mask) == 0
    assert np.array_equal(np.asarray(out.images[0])[outside], np.asarray(scene)[outside])
    assert not np.array_equal(np.asarray(out.images[0]), np.asarray(scene))
