"""Parts of a pipeline are shared, left out, saved and loaded as diffusers promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor

from tests.models.drawing import picture
from tests.models.pipelines_suite.kinds import PROMPT, build, draw, embeds_of, pipeline_class

Make = Callable[[], Any]


def plain(pipeline: Any) -> Any:
    """The ordinary diffusers pipeline around the same weights, with diffusers' own processors."""
    xl = hasattr(pipeline, "text_encoder_2")
    kind = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    parts = {name: part for name, part in pipeline.components.items() if name != "reference_unet"}
    made = kind(**parts, **({"add_watermarker": False} if xl else {"requires_safety_checker": False}))
    made.unet.set_attn_processor(AttnProcessor2_0())
    made.set_progress_bar_config(disable=True)
    return made


def assert_same(one: Tensor | np.ndarray, other: Tensor | np.ndarray) -> None:
    """Equal but for the last bits: on some CPUs, a sum depends on where the loaded weights lie in memory."""
    most = 1e-4 if isinstance(one, Tensor) else 1.01 / 255  # pictures may be rounded to the next of 256 levels
    torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=0, atol=most)


def text_to_image(pipeline: Any) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return pipeline(PROMPT, num_inference_steps=2, generator=generator, output_type="latent").images


@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0, "sliced"])
def test_from_pipe_leaves_the_original_as_it_is(fresh: Make, kind: str, words: Path, processor: Any) -> None:
    original = plain(fresh())
    if processor == "sliced":
        original.enable_attention_slicing(1)
    else:
        original.unet.set_attn_processor(processor())
    before, processors = text_to_image(original), dict(original.unet.attn_processors)
    made = pipeline_class(kind, words).from_pipe(original)
    made.set_progress_bar_config(disable=True)
    assert torch.isfinite(draw(made)).all()
    assert {name: id(p) for name, p in original.unet.attn_processors.items()} == {
        name: id(p) for name, p in processors.items()
    }
    assert torch.equal(text_to_image(original), before)
    pairs = zip(original.unet.parameters(), made.unet.parameters(), strict=True)
    assert all(one is other for one, other in pairs), "no weight is copied"


def test_from_pipe_keeps_dtypes(fresh: Make, kind: str, words: Path) -> None:
    original = fresh()
    original.unet.to(torch.bfloat16)
    original.reference_unet.to(torch.bfloat16)
    made = pipeline_class(kind, words).from_pipe(original)
    for pipeline in (original, made):
        dtypes = {pipeline.unet.dtype, pipeline.reference_unet.dtype}
        assert dtypes == {torch.bfloat16} and pipeline.vae.dtype == torch.float32
    asked = pipeline_class(kind, words).from_pipe(original, dtype=torch.bfloat16)
    assert asked.vae.dtype == torch.bfloat16, "asked for, it is cast, as in diffusers"


def test_two_pipelines_on_one_unet_keep_their_settings(fresh: Make, kind: str, words: Path) -> None:
    original = fresh()
    before = draw(original)
    other = pipeline_class(kind, words).from_pipe(original, key_scale=1.5)
    other.set_progress_bar_config(disable=True)
    assert other.unet is original.unet
    assert not torch.allclose(draw(other), before, atol=1e-4)
    assert torch.equal(draw(original), before)


def test_components_go_round(fresh: Make, kind: str, words: Path) -> None:
    original = fresh()
    before = draw(original)
    watermark = {"add_watermarker": False} if kind.startswith("xl") else {}
    again = pipeline_class(kind, words)(**original.components, **watermark)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again), before)


def test_the_single_file_and_the_package_share_networks(words: Path) -> None:
    original = build("sd", words)
    before = draw(original)
    alone = pipeline_class("alone", words).from_pipe(original)
    alone.set_progress_bar_config(disable=True)
    assert torch.equal(draw(alone), before)
    assert torch.equal(draw(original), before)


def test_saved_and_loaded_it_draws_the_same(fresh: Make, kind: str, words: Path, tmp_path: Path) -> None:
    made = pipeline_class(kind, words)
    original = fresh()
    expected = draw(original, output_type="np")
    original.save_pretrained(tmp_path / "plain")
    original.save_pretrained(tmp_path / "variant", variant="fp16")
    for folder, options in (
        ("plain", {}),
        ("variant", {"variant": "fp16"}),
        ("plain", {"device_map": "balanced"}),
        ("plain", {"low_cpu_mem_usage": False}),
    ):
        loaded = made.from_pretrained(tmp_path / folder, **options)
        loaded.set_progress_bar_config(disable=True)
        assert_same(draw(loaded, output_type="np"), expected)
    assert (tmp_path / "variant/reference_unet/diffusion_pytorch_model.fp16.safetensors").is_file()
    assert draw(original, output_type="np").tobytes() == expected.tobytes(), "saving changes nothing"
    half = made.from_pretrained(tmp_path / "plain", torch_dtype=torch.bfloat16)
    dtypes = {part.dtype for part in half.components.values() if isinstance(part, torch.nn.Module)}
    assert dtypes == {torch.bfloat16}
    mixed = made.from_pretrained(tmp_path / "plain", torch_dtype={"unet": torch.bfloat16, "default": torch.float32})
    with pytest.raises(ValueError, match="cast both alike"):
        draw(mixed)


def test_only_the_text_encoders(fresh: Make, kind: str, words: Path, tmp_path: Path) -> None:
    made, original = pipeline_class(kind, words), fresh()
    expected = embeds_of(original, [PROMPT])
    original.save_pretrained(tmp_path / "whole")
    texts = {name: part if name.startswith(("text", "token")) else None for name, part in original.components.items()}
    built = made(**texts, **({"add_watermarker": False} if kind.startswith("xl") else {}))
    built.save_pretrained(tmp_path / "texts")
    left_out = {name: None for name, part in texts.items() if part is None}
    for pipeline in (
        built,
        made.from_pretrained(tmp_path / "whole", **left_out),
        made.from_pretrained(tmp_path / "texts", unet=None, vae=None, scheduler=None),
    ):
        assert pipeline.unet is None and pipeline.reference_unet is None
        for name, tensor in embeds_of(pipeline, [PROMPT]).items():
            assert_same(tensor, expected[name])
        with pytest.raises(ValueError, match="unet: this pipeline was made without it"):
            draw(pipeline)


def test_only_the_networks(fresh: Make, kind: str, words: Path, tmp_path: Path) -> None:
    original = fresh()
    original.save_pretrained(tmp_path)
    names = [name for name in original.components if name.startswith(("text", "token"))]
    drawing = pipeline_class(kind, words).from_pretrained(tmp_path, **dict.fromkeys(names))
    drawing.set_progress_bar_config(disable=True)
    prompt = embeds_of(original, [PROMPT])
    negative = {f"negative_{name}": torch.zeros_like(tensor) for name, tensor in prompt.items()}
    changes = {"prompt": None, **prompt, **negative}
    assert_same(draw(drawing, **changes), draw(original, **changes))
    with pytest.raises(ValueError, match="text_encoder"):
        draw(drawing)


def test_optional_parts_stay_none(fresh: Make, kind: str, words: Path, tmp_path: Path) -> None:
    original = fresh()
    names = [name for name in original._optional_components if not name.startswith(("text", "token"))]
    for name in names:
        setattr(original, name, None)
    original.save_pretrained(tmp_path)
    loaded = pipeline_class(kind, words).from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert all(getattr(loaded, name) is None for name in names)
    assert_same(draw(loaded, reference_images=None), draw(original, reference_images=None))
    with pytest.raises(ValueError, match="reference_unet: this pipeline was made without it"):
        draw(loaded)


def test_cast_and_moved(fresh: Make) -> None:
    pipeline = fresh()
    whole = draw(pipeline, guidance_scale=2.0, reference_guidance_scale=2.0)
    half = draw(pipeline.to("cpu", torch.bfloat16), guidance_scale=2.0, reference_guidance_scale=2.0)
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float().flatten(), whole.flatten(), dim=0) > 0.98
    back = draw(pipeline.to(torch.float32), reference_images=picture(1))
    assert back.dtype == torch.float32
