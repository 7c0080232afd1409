"""Checkpoints reach the store while training goes on."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from bootpig.stages.engine.contract import ReduceInput
from bootpig.stages.train.config import TrainConfig
from bootpig.stages.train.stage import Train
from bootpig.stages.train.uploads import Uploads
from bootpig.storage.errors import StoreUnavailable
from tests.stages.train.training_data import FolderCheckpoints, save_base, write_units


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReduceInput:
    return write_units(tmp_path_factory.mktemp("units"), (5, 4, 3))


def recipe(base: Path) -> TrainConfig:
    fields = {"steps": 6, "global_batch_size": 2, "per_device_batch_size": 2, "log_every": 1, "sample_every": 0}
    return TrainConfig(model=str(base), checkpoint_every=2, **fields)


class Slow(FolderCheckpoints):
    """An upload that ends only when it is let."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.go_on = threading.Event()

    def save(self, step: int, folder: Path) -> None:
        assert self.go_on.wait(60)
        super().save(step, folder)


def test_training_goes_on_during_an_upload_and_ends_after_it(base: Path, data: ReduceInput, tmp_path: Path) -> None:
    checkpoints = Slow(tmp_path / "kept")

    def progress(done: int, total: int, text: str) -> None:
        if done == 3:  # the checkpoint of step 2 is on its way
            assert checkpoints.steps == []
            checkpoints.go_on.set()

    Train(recipe(base), seed=0).run(data, tmp_path, checkpoints, progress)
    assert checkpoints.steps == [2, 4]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["checkpoint-00002", "checkpoint-00004"]


class Ill(FolderCheckpoints):
    def save(self, step: int, folder: Path) -> None:
        raise StoreUnavailable("root: no good answer")


def test_a_failed_upload_ends_the_training_in_its_own_words(base: Path, data: ReduceInput, tmp_path: Path) -> None:
    seen: list[int] = []
    with pytest.raises(StoreUnavailable, match="no good answer"):
        Train(recipe(base), seed=0).run(data, tmp_path, Ill(tmp_path / "kept"), lambda done, *_: seen.append(done))
    assert max(seen) <= 4, "the next checkpoint waits for the one before"
    assert not (tmp_path / "model").exists()


def test_whether_an_upload_still_runs(tmp_path: Path) -> None:
    slow = Slow(tmp_path)
    with Uploads(slow) as uploads:
        assert not uploads.busy(0.0)
        uploads.save(2, lambda folder: None)
        assert uploads.busy(0.05)
        slow.go_on.set()
        assert not uploads.busy(60.0)
