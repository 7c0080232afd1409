"""Checkpoints in the store: which ones stay, whatever has been damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig.stages.engine.checkpoints import StoredCheckpoints
from bootpig.storage.root import Root


@pytest.fixture
def stored(tmp_path: Path) -> StoredCheckpoints:
    (tmp_path / "state").mkdir()
    (tmp_path / "scratch").mkdir()
    return StoredCheckpoints(Root(str(tmp_path / "store")), "train/abc", tmp_path / "scratch")


def save(stored: StoredCheckpoints, step: int) -> None:
    folder = stored.scratch.parent / "state"
    (folder / "weights").write_bytes(b"w" * (step + 1))
    stored.save(step, folder)


def steps(stored: StoredCheckpoints) -> list[str]:
    return stored.root.folders("train/abc")


def damage(stored: StoredCheckpoints, step: int, how: str) -> None:
    assert stored.root.local is not None
    folder = stored.root.local / f"train/abc/checkpoint-{step:05d}"
    (weights,) = folder.glob("*/weights")
    if how == "cut":
        weights.write_bytes(b"")
    elif how == "gone":
        weights.unlink()
    elif how == "manifest":
        (folder / "manifest.json").write_text("{")
    else:
        (folder / "manifest.json").unlink()


def test_the_newest_two_stay(stored: StoredCheckpoints) -> None:
    for step in (1, 2, 3):
        save(stored, step)
    assert steps(stored) == ["checkpoint-00002", "checkpoint-00003"]


@pytest.mark.parametrize("how", ["cut", "gone", "manifest", "no manifest"])
def test_damaged_checkpoints_never_push_out_new_ones(stored: StoredCheckpoints, how: str) -> None:
    for step in (10, 20):
        save(stored, step)
        damage(stored, step, how)
    assert stored.latest() is None, "training starts from the beginning"
    for step in (1, 2, 3):
        save(stored, step)
        found = stored.latest()
        assert found is not None and found[0] == step
    assert steps(stored) == ["checkpoint-00002", "checkpoint-00003"]


@pytest.mark.parametrize("how", ["cut", "gone", "manifest", "no manifest"])
def test_a_damaged_checkpoint_in_the_middle_does_not_count(stored: StoredCheckpoints, how: str) -> None:
    save(stored, 1)
    save(stored, 2)
    damage(stored, 2, how)
    save(stored, 3)
    assert steps(stored) == ["checkpoint-00001", "checkpoint-00003"]
