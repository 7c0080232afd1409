"""`train.num_processes`: a run starts the ranks itself, and ends them whatever happens to one of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from bootpig.flows.loading import dump_config, load_config
from bootpig.flows.runs.plan import plan
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.survey import make_stage
from bootpig.stages.train.stage import Train
from bootpig.storage.folders import fetch_folder
from tests.flows.test_kill import MARK, marked
from tests.flows.test_train import COUNTS, encoded
from tests.stages.train.training_data import save_base

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def config(settings: list[str], base: Path) -> PipelineConfig:
    fields = {"caption.count": 15, "unit_size": 5, "encode.model": base, "train.model": base, "train.steps": 6}
    fields |= {"train.global_batch_size": 4, "train.warmup_steps": 0, "train.mixed_precision": "'no'"}
    fields |= {"train.checkpoint_every": 2, "train.log_every": 1, "train.sample_every": 0, "threads": 1}
    fields |= {"train.num_processes": 2}
    return load_config(PROJECT / "configs" / "toy.yaml", [*settings, *(f"{key}={fields[key]}" for key in fields)])


SHORT = """
from datetime import timedelta
from torch import distributed
init = distributed.init_process_group
def quick(*arguments, **options):
    init(*arguments, **options)
    distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=12))
distributed.init_process_group = quick
"""
"""Once all ranks are there, a collective waits 12 seconds for one, not half an hour."""


def begin(config: PipelineConfig, folder: Path, before: str = "") -> tuple[subprocess.Popen[str], str]:
    mark = uuid.uuid4().hex
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(config))
    command = [sys.executable, "-c", f"{before}\nfrom bootpig.flows.cli.main import entry; entry()", "train"]
    process = subprocess.Popen(
        [*command, str(folder / "config.yaml")],
        cwd=PROJECT,
        env={**os.environ, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process, mark


def ranks(mark: str, count: int) -> list[psutil.Process]:
    """The processes of a training once all of them run and a checkpoint is there; the parent first."""
    for _ in range(1200):
        found = marked(mark)
        if len(found) == count:
            return sorted(found, key=lambda process: process.create_time())
        time.sleep(0.1)
    raise AssertionError(f"{len(found)} processes")


def gone(mark: str) -> bool:
    """Whether all processes of a training end."""
    for _ in range(300):
        if not marked(mark):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_two_processes_train_as_one(config: PipelineConfig, tmp_path: Path) -> None:
    models = []
    for count in (1, 2):
        train = config.train.model_copy(update={"num_processes": count})
        own = config.model_copy(update={"root": str(tmp_path / f"store{count}"), "train": train})
        root = encoded(own, COUNTS, tmp_path / f"units{count}")
        process, mark = begin(own, tmp_path / f"run{count}")
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
        assert gone(mark)
        result = Engine(own).survey("train").result
        assert result is not None
        folder = fetch_folder(root, result, tmp_path / f"model{count}")
        models.append({path.name: load_file(path) for path in (folder / "model").rglob("*.safetensors")})
    one, two = models
    assert one.keys() == two.keys() != set()
    for name, tensors in one.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, two[name][key], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["SIGINT", "SIGKILL", "rank", "hang"])
def test_all_ranks_end_together(config: PipelineConfig, tmp_path: Path, end: str) -> None:
    train = config.train.model_copy(update={"steps": 100_000})
    config = config.model_copy(update={"train": train})
    root = encoded(config, COUNTS, tmp_path / "units")
    process, mark = begin(config, tmp_path / "run", SHORT if end == "hang" else "")
    _, rank = ranks(mark, 2)
    path = Engine(config).survey("train").path
    for _ in range(1200):
        if any(name.startswith("checkpoint-") for name in root.folders(path)):
            break
        time.sleep(0.1)
    if end == "rank":
        rank.kill()
    elif end == "hang":
        rank.suspend()
    else:
        process.send_signal(getattr(signal, end))
    out, err = process.communicate(timeout=120)
    assert gone(mark), "no rank is left"
    kept = [name for name in root.folders(path) if name.startswith("checkpoint-")]
    assert kept, out + err
    if end in ("rank", "hang"):
        assert process.returncode == 1
        how = "was killed by signal 9" if end == "rank" else "did not answer in time"
        assert f"train: rank 1 {how}; run again" in err + out and "Traceback" not in err
    else:
        assert process.returncode == {"SIGINT": 130, "SIGKILL": -9}[end], out + err


@pytest.mark.parametrize(
    ("size", "devices", "used", "better"),
    [(64, 8, 8, None), (66, 8, 6, 64), (70, 8, 7, 72), (4, 8, 4, 8), (64, 1, 1, None), (7, 0, 1, None)],
)
def test_auto_says_that_it_leaves_devices_out(
    settings: list[str], monkeypatch: pytest.MonkeyPatch, size: int, devices: int, used: int, better: int | None
) -> None:
    monkeypatch.setattr("bootpig.stages.train.stage._accelerators", lambda: devices)
    config = load_config(PROJECT / "configs" / "toy.yaml", [*settings, f"train.global_batch_size={size}"])
    stage = make_stage(config, "train")
    assert isinstance(stage, Train) and stage.processes() == used
    said = plan(config)["warnings"]
    assert said == stage.warnings() and len(said) == (better is not None)
    if said:
        assert f"global_batch_size: {size} cannot" in said[0] and f"uses {used} of" in said[0]
        assert said[0].endswith(f"such as {better}")


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_more_processes_than_devices_are_refused(
    settings: list[str], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setattr("bootpig.stages.train.stage._accelerators", lambda: 2)
    monkeypatch.setattr("bootpig.stages.evaluate.stage.devices", lambda name: {"a": 0, "b": 1})
    config = load_config(PROJECT / "configs" / "toy.yaml", [*settings, f"{stage}.num_processes=4"])
    first = make_stage(config, stage).check_models()[0]
    assert first == f"{stage}.num_processes: 4, but this machine has 2 devices; lower it, or use auto"


@pytest.mark.parametrize(("value", "problem"), [("3", "does not divide"), ("0", "from 1 to"), ("all", "num_processes")])
def test_numbers_that_cannot_be(settings: list[str], value: str, problem: str) -> None:
    sets = [*settings, "train.global_batch_size=4", f"train.num_processes={value}"]
    with pytest.raises(InputError, match=problem):
        load_config(PROJECT / "configs" / "toy.yaml", sets)
