"""SD 1.5 and SD 2.1 at small widths: encode, train, load, generate. SDXL has its own test file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bootpig.models.pipelines.bases import load_base
from bootpig.models.pretrained.sources import resolve
from bootpig.stages.encode import Encode, EncodeConfig
from bootpig.stages.engine.contract import ReduceInput, Sample, UnitRef
from bootpig.stages.engine.shardio import pack
from bootpig.stages.pictures import encode_png
from bootpig.stages.train.config import TrainConfig
from bootpig.stages.train.grid import SampleGrid
from bootpig.stages.train.stage import Train
from tests.models.drawing import picture
from tests.models.networks import as_base, sd15_like, sd21_like, sd_pipeline
from tests.stages.train.training_data import FolderCheckpoints


def save(family: str, folder: Path) -> Path:
    """A base as an ordinary diffusers pipeline."""
    unet, prediction = (sd15_like(), "epsilon") if family == "sd15" else (sd21_like(), "v_prediction")
    as_base(sd_pipeline(folder, unet, prediction)).save_pretrained(folder / "base")
    return folder / "base"


def encoded(base: Path) -> ReduceInput:
    """One unit of four samples by the real encode stage."""
    stage = Encode(EncodeConfig(model=str(base), reference_caption="object"), seed=0)
    stage.setup()
    samples = [
        Sample(
            f"{index:03d}",
            0,
            {"caption": "A photo of a mug, on the table", "object": "mug"},
            {
                name: encode_png(picture(10 * index + place))
                for place, name in enumerate(("target.png", "reference0.png", "reference1.png"))
            },
        )
        for index in range(4)
    ]
    shard = pack(stage.process(samples))
    return ReduceInput([UnitRef(0, "0", 4)], lambda _: shard, None, {"reference_caption": "object"})


@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_every_family_is_trained_and_drawn_with(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SampleGrid, "STEPS", 2)
    base = save(family, tmp_path)
    config = TrainConfig(
        model=str(base),
        steps=2,
        global_batch_size=2,
        learning_rate_reference=1e-3,
        learning_rate_base=1e-3,
        drop_caption=0.5,
        sample_every=2,
        gradient_checkpointing=family == "sd21",
    )
    Train(config, seed=0).run(encoded(base), tmp_path / "run", FolderCheckpoints(tmp_path / "none"), lambda *_: None)
    info = json.loads((tmp_path / "run/model/bootpig.json").read_text())
    assert info["prediction_type"] == ("v_prediction" if family == "sd21" else "epsilon")
    assert info["reference_caption"] == "object"
    card = (tmp_path / "run/model/README.md").read_text()
    assert info["dataset"] in card and "| steps | `2` |" in card
    assert (tmp_path / "run/samples/step-000002.png").exists()

    pipeline: Any = load_base(resolve("base", str(base)), torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    kwargs: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    before = pipeline("a photo of a mug", picture(1), generator=torch.Generator().manual_seed(1), **kwargs).images
    pipeline.load_bootpig(tmp_path / "run/model")
    after = pipeline("a photo of a mug", picture(1), generator=torch.Generator().manual_seed(1), **kwargs).images
    assert torch.isfinite(after).all()
    assert not torch.allclose(before, after)
