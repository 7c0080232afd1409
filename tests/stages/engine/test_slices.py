"""Batches that are too large are halved; whatever the failed try held is gone before the next one."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest
import torch

from bootpig.stages.engine.contract import FatalError, Sample
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.loaded import release
from bootpig.stages.engine.slices import halving
from bootpig.stages.registry import STAGES
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


class Sorting(Painter):
    """Paints samples with odd ids apart from the others, and says so in units with an odd one."""

    optional_columns = pa.schema([("odd", pa.bool_())])
    batches: ClassVar[list[list[str]]] = []

    def batch_key(self, sample: Sample) -> bool:
        return int(sample.id, 16) % 2 == 1

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        self.batches.append([sample.id for sample in samples])
        return super().process(samples)

    def make(self, sample: Sample) -> Sample:
        made = super().make(sample)
        odd = {"odd": True} if self.batch_key(sample) else {}
        return made.ok(files=made.files, **made.columns, **odd)


def test_slices_have_one_key_and_rows_keep_their_order(
    tmp_path: Path, doubles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Engine(config(tmp_path / "plain"))
    for stage in ("caption", "synthesize"):
        plain.run_unit(stage, 0)
    release()
    monkeypatch.setitem(STAGES, "synthesize", Sorting)
    Sorting.batches.clear()
    engine = Engine(config(tmp_path / "sorted"))
    for stage in ("caption", "synthesize"):
        engine.run_unit(stage, 0)
    ids = [row["id"] for row in engine.survey("caption").markers[0].rows]
    odd = [int(sample_id, 16) % 2 == 1 for sample_id in ids]
    assert 0 < sum(odd) < 5, "a unit of both kinds"
    assert sorted(name for batch in Sorting.batches for name in batch) == sorted(ids) and len(Sorting.batches) == 2
    assert all(len({int(sample_id, 16) % 2 for sample_id in batch}) == 1 for batch in Sorting.batches)
    marker = engine.survey("synthesize").markers[0]
    assert [row["id"] for row in marker.rows] == ids
    assert [bool(row["odd"]) for row in marker.rows] == odd
    before = plain.survey("synthesize").markers[0]
    assert marker.payload_sha256 == before.payload_sha256
    assert (before.columns(), marker.columns()) == (["brightness"], ["brightness", "odd"])
    monkeypatch.setattr(Sorting, "batch_key", lambda self, sample: False)
    release()
    engine.run_unit("synthesize", 0, force=True)
    assert engine.survey("synthesize").markers[0].columns() == ["brightness"], "no row has a value"
