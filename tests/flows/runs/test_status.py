"""`bootpig status` tells how far a training is: while it runs, after it failed, and when it is complete."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from bootpig.flows.runs.status import status, status_table
from bootpig.stages.engine.contract import FatalError, Progress, ReduceInput
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.saved import Checkpoints
from tests.stages.doubles import Counter, config, doubles  # noqa: F401


@pytest.mark.usefixtures("doubles")
def test_the_newest_values_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = config(tmp_path / "store", caption__count=5, train__steps=300)
    engine = Engine(small)
    for name in ("caption", "synthesize", "segment", "augment", "encode"):
        assert engine.run_unit(name, 0).state == "done"
    assert status(small)["stages"]["train"]["newest"] == {}
    count, fails = Counter.run, True

    def run(self: Counter, data: ReduceInput, workdir: Path, checkpoints: Checkpoints, progress: Progress) -> None:
        lines = [{"step": 100, "loss": 0.5, "reference_gain": 0.0312}, {"step": 120, "loss": 0.25}]
        (workdir / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[: 2 - fails]))
        if fails:
            raise FatalError("train: the loss is nan near step 110")
        count(self, data, workdir, checkpoints, progress)

    monkeypatch.setattr(Counter, "run", run)
    monkeypatch.setattr(Counter, "log", "log.jsonl")
    assert engine.run_reduce("train").state == "failed"
    facts = status(small)
    assert facts["stages"]["train"]["newest"] == {"steps": 300, "step": 100, "loss": 0.5, "reference_gain": 0.0312}
    console = Console(width=160, file=io.StringIO())
    console.print(status_table(facts))
    assert "train: step 100 of 300, loss 0.5, reference gain 0.0312" in console.file.getvalue()  # type: ignore[attr-defined]
    fails = False
    assert engine.run_reduce("train").state == "done"
    assert status(small)["stages"]["train"]["newest"]["step"] == 120
    assert not list(Path(small.root).rglob("live-*"))
