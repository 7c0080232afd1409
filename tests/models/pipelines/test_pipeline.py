"""What `BootPIGPipeline` draws on random weights, against separate passes written out here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image
from torch import Tensor

from bootpig.models.core.reference_unet import record_features
from bootpig.models.pipelines.bases import empty_prompt
from bootpig.models.pipelines.guidance import Denoiser, ReferenceRows, branch_weights
from bootpig.models.pipelines.sd import BootPIGPipeline
from tests.models.drawing import PROMPT, generate, picture
from tests.models.networks import as_base, embeds, latents, sd_pipeline, train_a_little


def separate(d: Denoiser, x: Tensor, t: Tensor, refs: Sequence[Sequence[int]], eta: float, eta_im: float) -> Tensor:
    """Equation 4 by three passes, each with its own Reference UNet pass, image by image."""
    rows = d.references
    assert rows is not None
    noised = rows.noised(d.scheduler, t, 0)
    images = []
    for image in range(len(x)):
        chosen = list(refs[image])

        def run(embeds: Tensor, with_reference: bool, image: int = image, chosen: list[int] = chosen) -> Tensor:
            kwargs = None
            if with_reference:
                features = record_features(
                    d.reference_unet, noised[chosen], t, rows.prompt_embeds[chosen], [range(len(chosen))]
                )
                kwargs = {"reference": features}
            one = slice(image, image + 1)
            return d.unet(x[one], t, encoder_hidden_states=embeds[one], cross_attention_kwargs=kwargs).sample

        e_self = run(d.negative_prompt_embeds, False)
        e_reference = run(d.negative_prompt_embeds, True)
        e_text = run(d.prompt_embeds, True)
        images.append(e_self + eta_im * (e_reference - e_self) + eta * (e_text - e_reference))
    return torch.cat(images)


@pytest.mark.parametrize(("eta", "eta_im"), [(7.5, 5.0), (1.0, 0.5), (0.5, 1.0), (0.0, 3.0), (2.0, 2.0), (0.0, 0.0)])
@torch.no_grad()
def test_guidance_is_three_separate_passes(shared: BootPIGPipeline, eta: float, eta_im: float) -> None:
    attends = [(0,), (2, 1), (0, 1, 2)]
    rows = ReferenceRows(latents(3, 5), embeds(3, 6), ["a", "b", "c"], attends)
    shared.scheduler.set_timesteps(10)
    t = shared.scheduler.timesteps[2]
    denoiser = Denoiser(shared.unet, shared.reference_unet, shared.scheduler, embeds(3, 1), embeds(3, 2), rows)
    x = latents(3, 9)
    expected = separate(denoiser, x, t, attends, eta, eta_im)
    rows_seen: list[int] = []
    handle = shared.unet.register_forward_pre_hook(lambda _, args: rows_seen.append(len(args[0])))
    torch.testing.assert_close(denoiser.predict(x, t, 0, eta, eta_im), expected, atol=1e-4, rtol=1e-4)
    handle.remove()
    assert rows_seen == [3 * sum(factor != 0 for factor in (1 - eta_im, eta_im - eta, eta))]


def test_branches_without_weight_are_left_out() -> None:
    assert branch_weights(7.5, 5.0) == {"self": -4.0, "reference": -2.5, "text": 7.5}
    assert branch_weights(3.0, 1.0) == {"reference": -2.0, "text": 3.0}
    assert branch_weights(3.0, 3.0) == {"self": -2.0, "text": 3.0}
    assert branch_weights(0.0, 2.0) == {"self": -1.0, "reference": 2.0}
    assert branch_weights(1.0, None) == {"text": 1.0}


def test_one_pass_of_each_unet_a_step(shared: BootPIGPipeline) -> None:
    batches: dict[str, list[int]] = {"unet": [], "reference_unet": [], "text_encoder": []}
    handles = [
        getattr(shared, name).register_forward_pre_hook(lambda _, args, name=name: batches[name].append(len(args[0])))
        for name in batches
    ]
    one, two = picture(1), picture(2)
    generate(
        shared, [PROMPT, "a ball, far away"], [[one, two], [two]], reference_prompt="a mug", num_images_per_prompt=2
    )
    for handle in handles:
        handle.remove()
    # 2 prompts x 2 images x 3 branches; 2 distinct references; 2 prompts, the empty one and the reference's.
    assert batches == {"unet": [12] * 3, "reference_unet": [2] * 3, "text_encoder": [4]}


def test_reference_features_serve_for_some_steps(shared: BootPIGPipeline) -> None:
    passes: list[int] = []
    handle = shared.reference_unet.register_forward_pre_hook(lambda *_: passes.append(1))
    every = generate(shared, references=picture(1), num_inference_steps=5)
    assert len(passes) == 5
    assert torch.equal(generate(shared, references=picture(1), num_inference_steps=5, reference_refresh_steps=1), every)
    passes.clear()
    fewer = generate(shared, references=picture(1), num_inference_steps=5, reference_refresh_steps=2)
    handle.remove()
    assert len(passes) == 3
    assert torch.isfinite(fewer).all()
    assert not torch.equal(fewer, every)


@pytest.mark.parametrize("kwargs", [{}, {"negative_prompt": "blue"}, {"guidance_rescale": 0.7}])
def test_without_references_it_is_stable_diffusion(shared: BootPIGPipeline, kwargs: dict[str, Any]) -> None:
    plain = as_base(shared)
    plain.set_progress_bar_config(disable=True)
    expected = generate(plain, guidance_scale=4.0, **kwargs)
    out = generate(shared, guidance_scale=4.0, **kwargs)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    assert not kwargs or not torch.allclose(out, generate(shared, guidance_scale=4.0), atol=1e-2)


SCHEDULERS = [
    UniPCMultistepScheduler,
    DDIMScheduler,
    PNDMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    DPMSolverMultistepScheduler,
]


@pytest.mark.parametrize("prediction_type", [pytest.param("epsilon", marks=pytest.mark.slow), "v_prediction"])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers(shared: BootPIGPipeline, kind: type[Any], prediction_type: str) -> None:
    own = shared.scheduler
    shared.scheduler = kind.from_config(own.config, prediction_type=prediction_type)
    try:
        out = generate(
            shared, references=picture(1), num_inference_steps=4, guidance_scale=2, reference_guidance_scale=2
        )
    finally:
        shared.scheduler = own
    assert torch.isfinite(out).all()
    assert out.std() > 0


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_reference_unet_sees_references_of_unit_variance(shared: BootPIGPipeline, kind: type[Any]) -> None:
    scheduler = kind.from_config(shared.scheduler.config)
    scheduler.set_timesteps(10)
    rows = ReferenceRows(latents(1, 5), embeds(1), ["a"], [(0,)])
    alphas = DDIMScheduler.from_config(shared.scheduler.config).alphas_cumprod
    for step, t in enumerate(scheduler.timesteps[:1]):
        noise = rows._noise("a", step)
        # Timesteps between two integers lie between their two mixtures.
        alpha = torch.from_numpy(np.interp(np.array([float(t)]), np.arange(1000), alphas.numpy())).float()
        expected = alpha.sqrt() * rows.latents + (1 - alpha).sqrt() * noise
        torch.testing.assert_close(rows.noised(scheduler, t, step), expected, atol=2e-2, rtol=0)


def test_reference_noise_hangs_on_step_and_key_alone() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    t, clean = scheduler.timesteps[0], latents(1, 5).expand(2, -1, -1, -1)
    first = ReferenceRows(clean, embeds(2), ["a", "b"], [(0, 1)]).noised(scheduler, t, 0)
    swapped = ReferenceRows(clean, embeds(2), ["b", "a"], [(0, 1)])
    assert torch.equal(swapped.noised(scheduler, t, 0), first.flip(0))
    later = swapped.noised(scheduler, t, 1)
    for one in (first[0], first[1], later[0]):
        assert not torch.allclose(one, later[1], atol=0.1)


def test_order_of_references_does_not_matter(shared: BootPIGPipeline) -> None:
    one = generate(shared, references=[picture(1), picture(2), picture(3)])
    other = generate(shared, references=[picture(3), picture(1), picture(2)])
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(one, generate(shared, references=[picture(1), picture(2)]), atol=1e-2)


def test_a_batch_is_its_images_one_by_one(shared: BootPIGPipeline) -> None:
    prompts, refs = [PROMPT, "a red ball"], [[picture(1)], [picture(2), picture(3)]]

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(4)]

    batch = generate(shared, prompts, refs, generator=generators(), num_images_per_prompt=2)
    for prompt in range(2):
        part = generate(
            shared,
            prompts[prompt],
            refs[prompt],
            generator=generators()[2 * prompt : 2 * prompt + 2],
            num_images_per_prompt=2,
        )
        torch.testing.assert_close(batch[2 * prompt : 2 * prompt + 2], part, atol=1e-3, rtol=1e-3)


def test_prepared_references_are_the_same_references(shared: BootPIGPipeline) -> None:
    prepared = shared.prepare_references([picture(1), picture(2)])
    direct = generate(shared, references=[picture(1), picture(2)])
    assert torch.equal(generate(shared, references=prepared), direct)
    both = generate(shared, [PROMPT, "a red ball"], prepared)
    apart = generate(shared, [PROMPT, "a red ball"], [[picture(1), picture(2)]] * 2)
    torch.testing.assert_close(both, apart, atol=1e-4, rtol=1e-4)


def test_reference_size_does_not_follow_the_result(shared: BootPIGPipeline) -> None:
    assert generate(shared, references=picture(1, (200, 120)), height=96, width=64).shape == (1, 16, 12, 8)
    assert shared.prepare_references(picture(1, (200, 120))).latents.shape == (1, 16, 8, 8)


def test_negative_prompt_takes_the_place_of_the_empty_one(shared: BootPIGPipeline) -> None:
    empty = generate(shared, references=picture(1))
    assert torch.equal(generate(shared, references=picture(1), negative_prompt=""), empty)
    assert not torch.allclose(generate(shared, references=picture(1), negative_prompt="blue"), empty, atol=1e-2)


def test_the_empty_prompt_is_the_one_of_training(shared: BootPIGPipeline) -> None:
    seen: list[Tensor] = []
    handle = shared.unet.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    generate(shared, references=picture(1), num_inference_steps=1)
    handle.remove()
    empty, _ = empty_prompt(shared)
    for branch in seen[0][:2]:  # without reference, and with it
        torch.testing.assert_close(branch, empty)
    assert not torch.allclose(seen[0][2], empty, atol=1e-2)


def test_embeds_in_place_of_text(shared: BootPIGPipeline) -> None:
    both = shared.encode_prompt([PROMPT, ""], "cpu", 1, False)[0]
    given = generate(
        shared,
        None,
        picture(1),
        prompt_embeds=both[:1],
        negative_prompt_embeds=both[1:],
        reference_prompt_embeds=both[:1],
    )
    torch.testing.assert_close(given, generate(shared, references=picture(1)), atol=1e-4, rtol=1e-4)


def test_clip_skip_is_for_the_prompt_alone(shared: BootPIGPipeline) -> None:
    text_encoder, layers = shared.text_encoder, len(shared.text_encoder.encoder.layers)
    ids = shared.tokenizer(PROMPT, padding="max_length", max_length=40, return_tensors="pt").input_ids
    with torch.no_grad():
        states = text_encoder(ids, output_hidden_states=True).hidden_states
        skipped = text_encoder.final_layer_norm(states[-2])
    caption = shared.encode_prompt(PROMPT, "cpu", 1, False)[0]
    expected = generate(shared, None, picture(1), prompt_embeds=skipped, reference_prompt_embeds=caption)
    out = generate(shared, references=picture(1), clip_skip=1)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(out, generate(shared, references=picture(1)), atol=1e-2)
    assert len(text_encoder.encoder.layers) == layers
    with pytest.raises(ValueError, match="clip_skip: 3 is not from 0 to 2"):
        generate(shared, references=picture(1), clip_skip=3)


def test_reference_caption_goes_by_the_model(folder: Path) -> None:
    pipeline = sd_pipeline(folder, reference_caption="object")
    train_a_little(pipeline)
    unasked = generate(pipeline, references=picture(1))
    assert torch.equal(unasked, generate(pipeline, references=picture(1), reference_prompt="a photo of a mug"))
    assert not torch.allclose(unasked, generate(pipeline, references=picture(1), reference_prompt=PROMPT), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(folder: Path, dtype: torch.dtype) -> None:
    pipeline = sd_pipeline(folder)
    train_a_little(pipeline)
    whole = generate(pipeline, references=[picture(1), picture(2)], guidance_scale=2, reference_guidance_scale=2)
    half = generate(
        pipeline.to(dtype), references=[picture(1), picture(2)], guidance_scale=2, reference_guidance_scale=2
    )
    assert half.dtype == dtype
    assert torch.nn.functional.cosine_similarity(half.float().flatten(), whole.flatten(), dim=0) > 0.99


def test_callbacks_steer(shared: BootPIGPipeline) -> None:
    seen = []

    def callback(
        pipeline: BootPIGPipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        seen.append((step, sorted(tensors), tuple(tensors["prompt_embeds"].shape)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    out = generate(
        shared,
        references=picture(1),
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    assert seen == [(step, ["latents", "prompt_embeds"], (1, 40, 32)) for step in range(3)]
    assert not out.any()


def test_outputs(shared: BootPIGPipeline) -> None:
    kwargs: dict[str, Any] = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    images = shared(PROMPT, picture(1), num_images_per_prompt=2, **kwargs).images
    assert [image.size for image in images] == [(64, 64)] * 2
    array, nsfw = shared(PROMPT, picture(1), output_type="np", return_dict=False, guidance_rescale=0.5, **kwargs)
    assert array.shape == (1, 64, 64, 3)
    assert nsfw is None


@pytest.mark.parametrize(
    ("prompt", "references", "kwargs", "message"),
    [
        (["a", "b"], [picture(1), picture(2)], {}, "2 images for 2 prompts"),
        (["a", "b"], picture(1), {}, "1 images for 2 prompts"),
        (["a", "b"], [[picture(1)]], {}, "for 2 prompts"),
        ("a", [], {}, "none of them empty"),
        (["a", "b"], [[picture(1)], []], {}, "needs at least one"),
        ("a", picture(1).convert("L"), {}, "mode L"),
        ("a", picture(1).resize((4, 4)), {}, "4x4 pixels"),
        ("a", Image.new("RGBA", (64, 64)), {}, "transparent everywhere"),
        ("a", np.full((64, 64, 3), np.nan, np.float32), {}, "NaN"),
        ("a", torch.zeros(64, 64), {}, "CHW"),
        ("a", None, {"reference_prompt": "b"}, "there are no reference_images"),
        ("a", picture(1), {"reference_refresh_steps": 0}, "reference_refresh_steps: 0 is below 1"),
        ("a", picture(1), {"reference_prompt": ["b", "c"]}, "reference_prompt: 2 for 1"),
        (["a", "b"], [[picture(1)]] * 2, {"negative_prompt": ["c"]}, "negative_prompt: 1 for 2"),
    ],
)
def test_bad_input_is_one_clear_error(
    shared: BootPIGPipeline, prompt: Any, references: Any, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        generate(shared, prompt, references, **kwargs)
    assert "\n" not in str(error.value)
