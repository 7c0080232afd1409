"""Experiment trackers: what they get, offline; none of them ends a training; what is missing is one line before."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from PIL import Image
from pydantic import ValidationError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bootpig.stages.engine.contract import InputError, ReduceInput
from bootpig.stages.train import tracker_logins, trackers
from bootpig.stages.train.stage import Train
from bootpig.stages.train.tracker_logins import tracker_problems
from bootpig.stages.train.trackers import Trackers, flat
from tests.stages.train.test_train import log, recipe, train
from tests.stages.train.training_data import save_base, write_units

SECRET = "hunter2-hunter2"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReduceInput:
    return replace(write_units(tmp_path_factory.mktemp("units"), (5, 4, 3)), run="20261127-toy")


class Kept:
    """A tracker that keeps what it gets. `fails` may raise at a step; -1 is the start."""

    def __init__(self, fails: Callable[[int], None] = lambda step: None) -> None:
        self.fails = fails
        self.settings: dict[str, Any] = {}
        self.lines: dict[int, dict[str, Any]] = {}
        self.finished = False

    def start(self) -> None:
        self.fails(-1)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, Any], step: int) -> None:
        self.fails(step)
        self.lines[step] = values

    def finish(self) -> None:
        self.finished = True


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "train.trackers" in record.getMessage()]


def test_a_tracker_that_fails_in_the_middle_of_a_training_is_one_warning(
    base: Path,
    data: ReduceInput,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(step: int) -> None:
        if step in (1, 3):
            raise OSError(28, f"no space for https://me:{SECRET}@tracker/api and {SECRET}")

    monkeypatch.setenv("TRACKER_TOKEN", SECRET)
    sink = Kept(fails)
    monkeypatch.setattr(trackers, "_make", lambda *_: sink)
    train(recipe(base, steps=4, log_every=1, trackers=("mlflow",)), data, tmp_path / "out")
    (warning,) = warnings(caplog)
    assert warning.startswith(
        "train.trackers: mlflow lacks values of this training, which goes on (OSError: [Errno 28]"
    )
    assert SECRET not in warning
    lines = {int(line["step"]): line for line in log(tmp_path / "out")}
    assert list(lines) == [1, 2, 3, 4] and list(sink.lines) == [2, 4] and sink.finished
    assert sink.lines[4] == {f"train/{name}": value for name, value in lines[4].items() if name != "step"}
    assert (sink.settings["run"], sink.settings["train.steps"]) == ("20261127-toy", 4)
    assert sink.settings["encode.reference_caption"] == "object"
    assert not (tmp_path / "out" / "tensorboard").exists()


@pytest.mark.parametrize("error", [RuntimeError("no network"), SystemExit(1)])
def test_a_tracker_that_does_not_start_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def fails(step: int) -> None:
        raise error

    monkeypatch.setattr(trackers, "_make", lambda *_: Kept(fails))
    sent = Trackers(("wandb",), tmp_path, "run", {})
    for step in range(3):
        sent.line({"step": step, "loss": 0.5})
    sent.close()
    assert len(warnings(caplog)) == 1 and "it did not start" in warnings(caplog)[0]


def test_a_tracker_that_hangs_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(trackers, "WAITING", 2)
    free = threading.Event()
    monkeypatch.setattr(trackers, "_make", lambda *_: Kept(lambda step: free.wait(60) and None))
    sent = Trackers(("wandb",), tmp_path, "run", {})
    for step in range(5):
        sent.line({"step": step, "loss": 0.5}, patient=step > 2)
    sent.close()
    free.set()
    assert len(warnings(caplog)) == 1 and warnings(caplog)[0].endswith("(it is too slow)")


def test_settings_hold_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_KEY", SECRET)
    found = flat(
        {
            "run": "r",
            "train": {"model": f"/models/{SECRET}", "betas": [0.9, 0.99], "ema_decay": None, "lora": {"rank": 4}},
            "models": {"model": {"source": f"https://me:{SECRET}x@host/base", "list": [SECRET]}},
        }
    )
    assert found == {
        "run": "r",
        "train.model": "/models/***",
        "train.betas": "[0.9, 0.99]",
        "train.ema_decay": None,
        "train.lora.rank": 4,
        "models.model.source": "https://***@host/base",
        "models.model.list": '["***"]',
    }


def test_what_a_tracker_lacks_is_one_line_before_any_work(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_logins, "PACKAGES", {"tensorboard": ("tensorboard",), "wandb": ("no-such-package",)})
    with pytest.raises(
        InputError, match=r"^train\.trackers: wandb needs a package: pip install 'bootpig\[wandb\]'; or"
    ):
        Train(recipe(base, trackers=("tensorboard", "wandb")), 0).check_ready()
    Train(recipe(base), 0).check_ready()
    with pytest.raises(ValidationError, match="trackers: wandb, wandb names one of them twice"):
        recipe(base, trackers=("wandb", "wandb"))
    assert "trackers" not in recipe(base, trackers=()).hashed()


def test_wandb_without_a_login_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert tracker_problems(["wandb"]) == []
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    wandb.teardown()
    (line,) = tracker_problems(["wandb"])
    assert line.startswith("train.trackers: wandb has no login: run `wandb login`, set WANDB_API_KEY, or")

    def refused(**_: object) -> bool:
        raise ValueError("WANDB_API_KEY invalid:\nhas 5 characters")

    monkeypatch.setattr(wandb, "login", refused)
    (line,) = tracker_problems(["wandb"])
    assert "cannot log in (ValueError: WANDB_API_KEY invalid: has 5 characters)" in line
    wandb.teardown()


def test_mlflow_without_its_server_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@127.0.0.1:9")
    (line,) = tracker_problems(["mlflow"])
    assert line.startswith("train.trackers: mlflow cannot use MLFLOW_TRACKING_URI (")
    assert "\n" not in line and SECRET not in line
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert tracker_problems(["mlflow"]) == []


def send(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    PartialState(cpu=True)  # as in a training; accelerate's trackers need it
    with caplog.at_level(logging.WARNING):
        sent = Trackers((name,), folder, "20261127-toy", {"train": {"steps": 20, "model": f"/models/{SECRET}"}})
        for step in (10, 20):
            sent.line({"step": step, "loss": 1 / step, "peak_memory_bytes": 3 * 2**30})
            sent.picture(step, Image.new("RGB", (8, 8), "red"))
        sent.close()
    assert warnings(caplog) == []
    for file in folder.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    send("tensorboard", tmp_path, monkeypatch, caplog)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("train/loss")] == [(10, 0.1), (20, 0.05)]
    assert [event.step for event in events.Images("samples")] == [10, 20]
    (settings,) = events.Tensors("settings/text_summary")
    assert b"run: 20261127-toy" in settings.tensor_proto.string_val[0]


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    send("wandb", tmp_path, monkeypatch, caplog)
    (kept,) = tmp_path.rglob("*.wandb")
    data = kept.read_bytes()
    assert all(text in data for text in (b"20261127-toy", b"train/peak_memory_bytes", b"train.steps"))


def test_mlflow_in_a_local_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    send("mlflow", tmp_path, monkeypatch, caplog)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("bootpig").experiment_id])
    assert (run.info.run_name, run.info.status) == ("20261127-toy", "FINISHED")
    assert run.data.params == {"run": "20261127-toy", "train.steps": "20", "train.model": "/models/***"}
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [10, 20]


def test_trackio_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # read when the package is imported
    pytest.importorskip("trackio")
    send("trackio", tmp_path, monkeypatch, caplog)
    (kept,) = tmp_path.rglob("bootpig*.db")
    rows = sqlite3.connect(kept).execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert [(name, step) for name, step, _ in rows] == [("20261127-toy", 10), ("20261127-toy", 20)]
