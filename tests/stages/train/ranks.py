"""Trains in several ranks: forks of one process that has imported everything, each with torchrun's variables.

`python -m tests.stages.train.ranks FOLDER RUNS` trains the runs, a JSON list of `Run`, one after another.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bootpig.stages.train import loop as training_loop
from bootpig.stages.train.config import TrainConfig
from bootpig.stages.train.sharding import whole
from bootpig.stages.train.stage import Train
from tests.stages.train.test_validation import with_rows
from tests.stages.train.training_data import FolderCheckpoints, write_units

PROJECT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Run:
    """A training of four updates. `kept` is the folder of its checkpoints, which a run before may have left."""

    name: str
    ranks: int
    kept: str
    more: dict[str, Any] = field(default_factory=dict)
    """Fields of `TrainConfig`."""


def train(folder: Path, runs: Sequence[Run]) -> dict[str, list[dict[str, torch.Tensor]]]:
    """The weights of each rank of each run, with the base model in `folder/base`. The first rank exports its model."""
    command = [sys.executable, "-m", "tests.stages.train.ranks", str(folder), json.dumps([asdict(run) for run in runs])]
    subprocess.run(command, check=True, timeout=600, cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)})
    return {
        run.name: [load_file(folder / f"{run.name}-{rank}.safetensors") for rank in range(run.ranks)] for run in runs
    }


def _train_rank(folder: Path, run: Run, rank: int) -> None:
    fit = training_loop.Trainer.fit

    def fit_and_tell(self: training_loop.Trainer, *arguments: Any) -> None:
        fit(self, *arguments)
        tensors = {key: whole(value).contiguous() for key, value in self.model.trained_state().items()}
        save_file(tensors, folder / f"{run.name}-{self.accelerator.process_index}.safetensors")

    training_loop.Trainer.fit = fit_and_tell  # type: ignore[method-assign]
    fields: dict[str, Any] = {"steps": 4, "global_batch_size": 4, "per_device_batch_size": 1, "drop_reference": 0.5}
    fields |= {"learning_rate_reference": 1e-3, "learning_rate_base": 1e-3, "log_every": 2, "checkpoint_every": 2}
    fields |= {"mixed_precision": "no", "ema_decay": 0.9, "validation": 0.3, "validate_every": 1, "sample_every": 4}
    work = folder / f"{run.name}-{rank}"
    data = with_rows(write_units(work / "units", (5, 4, 3)))
    (work / "result").mkdir()
    config = TrainConfig(model=str(folder / "base"), **{**fields, **run.more})
    Train(config, 0).run(data, work / "result", FolderCheckpoints(folder / run.kept), lambda *_: None)


def _fork(folder: Path, run: Run) -> bool:
    """Whether all ranks of a run end well. When one fails, the others, which would wait for it, are killed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(run.ranks)}
    children = set()
    for rank in range(run.ranks):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ.update(variables, RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(run.ranks))
                _train_rank(folder, run, rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.add(child)
    well = True
    while children:
        child, status = os.wait()
        children.discard(child)
        well &= status == 0
        for other in () if well else children:
            os.kill(other, signal.SIGKILL)
    return well


def main(folder: str, runs: str) -> int:
    return 0 if all(_fork(Path(folder), Run(**fields)) for fields in json.loads(runs)) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
