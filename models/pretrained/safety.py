"""Says how far a picture is from unsafe content, with diffusers' safety checker of Stable Diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessor

from bootpig.models.pretrained.variants import variant_of

CARE = 0.01
"""Added to all concept scores of a picture that shows a concept of special care, as the checker itself does."""


class SafetyChecker:
    """The margin by which a picture passes a `StableDiffusionSafetyChecker`.

    The checker compares CLIP's embedding of a picture with those of unsafe concepts. It flags the picture if the cosine
    for one of them is above that concept's threshold (Rando et al., "Red-teaming the Stable Diffusion safety filter",
    2022).
    """

    def __init__(self, folder: str | Path, *, device: str = "cpu", batch_size: int = 32) -> None:
        """Load a folder with the checker, in float32. Without a processor's file in it, CLIP's own is used."""
        variant = variant_of(Path(folder), "transformers", pickles=True)
        model: Any = StableDiffusionSafetyChecker.from_pretrained(folder, variant=variant, dtype=torch.float32)
        self.model = model.eval().requires_grad_(False).to(device)
        side = self.model.config.vision_config.image_size
        self.processor: Any = (
            AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
            if (Path(folder) / "preprocessor_config.json").is_file()
            else CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        )
        self.batch_size = batch_size

    @torch.inference_mode()
    def margins(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """N RGB pictures of any size → N: below 0 for those that the checker flags, rounded to 3 decimals as there."""
        found = []
        for begin in range(0, len(images), self.batch_size):
            batch = [image.convert("RGB") for image in images[begin : begin + self.batch_size]]
            pixel_values = self.processor(images=batch, return_tensors="pt").pixel_values.to(self.model.device)
            embeds = self.model.visual_projection(self.model.vision_model(pixel_values).pooler_output)
            special = self._above(embeds, self.model.special_care_embeds, self.model.special_care_embeds_weights)
            concepts = self._above(embeds, self.model.concept_embeds, self.model.concept_embeds_weights)
            care = CARE * (special.round(3) > 0).any(axis=1, keepdims=True)
            found.append(-(concepts + care).round(3).max(axis=1))
        return np.concatenate(found)

    @staticmethod
    def _above(embeds: torch.Tensor, concepts: torch.Tensor, thresholds: torch.Tensor) -> NDArray[np.float64]:
        """How far each cosine is above its threshold: N×concepts."""
        normalized = torch.nn.functional.normalize
        cosines = normalized(embeds) @ normalized(concepts).T - thresholds
        return cosines.cpu().numpy().astype(np.float64)
