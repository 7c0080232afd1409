"""An SDXL base through encode and train: pooled embeds, sizes and its own empty prompt reach both UNets."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bootpig.models.core.bootpig import BootPIG
from bootpig.models.pipelines.bases import empty_prompt, load_base
from bootpig.models.pretrained.source import ModelError
from bootpig.models.pretrained.sources import resolve
from bootpig.stages.encode import Encode, EncodeConfig
from bootpig.stages.engine.contract import InputError, ReduceInput, Sample, UnitRef
from bootpig.stages.engine.shardio import pack
from bootpig.stages.pictures import encode_png
from bootpig.stages.train.config import TrainConfig
from bootpig.stages.train.grid import SampleGrid
from bootpig.stages.train.stage import Train
from tests.models.families import save_sd21, save_sdxl
from tests.models.networks import WIDTH
from tests.stages.train.training_data import FolderCheckpoints

PHRASES = (
    "a photo of a mug, on a table",
    "a photo of a teapot, here",
    "a photo of a mug, there",
    "a photo of a ball, up",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sdxl(tmp_path_factory.mktemp("xl") / "base")


@pytest.fixture(scope="module")
def data(base: Path) -> ReduceInput:
    """One unit of four samples, as encode makes it."""
    stage = Encode(EncodeConfig(model=str(base), reference_caption="object", device="cpu"), 0)
    stage.setup()
    generator = np.random.default_rng(0)
    samples = []
    for number, caption in enumerate(PHRASES):
        files = {
            f"{name}.png": encode_png(Image.fromarray(generator.integers(0, 255, (64, 64, 3), np.uint8)))
            for name in ("target", "reference0", "reference1")
        }
        samples.append(Sample(f"{number:016d}", 0, {"caption": caption, "object": "mug"}, files))
    shard = pack(stage.process(samples))
    stage.teardown()
    return ReduceInput(
        [UnitRef(0, hashlib.sha256(shard).hexdigest(), len(samples))],
        lambda _: shard,
        None,
        {"reference_caption": "object"},
    )


def recipe(model: Path, **changes: Any) -> TrainConfig:
    small = {
        "steps": 2,
        "global_batch_size": 4,
        "per_device_batch_size": 4,
        "learning_rate_reference": 1e-3,
        "learning_rate_base": 1e-3,
        "drop_reference": 0.5,
        "drop_reference_per": "sample",
        "mixed_precision": "no",
    }
    return TrainConfig(model=str(model), **{**small, **changes})


def test_both_unets_read_sdxls_conditions(
    base: Path, data: ReduceInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    forward = BootPIG.forward

    def spy(self: BootPIG, *arguments: Any, **options: Any) -> torch.Tensor:
        seen.append({"prompt_embeds": arguments[2], "reference_prompt_embeds": arguments[4], **options})
        return forward(self, *arguments, **options)

    monkeypatch.setattr(BootPIG, "forward", spy)
    monkeypatch.setattr(SampleGrid, "STEPS", 2)
    (tmp_path / "out").mkdir()
    stage = Train(recipe(base, drop_caption=0.5, sample_every=2), 0)
    stage.run(data, tmp_path / "out", FolderCheckpoints(tmp_path / "kept"), lambda *_: None)
    assert (tmp_path / "out" / "samples" / "step-000002.png").exists()
    dropped = kept = 0
    for call in seen:
        own, reference = call["added_cond_kwargs"], call["reference_added_cond_kwargs"]
        for conditions in (own, reference):
            assert conditions["text_embeds"].shape == (len(call["prompt_embeds"]), WIDTH)
            assert conditions["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]] * len(call["prompt_embeds"])
        for embeds, pooled in zip(call["prompt_embeds"], own["text_embeds"], strict=True):
            assert bool((embeds == 0).all()) == bool((pooled == 0).all()), "both are dropped, or none"
            dropped += bool((embeds == 0).all())
            kept += bool((embeds != 0).any())
        assert (reference["text_embeds"].abs().amax(1) > 0).all(), "the Reference UNet keeps its caption"
    assert dropped > 0 and kept > 0 and dropped + kept == 8

    trained = load_base(resolve("train.model", str(base)), torch.float32)
    info = trained.load_bootpig(tmp_path / "out" / "model")
    assert (info["reference_caption"], info["prediction_type"]) == ("object", "epsilon")
    untrained = load_base(resolve("train.model", str(base)), torch.float32)
    pairs = zip(trained.unet.parameters(), untrained.unet.parameters(), strict=True)
    moved = [not torch.equal(one, other) for one, other in pairs]
    assert any(moved) and not all(moved)


def test_accumulation_gives_the_same_weights(base: Path, data: ReduceInput, tmp_path: Path) -> None:
    weights = []
    for size in (4, 1):
        folder = tmp_path / str(size)
        folder.mkdir()
        stage = Train(recipe(base, per_device_batch_size=size, drop_caption=0.5), 0)
        stage.run(data, folder, FolderCheckpoints(folder / "kept"), lambda *_: None)
        weights.append(load_trained(base, folder / "model"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=1e-4)


def load_trained(base: Path, model: Path) -> dict[str, torch.Tensor]:
    pipeline = load_base(resolve("train.model", str(base)), torch.float32)
    pipeline.load_bootpig(model)
    return pipeline.unet.state_dict()


def test_the_empty_prompt_is_the_bases_own(base: Path, tmp_path: Path) -> None:
    large = load_base(resolve("f", str(base)), torch.float32)
    embeds, pooled = empty_prompt(large)
    assert embeds.shape == (40, WIDTH + WIDTH // 2) and not embeds.any()
    assert pooled is not None and pooled.shape == (WIDTH,) and not pooled.any()
    large.register_to_config(force_zeros_for_empty_prompt=False)
    embeds, pooled = empty_prompt(large)
    assert embeds.any() and pooled is not None and pooled.any()
    small = load_base(resolve("f", str(save_sd21(tmp_path / "sd"))), torch.float32)
    embeds, pooled = empty_prompt(small)
    assert embeds.any() and pooled is None
    expected = small.encode_prompt("", "cpu", 1, False)[0][0]
    torch.testing.assert_close(embeds, expected)


def test_a_base_that_does_not_fit_is_one_line(base: Path, data: ReduceInput, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^train\.model: .* expects pooled embeds of width 0, but encode made 32; use"
    ):
        Train(recipe(save_sd21(tmp_path / "sd")), 0).run(data, tmp_path, FolderCheckpoints(tmp_path), lambda *_: None)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ModelError, match=r"^f: '.*' is a FluxPipeline; use a Stable Diffusion 1\.x, 2\.x or XL"):
        load_base(resolve("f", str(tmp_path)), torch.float32)
