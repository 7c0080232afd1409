"""A random base pipeline and random encode shards, small enough to train on in a test."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from bootpig.stages.engine.contract import ReduceInput, Sample, UnitRef
from bootpig.stages.engine.shardio import pack
from tests.models.tiny import save_tokenizer

CHANNELS, SIDE, TOKENS, WIDTH, REFERENCES = 4, 8, 16, 32, 3


def save_base(folder: Path, prediction_type: str = "v_prediction") -> Path:
    """A Stable Diffusion pipeline folder: 4-channel latents of 8×8, text 32 wide, 0.2 M parameters in the UNet."""
    torch.manual_seed(0)
    tokenizer = save_tokenizer(folder / "words", TOKENS)
    unet = UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", prediction_type=prediction_type, clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    shutil.rmtree(folder / "words")
    return folder


def write_units(
    folder: Path,
    counts: Sequence[int],
    *,
    channels: int = CHANNELS,
    side: int = SIDE,
    width: int = WIDTH,
    sizes: Sequence[tuple[int, int]] = (),
) -> ReduceInput:
    """Write one shard per unit in the format of encode. With `sizes` (height, width) of latents, the samples of a unit
    have them in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    units = []
    rows: dict[int, list[dict[str, Any]]] = {}
    for unit, count in enumerate(counts):
        samples = []
        rows[unit] = [{"id": "rejected", "status": "rejected", "height": None, "width": None}]
        for index in range(count):
            generator = torch.Generator().manual_seed(unit * 1000 + index)
            shape = sizes[index % len(sizes)] if sizes else (side, side)
            tensors = {
                "target": torch.randn(channels, *shape, generator=generator),
                "references": torch.randn(REFERENCES, channels, side, side, generator=generator),
                "prompt_embeds": torch.randn(TOKENS, width, generator=generator),
                "reference_prompt_embeds": torch.randn(TOKENS, width, generator=generator),
            }
            data = safetensors.torch.save({name: tensor.half() for name, tensor in tensors.items()})
            meta = {"caption": "A photo of a mug, on the table", "object": "mug"}
            samples.append(Sample(f"{unit:03d}-{index:03d}", unit, meta, {"safetensors": data}))
            # two pixels per latent, as the VAE of `save_base` has it
            row = {"id": samples[-1].id, "status": "ok", "height": 2 * shape[0], "width": 2 * shape[1]}
            rows[unit].append(row)
        data = pack(samples)
        (folder / f"{unit}.tar").write_bytes(data)
        units.append(UnitRef(unit, hashlib.sha256(data).hexdigest(), count))
    return ReduceInput(
        units,
        lambda unit: (folder / f"{unit}.tar").read_bytes(),
        None,
        {"reference_caption": "object"},
        rows.__getitem__,
        frozenset(("height", "width") if sizes else ()),
    )


class FolderCheckpoints:
    """`bootpig.stages.engine.contract.Checkpoints` in a plain folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[int] = []

    def save(self, step: int, folder: Path) -> None:
        shutil.copytree(folder, self.folder / f"checkpoint-{step:05d}")
        self.steps.append(step)

    def latest(self) -> tuple[int, Path] | None:
        folders = sorted(self.folder.glob("checkpoint-*"))
        return (int(folders[-1].name.removeprefix("checkpoint-")), folders[-1]) if folders else None


def curve(folder: Path) -> list[dict[str, float]]:
    """The lines of a training log with scores of the validation subjects."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "validation_dino" in line]
