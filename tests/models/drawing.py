"""Short runs of a random `BootPIGPipeline`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
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
