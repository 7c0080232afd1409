"""Measures what the scan for NaN and infinity adds to the loading of a pipeline."""

from __future__ import annotations

import tempfile

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from benchmarks.timing import Measurement, seconds_in_turn
from bootpig.models.painters.loading import load_text_to_image
from bootpig.models.pretrained.finite import check_pipeline
from bootpig.models.pretrained.source import PROJECT, ModelSource

WIDTH = 160
"""Of the first block, half of Stable Diffusion's: 0.2 billion weights."""


def scan(rounds: int = 5) -> Measurement:
    """CPU seconds of the scan, and of loading the pipeline that it scans from float16 files into float32."""
    toy = PROJECT / "models" / "toy" / "checkpoints" / "stable-diffusion"
    with tempfile.TemporaryDirectory() as folder:
        pipeline = DiffusionPipeline.from_pretrained(toy)
        config = {**pipeline.unet.config, "block_out_channels": (WIDTH, 2 * WIDTH, 4 * WIDTH, 4 * WIDTH)}
        config |= {
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "attention_head_dim": 8,
        }
        pipeline.unet = UNet2DConditionModel.from_config(config)
        pipeline.to(torch.float16).save_pretrained(folder)
        source = ModelSource("synthesize.model", folder, folder)
        loaded = load_text_to_image(source, device=torch.device("cpu"), dtype=torch.float32)
        count = sum(parameter.numel() for parameter in loaded.unet.parameters())
        with torch.no_grad():
            scanned, loading = seconds_in_turn(
                lambda: check_pipeline(source, loaded),
                lambda: DiffusionPipeline.from_pretrained(
                    folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
                ),
                rounds,
            )
    return {
        "ratio": round(scanned / loading, 4),
        "value": round(scanned, 4),
        "baseline": round(loading, 4),
        "unit": f"CPU seconds of the scan and of loading; {count / 1e6:.0f} million weights, float16 files to float32, "
        "files in the page cache",
    }
