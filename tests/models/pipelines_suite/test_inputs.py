"""What a call takes: batches, numbers of images, kinds of output, embeds; and what does not fit, in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.models.drawing import picture
from tests.models.pipelines_suite.kinds import PROMPT, arguments, draw, embeds_of


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + seed) for seed in range(count)]


def test_a_batch_is_its_images_one_by_one(shared: Any) -> None:
    texts, references = [PROMPT, "a ball"], [[picture(1)], [picture(2)]]
    both = draw(shared, prompt=texts, reference_images=references, num_images_per_prompt=2, generator=generators(4))
    assert both.shape == (4, 16, 8, 8)
    for place in range(2):
        alone = draw(
            shared,
            prompt=texts[place],
            reference_images=references[place],
            num_images_per_prompt=2,
            generator=generators(2, 2 * place),
        )
        torch.testing.assert_close(both[2 * place : 2 * place + 2], alone, atol=1e-3, rtol=1e-3)


def test_kinds_of_output(shared: Any) -> None:
    arrays = draw(shared, output_type="np")
    assert arrays.shape == (1, 64, 64, 3)
    assert arrays.min() >= 0 and arrays.max() <= 1
    tensor = draw(shared, output_type="pt")
    np.testing.assert_allclose(tensor.permute(0, 2, 3, 1).numpy(), arrays, atol=1 / 255)
    (image,) = draw(shared, output_type="pil")
    assert isinstance(image, Image.Image)
    np.testing.assert_allclose(np.asarray(image) / 255, arrays[0], atol=1 / 255)
    as_tuple = shared(**arguments(shared, output_type="np"), return_dict=False)
    assert np.array_equal(as_tuple[0], arrays)


def test_the_same_call_draws_the_same(shared: Any) -> None:
    assert torch.equal(draw(shared), draw(shared))
    assert not torch.equal(draw(shared), draw(shared, generator=torch.Generator().manual_seed(4)))


def test_embeds_are_the_text(shared: Any) -> None:
    both = embeds_of(shared, [PROMPT, "blue"])
    prompt = {name: tensor[:1] for name, tensor in both.items()}
    negative = {f"negative_{name}": tensor[1:] for name, tensor in both.items()}
    reference = {f"reference_{name}": tensor for name, tensor in prompt.items()}
    given = draw(shared, prompt=None, **prompt, **negative, **reference)
    torch.testing.assert_close(given, draw(shared, negative_prompt="blue"), atol=1e-4, rtol=1e-4)


def test_long_embeds_on_both_sides(shared: Any) -> None:
    """Tools for long prompts give embeds of several times the text encoder's length."""
    long = {
        name: tensor.repeat(1, 2, 1) if tensor.ndim == 3 else tensor
        for name, tensor in embeds_of(shared, [PROMPT]).items()
    }
    negative = {f"negative_{name}": torch.zeros_like(tensor) for name, tensor in long.items()}
    out = draw(shared, prompt=None, reference_prompt=PROMPT, **long, **negative)
    assert torch.isfinite(out).all()


def test_latents_of_another_dtype_are_cast(shared: Any) -> None:
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(draw(shared, latents=noise.double()), draw(shared, latents=noise))


def shapes(kind: str) -> list[tuple[dict[str, Any], str]]:
    wide = 48 if kind.startswith("xl") else 32
    xl = kind.startswith("xl")

    def embeds(rows: int = 1, length: int = 40, width: int = wide) -> Tensor:
        return torch.zeros(rows, length, width)

    def given(name: str, tensor: Tensor) -> dict[str, Any]:
        pooled = {name.replace("prompt", "pooled_prompt"): torch.zeros(len(tensor), 32)} if xl else {}
        return {name: tensor, **pooled}

    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompt": None, **given("prompt_embeds", embeds(length=80)), "negative_prompt": ""}, "tokens beside"),
        ({**given("negative_prompt_embeds", embeds(length=80))}, "negative_prompt_embeds: 80 tokens beside"),
        ({"prompt": None, **given("prompt_embeds", embeds(width=24))}, "prompt_embeds: shape"),
        ({"prompt": None, **given("prompt_embeds", embeds()[0])}, "prompt_embeds: shape"),
        ({**given("negative_prompt_embeds", embeds(2))}, "negative_prompt_embeds: shape"),
        ({**given("reference_prompt_embeds", embeds(2))}, "reference_prompt_embeds: shape"),
        ({**given("reference_prompt_embeds", embeds(width=24))}, "reference_prompt_embeds: shape"),
        ({**given("prompt_embeds", embeds())}, "prompt and prompt_embeds"),
        ({"negative_prompt": "a", **given("negative_prompt_embeds", embeds())}, "negative_prompt and negative"),
        ({"latents": torch.zeros(2, 16, 8, 8)}, "latents: shape"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, "latents: shape"),
        ({"latents": torch.zeros(1, 16, 8, 12)}, "latents: shape"),
        ({"generator": generators(2)}, "generator: 2 for 1 images"),
        ({"generator": []}, "generator: 0 for 1 images"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt: 0"),
        ({"num_images_per_prompt": None}, "num_images_per_prompt: None"),
        ({"num_inference_steps": -1}, "num_inference_steps: -1"),
        ({"output_type": "jpg"}, "output_type: 'jpg'"),
        ({"prompt": []}, "prompt: an empty list"),
        ({"prompt": 3}, "prompt: give a text"),
        ({"prompt": ["a", 3]}, "prompt: give a text"),
        ({"height": 63}, "divisible by 8"),
    ]
    if xl:
        cases += [
            ({"pooled_prompt_embeds": torch.zeros(1, 32)}, "pooled_prompt_embeds: has no effect"),
            ({"prompt": None, "prompt_embeds": embeds()}, "pooled_prompt_embeds"),
            (
                {"prompt": None, "prompt_embeds": embeds(), "pooled_prompt_embeds": torch.zeros(2, 32)},
                "pooled_prompt_embeds: shape",
            ),
            (
                {"prompt": None, "prompt_embeds": embeds(), "pooled_prompt_embeds": torch.zeros(1, 16)},
                "time embedding vector",
            ),
        ]
    return cases


def test_what_does_not_fit_is_one_line_before_the_unet_runs(shared: Any, kind: str) -> None:
    ran: list[int] = []
    handle = shared.unet.register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        for changes, message in shapes(kind):
            with pytest.raises(ValueError, match=message) as error:
                draw(shared, **changes)
            assert "\n" not in str(error.value), changes.keys()
    finally:
        handle.remove()
    assert not ran
