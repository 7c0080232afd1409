"""Short runs of a random `BootPIGPipeline`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor

PROMPT = "a photo of a mug, on a beach"


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def generate(pipeline: Any, prompt: Any = PROMPT, references: Any = None, **kwargs: Any) -> Tensor:
    """Latents of a short run, seed 3 unless a generator is given."""
    kwargs = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(3), **kwargs}
    return pipeline(prompt, references, output_type="latent", **kwargs).images


def memory_for(pictures: int, monkeypatch: pytest.MonkeyPatch, calls: int = 0) -> None:
    """Let every UNet run out of memory with a batch of more than `pictures`, after it has managed `calls` of them.

    A picture with a reference is three rows of the UNet's batch, one without is two.
    """
    forward = UNet2DConditionModel.forward
    managed = 0

    def limited(self: UNet2DConditionModel, sample: Tensor, *arguments: Any, **options: Any) -> Any:
        nonlocal managed
        result = forward(self, sample, *arguments, **options)
        if len(sample) > 3 * pictures:
            managed += 1
            if managed > calls:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    monkeypatch.setattr(UNet2DConditionModel, "forward", limited)
