"""References that are read without noise: against separate passes, how often they run, and when they are stale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from bootpig.models.core.reference_unet import record_features
from bootpig.models.core.rsa import self_attention_blocks
from bootpig.models.pipelines.clean_references import KeptFeatures
from bootpig.models.pipelines.guidance import Denoiser, ReferenceRows
from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.pipelines.sd_inpaint import BootPIGInpaintPipeline
from bootpig.models.pipelines.xl_inpaint import BootPIGXLInpaintPipeline
from tests.models.drawing import PROMPT, generate, picture
from tests.models.networks import embeds, latents, sd_pipeline, sdxl_pipeline, train_a_little

PROMPTS = ["a photo of a mug, on a beach", "a photo of a mug, in snow"]


@pytest.fixture(scope="module")
def clean(folder: Path) -> BootPIGPipeline:
    pipeline = sd_pipeline(folder, reference_timestep="zero")
    train_a_little(pipeline)
    return pipeline


@contextmanager
def counted(pipeline: Any) -> Iterator[Counter[str]]:
    """How often the Reference UNet runs, and how often a layer projects features of references, in the block."""
    counts: Counter[str] = Counter()
    reference = pipeline.reference_unet.register_forward_pre_hook(lambda *_: counts.update(["reference"]))
    keys = [
        block.attn1.to_k.register_forward_pre_hook(lambda *_: counts.update(["keys"]))
        for _, block in self_attention_blocks(pipeline.unet)
    ]
    yield counts
    for handle in (reference, *keys):
        handle.remove()


@torch.no_grad()
def test_each_step_sees_what_a_pass_at_timestep_zero_gives(clean: BootPIGPipeline) -> None:
    attends = [(0,), (2, 1), (0, 1, 2)]
    references, texts = latents(3, 5), embeds(3, 6)
    rows = ReferenceRows(references, texts, ["a", "b", "c"], attends, kept=KeptFeatures())
    clean.scheduler.set_timesteps(10)
    denoiser = Denoiser(clean.unet, clean.reference_unet, clean.scheduler, embeds(3, 1), embeds(3, 2), rows)
    for step, t in enumerate(clean.scheduler.timesteps[:3]):
        x = latents(3, 9 + step)

        def run(embeds: Tensor, with_reference: bool, x: Tensor = x, t: Tensor = t) -> Tensor:
            kwargs = None
            if with_reference:
                zero = torch.zeros((), dtype=torch.long)
                kwargs = {"reference": record_features(clean.reference_unet, references, zero, texts, attends)}
            return clean.unet(x, t, encoder_hidden_states=embeds, cross_attention_kwargs=kwargs).sample

        e_self, e_reference = run(denoiser.negative_prompt_embeds, False), run(denoiser.negative_prompt_embeds, True)
        e_text = run(denoiser.prompt_embeds, True)
        expected = e_self + 5.0 * (e_reference - e_self) + 7.5 * (e_text - e_reference)
        torch.testing.assert_close(denoiser.predict(x, t, step, 7.5, 5.0), expected, atol=1e-4, rtol=1e-4)


def test_the_reference_unet_runs_once_per_call_and_each_layer_projects_once(clean: BootPIGPipeline) -> None:
    layers = len(self_attention_blocks(clean.unet))
    with counted(clean) as counts:
        generate(clean, PROMPTS, [[picture(1)], [picture(1), picture(2)]], num_inference_steps=6)
    # the base's own keys at each step, the references' once
    assert counts == {"reference": 1, "keys": 6 * layers + layers}


def test_prepared_references_are_shared_by_calls_and_schedulers(clean: BootPIGPipeline, folder: Path) -> None:
    def off(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = pipe._reference_guidance_scale = 2.0
        return {}

    refs, subject = [picture(1), picture(2)], "a photo of a mug"
    expected = generate(clean, PROMPT, refs, reference_prompt=subject)
    prepared = clean.prepare_references(refs)
    torch.testing.assert_close(generate(clean, PROMPT, prepared, reference_prompt=subject), expected)
    with counted(clean) as counts:
        torch.testing.assert_close(generate(clean, PROMPT, prepared, reference_prompt=subject), expected)
        generate(clean, PROMPTS[1], prepared, reference_prompt=subject, callback_on_step_end=off)
        scheduler = clean.scheduler
        clean.scheduler = EulerDiscreteScheduler.from_config(scheduler.config)
        euler = generate(clean, PROMPT, prepared, reference_prompt=subject)
        clean.scheduler = scheduler
    assert counts["reference"] == 0
    assert not torch.allclose(euler, expected, atol=1e-2)
    layers = len(self_attention_blocks(clean.unet))
    kept = sum(tensor.nbytes for pair in prepared.kept.projected.values() for tensor in pair)
    assert len(prepared.kept.projected) == layers
    assert kept == sum(2 * 2 * 4 * n for n in sizes_of_features(clean)), "two references, keys and values, float32"
    assert prepared.kept.layers == (), "what has been projected is freed"


def sizes_of_features(pipeline: Any) -> list[int]:
    zero = torch.zeros((), dtype=torch.long)
    found = record_features(pipeline.reference_unet, latents(1), zero, embeds(1), [(0,)])
    return [feature.numel() for feature in found.layers]


def in_place(pipeline: BootPIGPipeline) -> None:
    with torch.no_grad():
        next(pipeline.reference_unet.parameters()).add_(0.1)


def replaced(pipeline: BootPIGPipeline) -> None:
    weight = next(iter(self_attention_blocks(pipeline.unet)))[1].attn1.to_k.weight
    weight.data = weight.data + 0.1


def trained_again(pipeline: BootPIGPipeline) -> None:
    train_a_little(pipeline, seed=8)


def cast(pipeline: BootPIGPipeline) -> None:
    pipeline.to(torch.bfloat16)


def scaled(pipeline: BootPIGPipeline) -> None:
    pipeline.register_to_config(key_scale=1.2)


def another_caption(pipeline: BootPIGPipeline) -> dict[str, str]:
    return {"reference_prompt": "a photo of a dog"}


@pytest.mark.parametrize("change", [in_place, replaced, trained_again, cast, scaled, another_caption])
def test_a_change_that_matters_is_noticed(folder: Path, change: Callable[[Any], dict[str, str] | None]) -> None:
    pipeline = sd_pipeline(folder, reference_timestep="zero")
    train_a_little(pipeline)
    prepared = pipeline.prepare_references(picture(1))
    before = generate(pipeline, PROMPT, prepared, reference_prompt="a photo of a mug")
    options = {"reference_prompt": "a photo of a mug", **(change(pipeline) or {})}
    with counted(pipeline) as counts:
        after = generate(pipeline, PROMPT, prepared, **options)
    assert counts["reference"] == 1
    assert not torch.equal(after.float(), before)
    fresh = type(prepared)(prepared.latents, prepared.keys, prepared.prompts)
    assert torch.equal(after, generate(pipeline, PROMPT, fresh, **options))


def test_a_scaled_lora_is_noticed(folder: Path) -> None:
    from peft import LoraConfig

    pipeline = sd_pipeline(folder, reference_timestep="zero")
    prepared = pipeline.prepare_references(picture(1))
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False), "one")
    for change in (lambda: None, lambda: pipeline.set_adapters("one", 0.5), pipeline.disable_lora):
        change()
        fresh = type(prepared)(prepared.latents, prepared.keys, prepared.prompts)
        assert torch.equal(generate(pipeline, PROMPT, prepared), generate(pipeline, PROMPT, fresh))
    pipeline.enable_lora()
    half = {"cross_attention_kwargs": {"scale": 0.5}}
    fresh = type(prepared)(prepared.latents, prepared.keys, prepared.prompts)
    assert torch.equal(generate(pipeline, PROMPT, prepared, **half), generate(pipeline, PROMPT, fresh, **half))


def test_autocast_is_noticed(folder: Path) -> None:
    pipeline = sd_pipeline(folder, reference_timestep="zero")
    prepared = pipeline.prepare_references(picture(1))
    with torch.autocast("cpu", torch.bfloat16):
        generate(pipeline, PROMPT, prepared)
    fresh = type(prepared)(prepared.latents, prepared.keys, prepared.prompts)
    assert torch.equal(generate(pipeline, PROMPT, prepared), generate(pipeline, PROMPT, fresh))


def test_the_choice_goes_with_the_model(clean: BootPIGPipeline, folder: Path, tmp_path: Path) -> None:
    expected = generate(clean, references=picture(1))
    clean.save_bootpig(tmp_path / "model", {"base": "toy"})
    loaded = sd_pipeline(folder)
    assert loaded.config.reference_timestep == "same", "models without the field are read as the paper does"
    info = loaded.load_bootpig(tmp_path / "model")
    assert info["reference_timestep"] == loaded.config.reference_timestep == "zero"
    assert torch.equal(generate(loaded, references=picture(1)), expected)
    clean.save_pretrained(tmp_path / "whole")
    again = BootPIGPipeline.from_pretrained(tmp_path / "whole")
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(generate(again, references=picture(1)), expected)
    assert BootPIGInpaintPipeline.from_pipe(clean).config.reference_timestep == "zero"
    with pytest.raises(ValueError, match="reference_timestep: 'one' is unknown; use same or zero"):
        sd_pipeline(folder, reference_timestep="one")


def test_reference_refresh_steps_says_that_it_has_no_effect(
    clean: BootPIGPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    expected = generate(clean, references=picture(1))
    assert torch.equal(generate(clean, references=picture(1), reference_refresh_steps=2), expected)
    assert "reference_refresh_steps: 2 has no effect; this model reads references once per call" in caplog.text


def test_sdxl_and_inpainting(folder: Path) -> None:
    xl = sdxl_pipeline(folder, reference_timestep="zero")
    train_a_little(xl)
    white = Image.new("L", (64, 64))
    white.paste(255, (16, 16, 40, 48))
    painting = {"image": picture(4), "mask_image": white}
    clean = sd_pipeline(folder, reference_timestep="zero")
    inpaint, xl_inpaint = BootPIGInpaintPipeline.from_pipe(clean), BootPIGXLInpaintPipeline.from_pipe(xl)
    for pipeline, options in ((xl, {}), (inpaint, painting), (xl_inpaint, painting)):
        pipeline.set_progress_bar_config(disable=True)

        def draw(references: Any, pipeline: Any = pipeline, options: dict[str, Any] = options) -> Tensor:
            generator = torch.Generator().manual_seed(3)
            drawn = pipeline(
                PROMPT, references, num_inference_steps=3, generator=generator, output_type="np", **options
            )
            return torch.from_numpy(drawn.images)

        prepared = pipeline.prepare_references(picture(1))
        expected = draw(picture(1))
        with counted(pipeline) as counts:
            torch.testing.assert_close(draw(prepared), expected)
            assert counts["reference"] == 1
            torch.testing.assert_close(draw(prepared), expected)
            assert counts["reference"] == 1
