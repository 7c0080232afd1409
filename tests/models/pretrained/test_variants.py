"""Components whose weights exist only in a variant."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from bootpig.models.pretrained.variants import variant_components


def test_classes_that_nobody_has_are_left_to_the_pipeline(tmp_path: Path) -> None:
    AutoencoderKL().save_pretrained(tmp_path / "vae", variant="fp16")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "vae": ["diffusers", "AutoencoderKL"],
        "watermark": ["acme_watermark", "Watermark"],
        "guider": ["diffusers", "NoSuchGuider"],
        "odd": [3, 4],
    }
    for name in ("watermark", "guider", "odd"):
        (tmp_path / name).mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    found = variant_components(tmp_path, torch.float32)
    assert set(found) == {"vae"} and isinstance(found["vae"], AutoencoderKL)
