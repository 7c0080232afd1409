"""Editing pipelines with random weights: the picture and the prompt act, and the size is that of the picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline, QwenImageEditPlusPipeline
from PIL import Image
from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

from bootpig.models.painters.editing import Editor, editing_problem
from bootpig.models.pretrained.source import ModelError
from tests.models.painters import parts
from tests.models.painters.more_pipelines import flux2, klein_distilled, qwen_image
from tests.models.painters.pipelines import flux_dev


def kontext(folder: Path) -> Any:
    parts = flux_dev(folder).components
    return FluxKontextPipeline(**{name: part for name, part in parts.items() if part is not None})


def qwen_edit(folder: Path) -> Any:
    tokenizer = parts.tokenizer(length=1024)
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=28**2, max_pixels=56**2),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=tokenizer.chat_template,
    )
    return QwenImageEditPlusPipeline(**qwen_image(folder).components, processor=processor)


# Qwen-Image-Edit encodes its picture at a megapixel, whatever size is asked for
EDITORS = [
    pytest.param(kontext, id="Kontext"),
    pytest.param(klein_distilled, id="FLUX.2 klein"),
    pytest.param(flux2, id="FLUX.2"),
    pytest.param(qwen_edit, id="Qwen-Image-Edit", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("make", EDITORS)
def test_the_picture_and_the_prompt_act(make: Callable[[Path], Any], tmp_path: Path) -> None:
    pipeline = make(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    editor = Editor("view.model", pipeline)

    def edit(colour: str, prompt: str, seed: int = 0, size: tuple[int, int] = (96, 64)) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        found = editor.edit(Image.new("RGB", size, colour), prompt, generator, steps=1, guidance_scale=2.5)
        assert found is not None and found.size == size
        return np.asarray(found)

    first = edit("red", "the same mug here")
    assert (edit("red", "the same mug here") == first).all()
    assert (edit("blue", "the same mug here") != first).any()
    assert (edit("red", "another place altogether") != first).any()
    assert (edit("red", "the same mug here", seed=1) != first).any()


@pytest.mark.parametrize(
    "name",
    [
        "FluxKontextPipeline",
        "Flux2Pipeline",
        "Flux2KleinPipeline",
        "QwenImageEditPipeline",
        "QwenImageEditPlusPipeline",
        "StableDiffusionInstructPix2PixPipeline",
    ],
)
def test_editing_pipelines_are_known_by_their_signature(name: str) -> None:
    assert editing_problem(getattr(diffusers, name)) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("StableDiffusionPipeline", "does not take image"),
        ("StableDiffusionImg2ImgPipeline", "strength"),
        ("StableDiffusionInpaintPipeline", "mask_image"),
        ("FluxFillPipeline", "mask_image"),
    ],
)
def test_other_pipelines_are_refused(name: str, said: str) -> None:
    problem = editing_problem(getattr(diffusers, name))
    assert problem is not None and said in problem
    with pytest.raises(ModelError, match=r"view\.model"):
        Editor("view.model", object.__new__(getattr(diffusers, name)))
