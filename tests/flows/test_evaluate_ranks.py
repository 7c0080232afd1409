"""An evaluation in two processes has the bytes of one in one process, also after one of the two was killed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest

import bootpig.stages.engine.loaded
from bootpig.flows.loading import load_config
from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.engine import Engine
from bootpig.stages.evaluate.drawing import METHODS
from bootpig.storage.folders import publish_folder
from tests.flows.conftest import TOY
from tests.flows.test_train import COUNTS, encoded
from tests.stages.evaluate.world import make_world

ROWS, BATCH = 6, 4
"""Three subjects with two captions each, so batches of 4 and 2: one for each rank."""


@pytest.fixture
def config(settings: list[str], tmp_path: Path) -> PipelineConfig:
    """A run whose train stage is complete."""
    world = make_world(tmp_path / "world", 3)
    fields: dict[str, Any] = {"caption.count": 15, "unit_size": 5, "threads": 1}
    fields |= {f"{stage}.model": world / "base" for stage in ("encode", "train", "evaluate")}
    fields |= {f"evaluate.{name}": world / name for name in ("clip", "dino", "subjects")}
    fields |= {"evaluate.steps": 2, "evaluate.images_per_prompt": 1, "evaluate.batch_size": BATCH}
    config = load_config(TOY, [*settings, *(f"{name}={value}" for name, value in fields.items())])
    root = encoded(config, COUNTS, tmp_path / "units")
    publish_folder(root, f"{Engine(config).survey('train').path}/result", world / "result")
    return config


def in_processes(config: PipelineConfig, count: int) -> Engine:
    evaluate = config.evaluate.model_copy(update={"num_processes": count})
    return Engine(config.model_copy(update={"evaluate": evaluate}))


def result(work: Engine) -> dict[str, bytes]:
    """Every file of the result."""
    published = work.survey("evaluate").result
    assert published is not None
    return {name: work.root.read(f"{published.path}/{name}") for name in published.files}


@pytest.mark.slow
def test_a_shared_evaluation_has_the_bytes_of_one_process(
    config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = in_processes(config, 1)
    assert work.run_reduce("evaluate").state == "done"
    expected = result(work)
    assert work.root.local is not None
    folder = work.root.local / work.survey("evaluate").path
    shutil.rmtree(folder)

    drawn: list[int] = []
    real = BootPIGPipeline.__call__

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        drawn.append(len(options["prompt"]))
        return real(self, *args, **options)

    def kill(done: int, total: int, text: str) -> None:
        if done >= ROWS:  # the other rank draws with the second method
            for child in psutil.Process().children():
                child.kill()

    monkeypatch.setattr(BootPIGPipeline, "__call__", counted)
    report = in_processes(config, 2).run_reduce("evaluate", progress=kill)
    assert report.state == "failed" and "evaluate: rank 1 was killed by signal 9; run again" in report.message
    assert not psutil.Process().children()
    kept = {path.name.partition(".")[0] for path in folder.glob("pieces-*/*")}
    assert {"text_only-000000", "text_only-000004", "untrained-000000"} <= kept

    dones: list[int] = []
    work = in_processes(config, 2)
    said = work.run_reduce("evaluate", progress=lambda done, total, text: dones.append(done))
    assert said.state == "done", said.message
    assert result(work) == expected
    assert drawn == [BATCH] * len(METHODS), "in both runs together, this process drew its own batches and no other"
    assert dones == sorted(dones) and dones[-1] == ROWS * len(METHODS)
    assert list(folder.glob("pieces-*")) == []
    bootpig.stages.engine.loaded.release()
