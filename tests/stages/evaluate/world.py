"""A tiny trained model, judges and subjects, and an engine that evaluates them.

As a process of its own, for tests that kill it: `python -m tests.stages.evaluate.world WORLD ROOT [DONE]` ends itself
by SIGKILL as soon as DONE pictures are drawn.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.pretrained.source import ModelSource
from bootpig.models.pretrained.sources import resolve
from bootpig.models.toy.subject_folder import write_folder
from bootpig.stages.caption.stage import Caption
from bootpig.stages.engine.contract import Progress, ReduceInput, ReduceStage
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.saved import Checkpoints
from bootpig.stages.evaluate.stage import Evaluate, EvaluateConfig
from bootpig.stages.train.config import TrainConfig
from tests.models.tiny import save_clip, save_vit
from tests.stages import doubles
from tests.stages.train.training_data import save_base


def make_world(folder: Path, subjects: int) -> Path:
    """`base`, `clip`, `dino`, `subjects` and the trained `result/model`, all in `folder`."""
    base = save_base(folder / "base")
    save_clip(folder / "clip")
    save_vit(folder / "dino")
    write_folder(folder / "subjects", subjects)
    pipeline = BootPIGPipeline.from_pretrained(base)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in [*pipeline.unet.named_parameters(), *pipeline.reference_unet.named_parameters()]:
            if ".attn1." in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    pipeline.save_bootpig(folder / "result" / "model", {"base": str(base), "revision": None})
    return folder


def evaluate_config(world: Path, **changes: Any) -> EvaluateConfig:
    values = {name: str(world / name) for name in ("clip", "dino", "subjects")}
    return EvaluateConfig(**{**values, "steps": 2, "images_per_prompt": 1, "batch_size": 4, **changes})  # type: ignore


class Trained(ReduceStage):
    """In train's place: its model is a copy of `init_from`."""

    name, upstream, config_class, identity_prefix = "train", ("caption",), TrainConfig, "model/"

    def models(self) -> Mapping[str, ModelSource]:
        given = self.config.init_from
        return {} if given is None else {"init_from": resolve("train.init_from", given)}

    def run(self, data: ReduceInput, workdir: Path, checkpoints: Checkpoints, progress: Progress) -> None:
        shutil.copytree(self.config.init_from, workdir / "model")


def engine(world: Path, root: Path, **changes: Any) -> Engine:
    """An engine whose evaluate reads the trained model of `world`; `changes` are fields of evaluate."""
    evaluate = evaluate_config(world, device="cpu", **changes)
    config = doubles.config(root, threads=1, caption__count=5, train__init_from=str(world / "result" / "model"))
    config = config.model_copy(update={"evaluate": evaluate})
    work = Engine(config, {"caption": Caption, "train": Trained, "evaluate": Evaluate})
    assert work.run_unit("caption", 0).state in ("done", "cached")
    assert work.run_reduce("train").state in ("done", "cached")
    return work


def main(world: str, root: str, last: str = "") -> None:
    def progress(done: int, total: int, text: str) -> None:
        if last and done >= int(last):
            os.kill(os.getpid(), signal.SIGKILL)

    print(engine(Path(world), Path(root)).run_reduce("evaluate", progress=progress).state)


if __name__ == "__main__":
    main(*sys.argv[1:])
