"""Training in two processes: equal weights on both, and the same as in one process."""

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
from bootpig.stages.train.stage import Train
from tests.stages.train.training_data import FolderCheckpoints, write_units

folder = Path(sys.argv[1])
fit = training_loop.Trainer.fit

def fit_and_tell(self, *arguments):
    fit(self, *arguments)
    name = f"{self.accelerator.num_processes}-{self.accelerator.process_index}.safetensors"
    save_file({k: v.contiguous() for k, v in self.model.trained_state().items()}, folder / name)

training_loop.Trainer.fit = fit_and_tell
config = TrainConfig(
    model=str(folder / "base"), steps=4, global_batch_size=4, per_device_batch_size=1, drop_reference=0.5,
    learning_rate_reference=1e-3, learning_rate_base=1e-3, log_every=2, checkpoint_every=2, mixed_precision="no",
)
name = sys.argv[2] + "-" + os.environ["RANK"]
work = folder / name
work.mkdir()
data = write_units(folder / name / "units", (5, 4, 3))
(work / "result").mkdir()
Train(config, 0).run(data, work / "result", FolderCheckpoints(folder / f"kept{sys.argv[2]}"), lambda *_: None)
"""


@pytest.mark.slow
def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    save_base(tmp_path / "base")
    (tmp_path / "program.py").write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for ranks in ("1", "2"):
        command = [*torchrun, "--nproc_per_node", ranks, str(tmp_path / "program.py"), str(tmp_path), ranks]
        subprocess.run(command, check=True, timeout=300, env={**os.environ, "PYTHONPATH": str(PROJECT)})
    one, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in one:
        torch.testing.assert_close(one[name], first[name], rtol=0, atol=1e-5)
    assert (tmp_path / "2-0/result/model/bootpig.json").exists()
    assert not list((tmp_path / "2-1/result").iterdir())
    assert [path.name for path in (tmp_path / "kept2").iterdir()] == ["checkpoint-00002"]
