"""Training: config checks, exact resume, signals, export."""

from __future__ import annotations

import json
import os
import signal
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from pydantic import ValidationError
from safetensors.torch import load_file

from bootpig.models.core.bootpig import BootPIG
from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.pretrained.source import ModelError
from bootpig.stages.engine.contract import FatalError, InputError, Interrupted, Progress, ReduceInput
from bootpig.stages.train import grid, loop
from bootpig.stages.train.config import TrainConfig, micro_batch
from bootpig.stages.train.dataset import ShardLoader
from bootpig.stages.train.grid import SampleGrid
from bootpig.stages.train.loop import rate_factor
from bootpig.stages.train.meter import VARYING
from bootpig.stages.train.stage import Train
from tests.models.drawing import memory_for
from tests.stages.train.training_data import FolderCheckpoints, save_base, write_units


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SampleGrid, "STEPS", 2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReduceInput:
    return write_units(tmp_path_factory.mktemp("units"), (5, 4, 3))


def recipe(base: Path, **values: object) -> TrainConfig:
    small = {
        "steps": 6,
        "global_batch_size": 4,
        "per_device_batch_size": 4,
        "learning_rate_reference": 1e-3,
        "learning_rate_base": 1e-3,
        "log_every": 2,
        "drop_reference": 0.3,
        "drop_caption": 0.3,
    }
    return TrainConfig(model=str(base), **{**small, **values})


def train(
    config: TrainConfig,
    data: ReduceInput,
    folder: Path,
    checkpoints: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """Train into `folder` and return the exported weights."""
    folder.mkdir(parents=True, exist_ok=True)
    Train(config, seed=0).run(
        data, folder, FolderCheckpoints(checkpoints or folder / "none"), progress or (lambda *_: None)
    )
    reference = load_file(folder / "model/reference_unet/diffusion_pytorch_model.safetensors")
    return {**{f"reference.{k}": v for k, v in reference.items()}, **load_file(folder / "model/rsa.safetensors")}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class Killed(Exception):
    pass


CURRENT = {
    "reference_timestep": "zero",
    "timestep_distribution": "logit_normal",
    "min_snr_gamma": 5.0,
    "ema_decay": 0.9,
}
"""What a current recipe has and the paper's does not."""


@pytest.mark.parametrize(("stop", "more"), [("killed", {}), ("sigterm", {}), ("killed", CURRENT)])
def test_resume_is_exact(base: Path, data: ReduceInput, tmp_path: Path, stop: str, more: dict[str, object]) -> None:
    # The third step lies between two lines of the log.
    config = recipe(base, checkpoint_every=3, sample_every=2, schedule="linear_tail", warmup_steps=2, **more)
    straight = train(config, data, tmp_path / "straight")

    def progress(done: int, total: int, text: str) -> None:
        if done == 4 and stop == "killed":
            raise Killed
        if done == 2 and stop == "sigterm":
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Killed if stop == "killed" else Interrupted) as caught:
        train(config, data, tmp_path / "first", tmp_path / "kept", progress)
    assert signal.getsignal(signal.SIGTERM) == handler
    if stop == "sigterm":
        assert caught.value.code == 143
    assert not (tmp_path / "first/model").exists()
    names = [path.name for path in (tmp_path / "kept").iterdir()]
    assert names == ["checkpoint-00003" if stop == "killed" else "checkpoint-00002"]
    assert {path.suffix for path in (tmp_path / "kept" / names[0]).iterdir()} == {".safetensors", ".json", ".jsonl", ""}

    told: list[tuple[int, str]] = []
    resumed = train(
        config, data, tmp_path / "second", tmp_path / "kept", lambda done, _, text: told.append((done, text))
    )
    assert told[0][0] == int(names[0][-1])
    assert equal(straight, resumed)
    lines = [
        [{k: v for k, v in line.items() if k not in VARYING} for line in log(tmp_path / name)]
        for name in ("straight", "second")
    ]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == [2, 4, 6]
    for step in (2, 4, 6):
        name = f"samples/step-{step:06d}.png"
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert list((tmp_path / "second/tensorboard").glob("events.*"))


def test_equal_runs_give_equal_models(base: Path, data: ReduceInput, tmp_path: Path) -> None:
    config = recipe(base, steps=3)
    train(config, data, tmp_path / "one")
    # What only changes speed or the log changes no byte of the model.
    train(config.model_copy(update={"num_workers": 0, "log_every": 1, "sample_every": 1}), data, tmp_path / "two")
    for file in sorted((tmp_path / "one/model").rglob("*")):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "two/model" / file.relative_to(tmp_path / "one/model")).read_bytes()


def test_accumulation_gives_the_same_weights(base: Path, data: ReduceInput, tmp_path: Path) -> None:
    config = recipe(base, steps=3, mixed_precision="no", drop_reference_per="sample", drop_reference=0.5)
    whole = train(config, data, tmp_path / "whole")
    parts = train(config.model_copy(update={"per_device_batch_size": 2}), data, tmp_path / "parts")
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=0, atol=1e-4)


def test_out_of_memory_makes_smaller_parts_of_the_same_batch(
    base: Path, data: ReduceInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(base, steps=3, log_every=1)
    expected = train(config.model_copy(update={"per_device_batch_size": 2}), data, tmp_path / "small")
    forward, calls, limit = BootPIG.forward, [], 2

    def too_large(self, noisy_latents, *arguments, **options):
        calls.append(len(noisy_latents))
        result = forward(self, noisy_latents, *arguments, **options)
        if len(noisy_latents) > limit or (len(calls) == 5 and limit == 2):  # in the second part of the second step
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    monkeypatch.setattr(BootPIG, "forward", too_large)
    halved = train(config, data, tmp_path / "halved")
    assert calls == [4, 2, 2, 2, 2, *[1] * 8]
    assert [line["per_device_batch_size"] for line in log(tmp_path / "halved")] == [2, 1, 1]
    for name in expected:
        torch.testing.assert_close(halved[name], expected[name], rtol=0, atol=2e-3)
    limit = 0
    with pytest.raises(FatalError, match=r"^train: out of memory with a single sample; .*gradient_checkpointing"):
        train(config, data, tmp_path / "none")


@pytest.mark.parametrize(
    ("trainable", "moved"),
    [
        ({"reference": True, "base": "rsa"}, {"reference", "rsa"}),
        ({"reference": True, "base": "none"}, {"reference"}),
        ({"reference": False, "base": "rsa"}, {"rsa"}),
    ],
)
def test_only_what_is_trainable_moves(
    base: Path, data: ReduceInput, tmp_path: Path, trainable: dict, moved: set[str]
) -> None:
    before = load_file(base / "unet/diffusion_pytorch_model.safetensors")
    after = train(recipe(base, steps=2, trainable=trainable, drop_reference=0), data, tmp_path / "out")
    # Behind its last feature the exported Reference UNet is a copy of the base's part, which no feature depends on.
    read = BootPIGPipeline.from_pretrained(base).reference_unet.state_dict()
    after = {name: after[name] for name in after if name.removeprefix("reference.") in read or "reference" not in name}
    changed = {
        "reference" if name.startswith("reference.") else "rsa"
        for name, tensor in after.items()
        if not torch.equal(tensor, before[name.removeprefix("reference.")])
    }
    assert changed == moved
    info = json.loads((tmp_path / "out/model/bootpig.json").read_text())
    assert info["recipe"]["trainable"] == trainable


def test_model_loads_and_another_goes_on_from_it(base: Path, data: ReduceInput, tmp_path: Path) -> None:
    first = train(recipe(base, steps=2, key_scale=1.1), data, tmp_path / "first")
    model = tmp_path / "first/model"
    pipeline = BootPIGPipeline.from_pretrained(base)
    info = pipeline.load_bootpig(model)
    assert info["key_scale"] == pipeline.config.key_scale == 1.1
    assert (info["reference_caption"], info["prediction_type"]) == ("object", "v_prediction")
    assert str(tmp_path) not in json.dumps({**info, "base": ""})
    frozen = recipe(base, steps=1, init_from=str(model), learning_rate_reference=0, learning_rate_base=0)
    assert equal(first, train(frozen, data, tmp_path / "second"))
    assert Train(frozen, 0).models().keys() == {"model", "init_from"}


def test_clean_references_are_trained_saved_and_not_mixed(base: Path, data: ReduceInput, tmp_path: Path) -> None:
    same = train(recipe(base, steps=2), data, tmp_path / "same")
    zero = train(recipe(base, steps=2, reference_timestep="zero"), data, tmp_path / "zero")
    assert not equal(same, zero)
    pipeline = BootPIGPipeline.from_pretrained(base)
    assert pipeline.load_bootpig(tmp_path / "zero/model")["recipe"]["reference_timestep"] == "zero"
    assert pipeline.config.reference_timestep == "zero"
    Train(recipe(base, init_from=str(tmp_path / "zero/model"), reference_timestep="zero"), 0).models()
    for wanted, model in (("same", "zero"), ("zero", "same")):
        mixed = recipe(base, init_from=str(tmp_path / model / "model"), reference_timestep=wanted)
        with pytest.raises(ValueError, match=f"train.reference_timestep: '{wanted}', but .* trained with '{model}'"):
            Train(mixed, 0).models()


def test_the_choices_of_the_paper_leave_fingerprints_as_they_were(base: Path) -> None:
    assert not CURRENT.keys() & recipe(base).hashed().keys()
    assert CURRENT.items() <= recipe(base, **CURRENT).hashed().items()


def test_the_average_is_exported_and_saved(base: Path, data: ReduceInput, tmp_path: Path) -> None:
    """diffusers' average starts as the first update's weights, and then moves by 1 - decay, at most (1 + k) / (10 + k)
    at update k."""
    last = [train(recipe(base, steps=steps), data, tmp_path / str(steps)) for steps in (1, 2, 3)]
    config = recipe(base, steps=3, ema_decay=0.15, checkpoint_every=2)
    averaged = train(config, data, tmp_path / "out", tmp_path / "kept")
    for name, weight in averaged.items():
        one, two, three = (weights[name] for weights in last)
        expected = one
        for update, weights in ((2, two), (3, three)):
            decay = min(update / (9 + update), 0.15)
            expected = decay * expected + (1 - decay) * weights
        torch.testing.assert_close(weight, expected)
    assert not equal(averaged, last[2])
    kept = load_file(tmp_path / "kept/checkpoint-00002/average.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}


def test_it_learns(data: ReduceInput, tmp_path: Path) -> None:
    # From noise about noise only epsilon can be told: the velocity is independent of what the network sees.
    base = save_base(tmp_path / "base", "epsilon")
    config = recipe(base, steps=30, trainable={"base": "all"}, learning_rate_base=3e-3, log_every=10)
    train(config, data, tmp_path / "out")
    losses = [line["loss"] for line in log(tmp_path / "out")]
    assert losses[-1] < 0.9 * losses[0]
    assert json.loads((tmp_path / "out/model/bootpig.json").read_text())["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"channels": 8}, "expects latents with 4 channels, but encode made 8"),
        ({"width": 48}, "expects text embeds of width 32, but encode made 48"),
        ({"side": 7}, "needs latents divisible by 2, but encode made 7 x 7"),
    ],
)
def test_base_must_fit_the_data(base: Path, tmp_path: Path, shape: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=rf"^train.model: .* {message}; use the same model"):
        train(recipe(base), write_units(tmp_path / "units", (4,), **shape), tmp_path / "out")


def test_bad_input_is_one_line(base: Path, data: ReduceInput, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^train.model: '.*nowhere.safetensors' does not exist"):
        Train(recipe(tmp_path / "nowhere.safetensors"), 0).models()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/bootpig.json").write_text("{}")
    with pytest.raises(ModelError, match=r"^train.init_from: .* rsa.safetensors is missing"):
        train(recipe(base, init_from=str(tmp_path / "model")), data, tmp_path / "out")
    with pytest.raises(InputError, match=r"^train.global_batch_size: 64 is more than the 12 encoded samples"):
        train(recipe(base, global_batch_size=64), data, tmp_path / "out")


def test_checkpoint_of_another_run_is_refused(base: Path, data: ReduceInput, tmp_path: Path) -> None:
    train(recipe(base, steps=3, checkpoint_every=2), data, tmp_path / "one", tmp_path / "kept")
    with pytest.raises(InputError, match="checkpoint-00002 was made by another configuration"):
        train(recipe(base, steps=4), data, tmp_path / "two", tmp_path / "kept")
    other = replace(data, units=[replace(unit, digest="0" * 64) for unit in data.units])
    with pytest.raises(InputError, match="checkpoint-00002 was made by another configuration"):
        train(recipe(base, steps=3, checkpoint_every=2), other, tmp_path / "two", tmp_path / "kept")
    weights = tmp_path / "kept/checkpoint-00002/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="checkpoint-00002 is not readable"):
        train(recipe(base, steps=3, checkpoint_every=2), data, tmp_path / "two", tmp_path / "kept")


def test_a_loss_that_is_not_finite_ends_it(base: Path, data: ReduceInput, tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="the loss is nan near step"):
        train(
            recipe(base, steps=20, learning_rate_reference=1, learning_rate_base=1, eps=1e-30, weight_decay=1e6),
            data,
            tmp_path / "out",
        )


def test_config_says_every_problem(base: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainConfig(model="x", steps=0, learning_rate_base=-1, stepz=3)
    assert {error["loc"][0] for error in caught.value.errors()} == {"steps", "learning_rate_base", "stepz"}
    for wrong in ({"tail_to": 0.1}, {"warmup_steps": 6}, {"betas": (0.9, 1.0)}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            recipe(base, **wrong)
    with pytest.raises(ValidationError, match="nothing is trained"):
        recipe(base, trainable={"reference": False, "base": "none"})


def test_what_is_hashed(base: Path) -> None:
    hashed = recipe(base).hashed()
    assert {
        "seed",
        "steps",
        "global_batch_size",
        "key_scale",
        "mixed_precision",
        "shuffle_window",
        "trainable",
    } <= hashed.keys()
    speed = {
        "model",
        "revision",
        "init_from",
        "per_device_batch_size",
        "num_workers",
        "cache_bytes",
        "log_every",
        "gradient_checkpointing",
        "checkpoint_every",
        "sample_every",
        "validate_every",
        "num_processes",
        "trackers",
        "shard",
        "evaluate_every",
        "evaluation",
    }
    assert not speed & hashed.keys()
    lora = {"method", "lora_rank", "lora_alpha", "lora_targets"}
    as_before = {*CURRENT, "validation", "references_per_sample", "keep", "optimizer", *lora}  # at their defaults
    assert hashed.keys() | speed | as_before == TrainConfig.model_fields.keys()


def test_schedule(base: Path) -> None:
    constant = recipe(base, steps=100, warmup_steps=4)
    assert [rate_factor(step, constant) for step in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1, 1, 1]
    tail = recipe(base, steps=101, schedule="linear_tail", tail_from=0.5, tail_to=0.03)
    assert rate_factor(50, tail) == 1.0
    assert rate_factor(100, tail) == pytest.approx(0.03)
    assert rate_factor(75, tail) == pytest.approx(1 - 0.97 * 24.5 / 49.5)


def test_micro_batch() -> None:
    assert [micro_batch(*values) for values in ((32, 32), (32, 100), (32, 12), (7, 4), (6, 4))] == [32, 32, 8, 1, 3]


def test_weights_that_are_not_finite_are_never_saved(
    base: Path, data: ReduceInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.Trainer._update

    def poisoned(self, step, inputs):
        loss = real(self, step, inputs)
        if step == 3:
            with torch.no_grad():
                self.parameters[0].view(-1)[0] = float("nan")
        return loss

    monkeypatch.setattr(loop.Trainer, "_update", poisoned)
    config = recipe(base, steps=6, checkpoint_every=2, log_every=100)
    with pytest.raises(FatalError, match=r"contains NaN or infinity at step 4; lower the learning rates"):
        train(config, data, tmp_path / "out", tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["checkpoint-00002"]
    assert not (tmp_path / "out" / "model").exists()


def test_a_failing_grid_of_samples_is_only_a_warning(
    base: Path, data: ReduceInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = recipe(base, steps=4, sample_every=2)
    train(config, data, tmp_path / "plain")

    step, calls = DDIMScheduler.step, []

    def breaks(self, *arguments, **options):
        calls.append(1)
        if len(calls) % 2 == 0:
            raise RuntimeError("index 1001 is out of bounds")
        return step(self, *arguments, **options)

    monkeypatch.setattr(DDIMScheduler, "step", breaks)
    train(config, data, tmp_path / "failing")
    assert caplog.text.count("no sample pictures at step") == 2 and "index 1001 is out of bounds" in caplog.text
    weights = "model/rsa.safetensors"
    assert (tmp_path / "plain" / weights).read_bytes() == (tmp_path / "failing" / weights).read_bytes()


def test_a_grid_of_samples_is_drawn_in_smaller_batches_when_memory_runs_out(
    base: Path, data: ReduceInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def drawn() -> np.ndarray:
        pipeline = BootPIGPipeline.from_pretrained(base)
        samples = ShardLoader(data, seed=0, batch_size=4).first(SampleGrid.ROWS)
        return np.asarray(SampleGrid(pipeline, samples, 0)(), int)

    expected = drawn()
    memory_for(2, monkeypatch)
    assert np.abs(drawn() - expected).max() <= 1, "batches of another size can differ in the last bits"
    assert "out of memory; continuing with batches of 2" in caplog.text


def test_a_grid_puts_the_parts_back(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []

    class Part:
        device = torch.device("meta")

        def to(self, device: torch.device) -> None:
            moved.append(device.type)

    modes: list[bool] = []
    unet = types.SimpleNamespace(
        device=torch.device("cpu"), training=True, eval=lambda: modes.append(False), train=modes.append
    )
    pipeline = types.SimpleNamespace(components={"vae": Part(), "unet": Part()}, unet=unet, reference_unet=unet)
    with pytest.raises(RuntimeError), grid.sampling(pipeline):
        raise RuntimeError
    assert moved == ["cpu", "meta"] and modes == [False, False, True, True]

    class TooLarge(Part):
        def to(self, device: torch.device) -> None:
            super().to(device)
            raise torch.OutOfMemoryError(device.type)

    moved.clear()
    pipeline.components = {"vae": Part(), "text_encoder": TooLarge()}
    with pytest.raises(torch.OutOfMemoryError), grid.sampling(pipeline):
        raise AssertionError
    assert moved == ["cpu", "cpu", "meta", "meta"], "also if one of them did not fit, or did not come back"
