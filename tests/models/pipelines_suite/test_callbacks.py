"""Callbacks do after each step what they do in diffusers: its official ones, plain functions, and an interruption."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, callbacks
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback, SDXLCFGCutoffCallback
from torch import Tensor

from tests.models.drawing import picture
from tests.models.pipelines_suite.kinds import INPAINTING, PROMPT, draw

OFFICIAL = [
    each
    for each in vars(callbacks).values()
    if inspect.isclass(each) and issubclass(each, PipelineCallback) and each is not PipelineCallback
]


class Rows:
    """Counts the rows of each UNet call."""

    def __init__(self, pipeline: Any) -> None:
        self.seen: list[int] = []
        self.handle = pipeline.unet.register_forward_pre_hook(lambda _, args: self.seen.append(len(args[0])))

    def __enter__(self) -> list[int]:
        return self.seen

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def cutoff(pipeline: Any, **when: Any) -> PipelineCallback:
    kind = SDXLCFGCutoffCallback if hasattr(pipeline, "text_encoder_2") else SDCFGCutoffCallback
    return kind(**{"cutoff_step_ratio": None, "cutoff_step_index": 0, **when})


@pytest.mark.parametrize("official", OFFICIAL, ids=lambda each: each.__name__)
def test_every_official_callback_runs_or_is_named_before_drawing(shared: Any, official: type[PipelineCallback]) -> None:
    callback = official(cutoff_step_ratio=None, cutoff_step_index=0)
    known = {"latents", *type(shared)._callback_tensor_inputs}
    runs = official.__name__ != "IPAdapterScaleCutoffCallback" and set(callback.tensor_inputs) <= known
    assert runs == (
        official is cutoff(shared).__class__ or (official is SDCFGCutoffCallback and "prompt_embeds" in known)
    )
    with Rows(shared) as rows:
        if runs:
            assert torch.isfinite(draw(shared, callback_on_step_end=callback)).all()
            assert rows == [3, 1], "after it, only the text branch"
        else:
            with pytest.raises(ValueError, match="callback_on_step_end") as error:
                draw(shared, callback_on_step_end=callback)
            assert "\n" not in str(error.value)
            assert rows == []


def test_from_the_cutoff_on_the_text_is_drawn_as_in_diffusers(shared: Any, kind: str) -> None:
    if kind in INPAINTING:
        pytest.skip("the ordinary pipeline is text-to-image")
    plain_class = StableDiffusionXLPipeline if kind == "xl" else StableDiffusionPipeline
    parts = {name: part for name, part in shared.components.items() if name != "reference_unet"}
    plain = plain_class(**parts, **({"add_watermarker": False} if kind == "xl" else {"requires_safety_checker": False}))
    plain.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 4, "output_type": "latent", "guidance_scale": 4.0}
    expected, ours = (
        pipeline(
            **given,
            generator=torch.Generator().manual_seed(3),
            callback_on_step_end=cutoff(shared, cutoff_step_index=1),
        ).images
        for pipeline in (plain, shared)
    )
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    whole = shared(**given, generator=torch.Generator().manual_seed(3)).images
    assert not torch.allclose(ours, whole, atol=1e-2)


def test_after_the_cutoff_each_image_keeps_its_own_text_and_reference(shared: Any) -> None:
    def images(prompts: list[str], first: int) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(first, first + len(prompts))]
        references = [[picture(seed)] for seed in range(first, first + len(prompts))]
        return draw(
            shared,
            prompt=prompts,
            reference_images=references,
            generator=generators,
            callback_on_step_end=cutoff(shared),
        )

    texts = [PROMPT, "a red ball"]
    with Rows(shared) as rows:
        both = images(texts, 0)
    assert rows == [6, 2]
    for place, text in enumerate(texts):
        torch.testing.assert_close(both[place : place + 1], images([text], place), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_function_turns_guidance_off_and_on_again(shared: Any, scale: float) -> None:
    def switch(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipeline._guidance_scale = {0: scale, 1: 6.0}.get(step, pipeline._guidance_scale)
        if step == 0:
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]  # as diffusers' guide writes it
        return tensors

    with Rows(shared) as rows:
        out = draw(
            shared,
            prompt=[PROMPT, "a ball"],
            reference_images=None,
            num_inference_steps=3,
            callback_on_step_end=switch,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        )
    assert rows == [4, 2, 4]
    assert torch.isfinite(out).all()


def test_a_guidance_scale_of_zero_in_the_call_still_leaves_the_text_out(shared: Any) -> None:
    idle = draw(shared, guidance_scale=0.0, callback_on_step_end=lambda *args: args[-1])
    assert torch.equal(idle, draw(shared, guidance_scale=0.0))
    with Rows(shared) as rows:
        draw(shared, guidance_scale=0.0, reference_guidance_scale=2.0)
    assert rows == [2, 2]


def test_several_callbacks_at_once(shared: Any) -> None:
    class Darker(PipelineCallback):
        tensor_inputs = ("latents",)

        def callback_fn(self, pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> Any:
            tensors["latents"] = tensors["latents"] * 0.5
            return tensors

    both = MultiPipelineCallbacks([cutoff(shared), Darker()])
    with Rows(shared) as rows:
        out = draw(shared, callback_on_step_end=both)
    assert rows == [3, 1]
    alone = draw(shared, callback_on_step_end=cutoff(shared))
    assert not torch.allclose(out, alone, atol=1e-4)


def test_embeds_of_a_callback_are_used(shared: Any) -> None:
    names = [name for name in type(shared)._callback_tensor_inputs if name != "add_time_ids"]

    def zeros(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.zeros_like(tensors[name]) for name in names if name != "latents"}

    steered = draw(shared, callback_on_step_end=zeros, callback_on_step_end_tensor_inputs=names)
    assert not torch.allclose(steered, draw(shared), atol=1e-3)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda tensors: None, "returned NoneType"),
        (lambda tensors: {"latents": tensors["latents"][:1]}, r"latents has shape \(1, "),
        (lambda tensors: {"prompt_embeds": tensors["prompt_embeds"][-1:]}, r"prompt_embeds has shape \(1, "),
        (
            lambda tensors: {"prompt_embeds": torch.cat([tensors["prompt_embeds"]] * 2)},
            r"prompt_embeds has shape \(4, ",
        ),
        (lambda tensors: {"prompt_embeds": tensors["prompt_embeds"][:, :5]}, r"prompt_embeds has shape \(2, 5, "),
        (lambda tensors: {"prompt_embeds": None}, "prompt_embeds is NoneType"),
    ],
)
def test_what_does_not_fit_is_one_line(shared: Any, returned: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"callback_on_step_end: {message}") as error:
        draw(
            shared,
            prompt=[PROMPT, "a ball"],
            reference_images=None,
            callback_on_step_end=lambda _, step, t, tensors: returned(tensors),
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("callback", [3, MultiPipelineCallbacks([])])
def test_what_is_no_callback(shared: Any, callback: object) -> None:
    if callback == 3:
        with pytest.raises(ValueError, match="int cannot be called"):
            draw(shared, callback_on_step_end=callback)
    else:
        assert torch.equal(draw(shared, callback_on_step_end=callback), draw(shared))


def test_an_unknown_tensor_is_one_line(shared: Any) -> None:
    with pytest.raises(ValueError, match=r"callback_on_step_end_tensor_inputs.*mask"):
        draw(shared, callback_on_step_end=lambda *args: {}, callback_on_step_end_tensor_inputs=["mask"])


def test_an_interruption_ends_the_drawing(shared: Any) -> None:
    def stop(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipeline._interrupt = step == 1
        return tensors

    with Rows(shared) as rows:
        out = draw(shared, num_inference_steps=5, callback_on_step_end=stop, output_type="np")
    assert rows == [3, 3]
    assert out.shape == (1, 64, 64, 3)
    with Rows(shared) as rows:
        draw(shared)
    assert rows == [3, 3], "the next call starts anew"


def test_latents_of_another_size(shared: Any, kind: str) -> None:
    def larger(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": tensors["latents"].repeat(1, 1, 1, 2)} if step == 0 else {}

    if kind in INPAINTING:
        with pytest.raises(ValueError, match="latents has shape"):
            draw(shared, callback_on_step_end=larger)
    else:
        assert draw(shared, callback_on_step_end=larger).shape == (1, 16, 8, 16)
