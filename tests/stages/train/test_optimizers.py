"""AdamW in 8 bits: it trains, resumes exactly, and its state is about a quarter."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from bootpig.stages.engine.contract import InputError, ReduceInput
from bootpig.stages.train.config import TrainConfig
from bootpig.stages.train.optimizers import missing_package
from bootpig.stages.train.stage import Train
from tests.stages.train.training_data import FolderCheckpoints, save_base, write_units


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReduceInput:
    return write_units(tmp_path_factory.mktemp("units"), (4,))


def recipe(base: Path, **values: object) -> TrainConfig:
    rates = {"learning_rate_reference": 1e-3, "learning_rate_base": 1e-3}
    small = {
        "steps": 3,
        "global_batch_size": 2,
        "per_device_batch_size": 2,
        "checkpoint_every": 2,
        "drop_reference": 0.0,
    }
    return TrainConfig(model=str(base), **{"optimizer": "adamw_8bit", **small, **rates, **values})


def train(config: TrainConfig, data: ReduceInput, folder: Path, kept: Path, stop: int = 0) -> dict[str, torch.Tensor]:
    """Train into `folder`, up to step `stop` if that is given. Returns all exported weights."""
    folder.mkdir()

    def progress(done: int, total: int, text: str) -> None:
        if stop and done == stop:
            raise InterruptedError

    Train(config, seed=0).run(data, folder, FolderCheckpoints(kept), progress)
    files = sorted((folder / "model").rglob("*.safetensors"))
    return {f"{file.name}.{name}": tensor for file in files for name, tensor in load_file(file).items()}


def test_8_bits_train_resume_exactly_and_need_a_quarter(base: Path, data: ReduceInput, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = recipe(base, ema_decay=0.9, log_every=1)
    straight = train(config, data, tmp_path / "straight", tmp_path / "kept-8")
    with pytest.raises(InterruptedError):
        train(config, data, tmp_path / "first", tmp_path / "kept", stop=3)
    resumed = train(config, data, tmp_path / "second", tmp_path / "kept")
    assert resumed.keys() == straight.keys()
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)

    full = train(recipe(base, ema_decay=0.9, optimizer="adamw"), data, tmp_path / "full", tmp_path / "kept-32")
    moved = [(straight[name] - full[name]).abs().max() for name in full]
    assert 0 < max(moved) < 2e-3, "another optimizer, and nearly the same updates"

    with pytest.raises(InputError, match="was made by another configuration"):
        train(recipe(base, ema_decay=0.9, optimizer="adamw"), data, tmp_path / "other", tmp_path / "kept-8")

    states = [load_file(tmp_path / name / "checkpoint-00002/optimizer.safetensors") for name in ("kept-8", "kept-32")]
    large = {name.removesuffix(".exp_avg") for name, tensor in states[1].items() if tensor.numel() >= 4096}
    sizes = [sum(t.nbytes for name, t in state.items() if name.rpartition(".")[0] in large) for state in states]
    assert 0.25 < sizes[0] / sizes[1] < 0.27


def test_a_missing_package_is_one_line(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else find(name, *more)
    )
    assert missing_package(recipe(base, optimizer="adamw")) is None
    (line,) = Train(recipe(base), 0).check_models()
    assert line == ("train.optimizer: adamw_8bit → its package is not installed; pip install 'bootpig[8bit]'")


def test_it_is_not_sharded(base: Path) -> None:
    with pytest.raises(ValidationError, match=r"shard: fsdp does not work with optimizer adamw_8bit; set optimizer to"):
        recipe(base, shard="fsdp")
