"""Training in two processes, with all weights on both or with shards: equal weights, the same as in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.stages.train.training_data import save_base

PROJECT = Path(__file__).resolve().parents[3]

PROGRAM = """
import os
import sys
from pathlib import Path
from safetensors.torch import save_file
from bootpig.stages.train import loop as training_loop
from bootpig.stages.train.config import TrainConfig
from bootpig.stages.train.sharding import whole
from bootpig.stages.train.stage import Train
from tests.stages.train.test_validation import with_rows
from tests.stages.train.training_data import FolderCheckpoints, write_units

folder = Path(sys.argv[1])
fit = training_loop.Trainer.fit

def fit_and_tell(self, *arguments):
    fit(self, *arguments)
    name = f"{sys.argv[2]}-{self.accelerator.process_index}.safetensors"
    save_file({k: whole(v).contiguous() for k, v in self.model.trained_state().items()}, folder / name)

training_loop.Trainer.fit = fit_and_tell
config = TrainConfig(
    model=str(folder / "base"), steps=4, global_batch_size=4, per_device_batch_size=1, drop_reference=0.5,
    learning_rate_reference=1e-3, learning_rate_base=1e-3, log_every=2, checkpoint_every=2, mixed_precision="no",
    ema_decay=0.9, shard=sys.argv[3], validation=0.3, validate_every=1, sample_every=4,
)
name = sys.argv[2] + "-" + os.environ["RANK"]
work = folder / name
work.mkdir()
data = with_rows(write_units(folder / name / "units", (5, 4, 3)))
(work / "result").mkdir()
Train(config, 0).run(data, work / "result", FolderCheckpoints(folder / sys.argv[4]), lambda *_: None)
"""


def train(folder: Path, name: str, ranks: int, shard: str, kept: str) -> list[dict[str, torch.Tensor]]:
    """The weights of each rank after training with torchrun. `kept` is the folder of checkpoints."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [*torchrun, str(folder / "program.py"), str(folder), name, shard, kept]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, "PYTHONPATH": str(PROJECT)})
    return [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(ranks)]


def exports(model: Path) -> dict[str, torch.Tensor]:
    """All weights of an exported model."""
    files = sorted(model.rglob("*.safetensors"))
    return {f"{file.name} {key}": tensor for file in files for key, tensor in load_file(file).items()}


@pytest.mark.slow
def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    save_base(tmp_path / "base")
    (tmp_path / "program.py").write_text(PROGRAM)
    [one] = train(tmp_path, "one", 1, "none", "kept1")
    exported = exports(tmp_path / "one-0/result/model")
    runs = {
        "two": train(tmp_path, "two", 2, "none", "kept2"),
        "sharded": train(tmp_path, "sharded", 2, "fsdp", "kept3"),
        "resumed": train(tmp_path, "resumed", 2, "fsdp", "kept3"),  # from the checkpoint of the run before
    }
    for name, (first, second) in runs.items():
        assert all(torch.equal(first[key], second[key]) for key in first)
        for key in one:
            torch.testing.assert_close(one[key], first[key], rtol=0, atol=1e-5)
        for key, tensor in exports(tmp_path / f"{name}-0/result/model").items():
            torch.testing.assert_close(tensor, exported[key], rtol=0, atol=1e-5)
        assert not list((tmp_path / f"{name}-1/result").iterdir())
    assert all(torch.equal(runs["sharded"][0][key], tensor) for key, tensor in runs["resumed"][0].items())
    assert [path.name for path in (tmp_path / "kept2").iterdir()] == ["checkpoint-00002"]
