"""Frozen weights in bfloat16: the same training, the same export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bootpig.models.core.bootpig import BootPIG
from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.stages.engine.contract import ReduceInput
from bootpig.stages.train import precision
from bootpig.stages.train.config import TrainConfig
from bootpig.stages.train.precision import FrozenInBfloat16
from bootpig.stages.train.stage import Train
from tests.stages.train.training_data import FolderCheckpoints, save_base, write_units


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReduceInput:
    return write_units(tmp_path_factory.mktemp("units"), (5, 4))


def model_of(base: Path, **trained: object) -> BootPIG:
    pipeline = BootPIGPipeline.from_pretrained(str(base))
    return BootPIG.from_unet(pipeline.unet, **trained)


@pytest.mark.parametrize("trained", [{}, {"train_reference": False}, {"train_base": "none"}])
def test_only_frozen_weights_change_and_come_back(base: Path, trained: dict[str, object]) -> None:
    model = model_of(base, **trained)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lowered = FrozenInBfloat16(model.unet, model.reference_unet)
    parameters = dict(model.named_parameters())
    low = {name for name, parameter in parameters.items() if parameter.dtype == torch.bfloat16}
    assert not any(parameters[name].requires_grad for name in low)
    frozen = sum(parameter.numel() for parameter in parameters.values() if not parameter.requires_grad)
    assert sum(parameters[name].numel() for name in low) > 0.9 * frozen
    assert model.unet.dtype == model.reference_unet.dtype == torch.float32, "pipelines make their latents in it"
    lowered.restore()
    after = model.state_dict()
    assert all(after[name].dtype == torch.float32 and torch.equal(after[name], before[name]) for name in before)


def test_a_training_is_the_same(base: Path, data: ReduceInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"steps": 4, "global_batch_size": 2, "per_device_batch_size": 2, "sample_every": 2, "warmup_steps": 0}
    fields |= {"learning_rate_reference": 1e-3, "learning_rate_base": 1e-3, "drop_reference": 0.3}
    config = TrainConfig(model=str(base), mixed_precision="bf16", **fields)
    made = []
    for name in ("lowered", "plain"):
        if name == "plain":
            monkeypatch.setattr(
                precision.FrozenInBfloat16, "__init__", lambda self, *_: setattr(self, "_originals", [])
            )
        (tmp_path / name).mkdir()
        Train(config, seed=0).run(data, tmp_path / name, FolderCheckpoints(tmp_path / "none"), lambda *_: None)
        files = sorted((tmp_path / name / "model").rglob("*.safetensors"))
        made.append({file.name: load_file(file) for file in files})
        assert len(list((tmp_path / name / "samples").iterdir())) == 2
    assert made[0].keys() == made[1].keys()
    for file, tensors in made[0].items():
        assert all(torch.equal(tensor, made[1][file][key]) for key, tensor in tensors.items()), file
        assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
