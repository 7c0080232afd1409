"""Augments renders to look like output of a small diffusion model: blurred, blotchy, slightly off in colour."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional


def soften(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Blur, blotch and tint each picture by a random amount. About a third stay unchanged.

    Args:
        pictures: N×3×H×W float32 in [0, 1].
        rng: random generator; its state is advanced.

    Returns:
        The same shape and range.
    """
    count, _, height, width = pictures.shape

    def draw(low: float, high: float, *shape: int) -> torch.Tensor:
        values = rng.uniform(low, high, (count, *shape)).astype(np.float32)
        return torch.from_numpy(values).to(pictures.device)

    blurred = pictures
    for _ in range(2):  # two box filters of width 3: a Gaussian of 1.2 pixels
        blurred = functional.avg_pool2d(blurred, 3, stride=1, padding=1, count_include_pad=False)
    worn = torch.lerp(pictures, blurred, draw(0, 1, 1, 1, 1))
    blotches = torch.from_numpy(rng.standard_normal((count, 3, 16, 16), dtype=np.float32)).to(pictures.device)
    blotches = functional.interpolate(blotches, (height, width), mode="bilinear", align_corners=False)
    worn = worn + draw(0, 0.05, 1, 1, 1) * blotches
    worn = (worn - 0.5) * draw(0.85, 1.1, 1, 1, 1) + 0.5 + draw(-0.03, 0.03, 3, 1, 1)
    return torch.where(draw(0, 1, 1, 1, 1) < 0.3, pictures, worn).clamp(0, 1)


def pictures(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """NHWC uint8 → NCHW float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255
