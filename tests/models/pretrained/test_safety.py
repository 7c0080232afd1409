"""The safety margin, compared with what diffusers' own checker flags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig

from bootpig.models.pretrained.inspection import judge_problems
from bootpig.models.pretrained.safety import SafetyChecker
from bootpig.models.pretrained.source import JUDGE, TRANSFORMER
from bootpig.models.pretrained.sources import resolve
from tests.models.tiny import save_clip

SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checker with random weights, and thresholds that some random pictures exceed."""
    folder = tmp_path_factory.mktemp("safety")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**small, "image_size": SIZE, "patch_size": 8}
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=small, vision_config=vision, projection_dim=16))
    checker.concept_embeds.data = torch.randn(17, 16)
    checker.special_care_embeds.data = torch.randn(3, 16)
    checker.save_pretrained(folder)
    values = _pixel_values(SafetyChecker(folder), images())
    embeds = checker.eval().visual_projection(checker.vision_model(values).pooler_output)
    normalized = torch.nn.functional.normalize
    for name, share in (("concept_embeds", 0.97), ("special_care_embeds", 0.8)):
        cosines = normalized(embeds) @ normalized(getattr(checker, name)).T
        getattr(checker, f"{name}_weights").data = torch.quantile(cosines.detach(), share, dim=0)
    checker.save_pretrained(folder)
    return folder


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    levels = [rng.integers(0, 256, 3) for _ in range(24)]
    noise = rng.integers(-60, 60, (24, 40, 40, 3))
    return [
        Image.fromarray(np.clip(level + own, 0, 255).astype(np.uint8)) for level, own in zip(levels, noise, strict=True)
    ]


def _pixel_values(checker: SafetyChecker, pictures: list[Image.Image]) -> torch.Tensor:
    values: torch.Tensor = checker.processor(images=pictures, return_tensors="pt").pixel_values
    return values


def test_below_0_is_what_the_checker_flags(folder: Path) -> None:
    pictures = images()
    checker = SafetyChecker(folder, batch_size=5)
    margins = checker.margins(pictures)
    own = StableDiffusionSafetyChecker.from_pretrained(folder).eval()
    _, flagged = own(_pixel_values(checker, pictures), np.ones((len(pictures), 2, 2, 3)))
    assert (margins < 0).tolist() == flagged
    assert 3 <= sum(flagged) <= 21, "both kinds"
    assert margins.shape == (24,) and margins.dtype == np.float64
    np.testing.assert_allclose(SafetyChecker(folder, batch_size=24).margins(pictures), margins, atol=2e-3)


def test_what_is_no_checker_is_one_line(folder: Path, tmp_path: Path) -> None:
    def problems(path: Path) -> list[str]:
        return judge_problems(resolve("score.safety", str(path), None, TRANSFORMER, JUDGE), "safety")

    assert problems(folder) == []
    (problem,) = problems(save_clip(tmp_path / "clip"))
    assert problem.startswith("score.safety: ") and "\n" not in problem and "StableDiffusionSafetyChecker" in problem
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "vit"}')
    (problem,) = problems(tmp_path / "other")
    assert "is a 'vit' model; a complete StableDiffusionSafetyChecker is needed" in problem
