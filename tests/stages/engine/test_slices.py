"""Batches that are too large are halved; whatever the failed try held is gone before the next one."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from bootpig.stages.engine.contract import FatalError, Sample
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.slices import halving
from tests.stages.doubles import Painter, config, doubles

__all__ = ["doubles"]


class Activations:
    """Stands for what a forward pass holds when memory runs out."""


def test_batches_come_in_order_and_never_grow_again() -> None:
    calls: list[int] = []
    sizes: list[int] = []

    def process(batch: Sequence[int]) -> list[int]:
        calls.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(batch)

    made = list(halving(range(11), 10, process, sizes.append))
    assert [row for batch in made for row in batch] == list(range(11))
    assert (calls, sizes) == ([10, 5, 3, 3, 3, 2], [5, 3])


def test_the_failed_try_is_let_go_of_before_the_next() -> None:
    held: list[weakref.ref[Activations]] = []

    def process(batch: Sequence[int]) -> int:
        assert not any(reference() for reference in held)
        activations = Activations()
        activations.itself = activations  # type: ignore[attr-defined]  # only a collection frees it
        held.append(weakref.ref(activations))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch[0]

    first = next(iter(halving(range(4), 4, process, lambda size: None)))
    assert first == 0 and len(held) == 3


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_single_row_that_is_too_large_is_fatal(error: Exception) -> None:
    def process(batch: Sequence[int]) -> None:
        raise error

    with pytest.raises(FatalError, match=r"^out of memory with a single sample; use smaller pictures"):
        list(halving(range(4), 2, process, lambda size: None))


def test_other_errors_pass() -> None:
    def process(batch: Sequence[int]) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        list(halving(range(4), 2, process, lambda size: None))


@pytest.mark.usefixtures("doubles")
def test_a_failed_batch_is_let_go_of_before_it_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Activations]] = []
    real = Painter.process

    def once(self: Painter, samples: Sequence[Sample]) -> list[Sample]:
        assert not any(reference() for reference in held)
        activations = Activations()
        held.append(weakref.ref(activations))
        if len(held) == 1:
            raise RuntimeError("a device that hiccups")
        return real(self, samples)

    monkeypatch.setattr(Painter, "process", once)
    engine = Engine(config(tmp_path))
    engine.run_unit("caption", 0)
    assert engine.run_unit("synthesize", 0).rows["ok"] == 5
