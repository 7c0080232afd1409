"""What the training log tells: gradient norms, speed, memory, MFU; and nothing is saved once it is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from bootpig.models.memory import peak_memory
from bootpig.models.pretrained import sizes
from bootpig.stages.engine.contract import FatalError, ReduceInput
from bootpig.stages.train import loop
from bootpig.stages.train import meter as meters
from bootpig.stages.train.log import TrainingLog
from bootpig.stages.train.meter import Meter, peak_tflops, sample_tflop
from bootpig.stages.train.trackers import Trackers
from tests.stages.train.test_train import log, recipe, train
from tests.stages.train.training_data import save_base, write_units


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReduceInput:
    return write_units(tmp_path_factory.mktemp("units"), (5, 4, 3))


def test_a_line_has_norms_rates_speed_and_memory(
    base: Path, data: ReduceInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals: list[float] = []
    clip = Accelerator.clip_grad_norm_

    def clipped(self: Accelerator, parameters: Any, limit: float) -> Any:
        totals.append(float(clip(self, parameters, limit)))

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", clipped)
    told: list[str] = []
    config = recipe(base, steps=5, log_every=2, drop_reference=0.5, clip=1e-3, seed=1)
    train(config, data, tmp_path / "out", progress=lambda done, total, text: told.append(text))
    lines = log(tmp_path / "out")
    assert [line["step"] for line in lines] == [2, 4, 5]
    seen = [name for line in lines for name in line if name.startswith("grad_norm")]
    assert seen.count("grad_norm_base") == 3 and 0 < seen.count("grad_norm_reference") < 3, "a dropped one has none"
    for line in lines:
        total = totals[int(line["step"]) - 1]
        assert total > config.clip, "before clipping"
        both = math.hypot(line["grad_norm_base"], line.get("grad_norm_reference", 0.0))
        assert both == pytest.approx(total, rel=1e-5)
        assert (line["learning_rate_base"], line["learning_rate_reference"]) == (1e-3, 1e-3)
        assert line["samples_per_second"] > 0
        assert 10 * 2**20 < line["peak_memory_bytes"] <= peak_memory(torch.device("cpu"))
        assert "mfu" not in line, "nobody knows the peak of this processor"
    assert all(
        f"{line['grad_norm_base']:.3g}, {line['samples_per_second']:.1f} samples/s" in text
        for line, text in zip(lines, told[1:], strict=True)
    )


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", None),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GB200", 2500),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("AMD Instinct MI300X", 1307),
        ("Tesla T4", None),
        ("", None),
    ],
)
def test_the_peak_of_a_device_is_known_by_its_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


def test_operations_of_an_update() -> None:
    def passes(**values: object) -> float:
        config = recipe(Path("stabilityai/stable-diffusion-2-1-base"), drop_reference=0, **values)
        return sample_tflop(config, 512**2) / sizes.UNET_TFLOP

    full = passes()
    assert full == pytest.approx(2.2 + 3.0 + 0.4)
    assert passes(method="lora") < full < passes(trainable={"base": "all"})
    assert passes(trainable={"reference": False}) == pytest.approx(full - 2)
    assert passes(references_per_sample=(1, 3)) == pytest.approx(full + 3.4)
    assert passes(gradient_checkpointing=True) == full


def test_mfu_is_the_share_of_the_devices_peak(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "peak_tflops", lambda name: 100.0)
    now = [0.0]
    monkeypatch.setattr(meters.time, "monotonic", lambda: now[0])
    config = recipe(base, global_batch_size=8)
    meter = Meter(config, 64**2, torch.device("cpu"), processes=2)
    meter.restart(10)
    now[0] = 4.0
    read = meter.read(15)
    assert read["samples_per_second"] == 10.0
    assert read["mfu"] == pytest.approx(10 * sample_tflop(config, 64**2) / 200, abs=1e-4)
    now[0] = 5.0
    assert meter.read(16)["samples_per_second"] == 8.0, "since the last reading"
    single = recipe(base, mixed_precision="no")
    unknown = Meter(single, 64**2, torch.device("cpu"), 1)
    now[0] = 6.0
    assert "mfu" not in unknown.read(1), "the peaks are those of bfloat16"


def poison(update: Callable[..., torch.Tensor], where: str, at: int) -> Callable[..., torch.Tensor]:
    def poisoned(self: loop.Trainer, step: int, inputs: Any) -> torch.Tensor:
        loss = update(self, step, inputs)
        if step + 1 != at:
            return loss
        if where == "gradient":
            self._norms["base"] = torch.tensor(math.inf)
            return loss
        return loss * math.nan

    return poisoned


@pytest.mark.parametrize(
    ("where", "at", "message"),
    [("loss", 3, "the loss is nan near step 4"), ("gradient", 6, "gradient norm of the base network is inf at step 6")],
)
def test_what_is_not_finite_is_found_before_a_checkpoint_is_written(
    base: Path,
    data: ReduceInput,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    at: int,
    message: str,
) -> None:
    monkeypatch.setattr(loop.Trainer, "_update", poison(loop.Trainer._update, where, at))
    config = recipe(base, steps=8, checkpoint_every=2, log_every=3 if where == "gradient" else 100)
    with pytest.raises(FatalError, match=f"^train: .*{message}; lower the learning rates"):
        train(config, data, tmp_path / "out", tmp_path / "kept")
    last = 4 if where == "gradient" else 2
    assert sorted(path.name for path in (tmp_path / "kept").iterdir())[-1] == f"checkpoint-{last:05d}"
    assert not (tmp_path / "out" / "model").exists()


def test_a_value_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    written = TrainingLog(tmp_path, Trackers((), tmp_path, "", {}))
    written.line({"step": 1, "loss": 0.5, "validation_loss": math.nan, "reference_gain": -math.inf})
    written.close()
    assert log(tmp_path) == [{"step": 1, "loss": 0.5}]
