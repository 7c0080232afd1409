"""Batches of one picture size: which samples they hold, from any step, on any number of ranks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bootpig.stages.engine.contract import ReduceInput
from bootpig.stages.train.buckets import Buckets
from bootpig.stages.train.dataset import Batch, ShardLoader
from bootpig.stages.train.order import Order
from tests.stages.train.test_dataset import equal, keep
from tests.stages.train.training_data import REFERENCES, write_units

SIZES = ((8, 8), (6, 10), (10, 6))
COUNTS = (5, 0, 7, 3, 6, 4, 8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReduceInput:
    return write_units(tmp_path_factory.mktemp("units"), COUNTS, sizes=SIZES)


def loader(data: ReduceInput, **changes: object) -> ShardLoader:
    return ShardLoader(data, **{"seed": 1, "batch_size": 6, "window": 10, **changes})  # type: ignore[arg-type]


def queued(order: Order, sizes: np.ndarray, batch_size: int, steps: int) -> list[list[int]]:
    """The batches by the rule itself, from the beginning of the stream."""
    waiting: dict[int, list[int]] = {}
    batches: list[list[int]] = []
    position = 0
    while len(batches) < steps:
        epoch, offset = divmod(position, order.samples)
        queue = waiting.setdefault(int(sizes[order.epoch(epoch).order[offset]]), [])
        queue.append(position)
        position += 1
        if len(queue) == batch_size:
            batches.append(queue.copy())
            queue.clear()
    return batches


@pytest.mark.parametrize(
    ("counts", "kinds", "batch_size"),
    [
        ([5, 7, 3, 6], 1, 4),
        ([5, 7, 3, 6], 3, 4),
        ([9], 4, 1),
        ([5, 7, 3, 6], 21, 8),
        ([2, 2], 2, 4),
        ([13, 50], 5, 16),
    ],
)
def test_any_step_is_that_of_queues_filled_from_the_beginning(counts: list[int], kinds: int, batch_size: int) -> None:
    order = Order(counts, seed=3, window=8)
    sizes = np.arange(order.samples) ** 2 % kinds
    sizes = np.unique(sizes, return_inverse=True)[1]
    expected = queued(order, sizes, batch_size, 60)
    assert [Buckets(order, batch_size, sizes).batch(step) for step in range(60)] == expected
    for step in (59, 7, 33):
        assert Buckets(order, batch_size, sizes).batch(step) == expected[step]
    if kinds == 1:
        assert expected == [list(range(step * batch_size, (step + 1) * batch_size)) for step in range(60)]


def test_a_batch_has_one_size_and_every_sample_is_used_once_an_epoch(data: ReduceInput) -> None:
    epochs = 12
    batches = list(loader(data).batches(0, epochs * sum(COUNTS) // 6, keep))
    shapes = Counter(tuple(batch.tensors["target"].shape[1:]) for batch in batches)
    assert shapes.keys() == {(4, *size) for size in SIZES}
    assert all(batch.tensors["reference"].shape == (6, 4, 8, 8) for batch in batches)
    used = Counter(name for batch in batches for name in batch.ids)
    assert len(used) == sum(COUNTS)
    assert set(used.values()) <= {epochs - 1, epochs, epochs + 1}, "a few wait for their batch"
    visits = [seed for batch in batches for seed in batch.seeds]
    assert len(set(visits)) == len(visits), "other draws each time"


@pytest.mark.parametrize("workers", [0, 3])
def test_resume_gives_the_same_batches(data: ReduceInput, workers: int) -> None:
    whole = list(loader(data).batches(0, 20, keep))
    later = list(loader(data, workers=workers, cache_bytes=0).batches(7, 20, keep))
    assert all(equal(one, other) for one, other in zip(whole[7:], later, strict=True))


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_a_batch_of_one_size(data: ReduceInput, ranks: int) -> None:
    several = {"references": (1, REFERENCES)}
    whole = list(loader(data, **several).batches(0, 9, keep))
    parts = [
        list(loader(data, rank=rank, ranks=ranks, workers=2 * rank, **several).batches(0, 9, keep))
        for rank in range(ranks)
    ]
    for step, batch in enumerate(whole):
        shares = [part[step] for part in parts]
        assert len({part.tensors["target"].shape for part in shares}) == 1
        assert len({part.tensors["reference"].shape for part in shares}) == 1
        assert sorted(row for part in shares for row in rows(part)) == sorted(rows(batch))


def rows(batch: Batch) -> list[tuple[str, int, bytes]]:
    return [
        (name, seed, target.numpy().tobytes())
        for name, seed, target in zip(batch.ids, batch.seeds, batch.tensors["target"], strict=True)
    ]


def test_held_out_samples_keep_their_sizes_in_order(data: ReduceInput) -> None:
    split = loader(data, held_out=0.3, batch_size=4)
    held = {sample.id for sample in split.held_samples(99)}
    batches = list(split.batches(0, 40, keep))
    assert held and held.isdisjoint(name for batch in batches for name in batch.ids)


def test_one_sample_of_each_size_is_found(data: ReduceInput) -> None:
    shapes = [tuple(sample.tensors["target"].shape[1:]) for sample in loader(data).one_of_each_size()]
    assert sorted(shapes) == sorted(SIZES)


def test_a_rare_size_waits_for_its_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_units(tmp_path, (12, 1, 1), sizes=[(8, 8)] * 11 + [(6, 10)])
    ids = [batch.ids for batch in loader(data, batch_size=4).batches(0, 28, keep)]
    assert "only 1 of 14 samples have 20x12 pixels" in caplog.text and "every 4 epochs" in caplog.text
    assert ids.count(["000-011"] * 4) == 2
