"""The training stream: order, resume, ranks, memory, damage."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from bootpig.stages.engine.contract import InputError, ReduceInput
from bootpig.stages.train.dataset import Batch, ShardCache, ShardLoader, read_samples
from bootpig.stages.train.order import Order
from bootpig.storage.errors import CorruptPart
from bootpig.storage.shards import read_shard, write_shard
from tests.stages.train.training_data import REFERENCES, write_units

COUNTS = (5, 0, 7, 3, 6, 4, 8)


@pytest.fixture
def data(tmp_path: Path) -> ReduceInput:
    return write_units(tmp_path / "units", COUNTS)


def keep(step: int, batch: Batch) -> Batch:
    return batch


def equal(one: Batch, other: Batch) -> bool:
    same = all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    return same and one.ids == other.ids and one.seeds == other.seeds


@pytest.mark.parametrize("window", [1, 8, 20, 1000])
def test_every_sample_once_an_epoch(window: int) -> None:
    counts = [5, 7, 3, 6]
    order = Order(counts, seed=3, window=window)
    everything = {(unit, index) for unit, count in enumerate(counts) for index in range(count)}
    orders = []
    for epoch in range(3):
        places = [order.at(epoch * 21 + offset) for offset in range(21)]
        assert {place[0] for place in places} == {epoch}
        assert sorted(place[1:] for place in places) == sorted(everything)
        orders.append([place[1:] for place in places])
    assert orders[0] != orders[1] != orders[2]
    assert orders == [
        [Order(counts, 3, window).at(epoch * 21 + offset)[1:] for offset in range(21)] for epoch in range(3)
    ]


def test_window_bounds_the_units_in_use() -> None:
    order = Order([10] * 50, seed=0, window=50)
    for begin in range(0, 500, 50):
        assert len({order.at(position)[1] for position in range(begin, begin + 50)}) == 5
    here, soon = order.ahead(0)
    assert len(here) == 5
    assert len(soon) == 1
    here, soon = order.ahead(49)
    assert set(soon) == {order.at(position)[1] for position in range(50, 100)}


def test_batches_cover_the_epochs_and_drop_nothing(data: ReduceInput) -> None:
    total = sum(COUNTS)
    loader = ShardLoader(data, seed=1, batch_size=4, window=10)
    ids = [name for batch in loader.batches(0, total, keep) for name in batch.ids]
    for epoch in range(4):
        assert set(Counter(ids[epoch * total : (epoch + 1) * total]).values()) == {1}
    assert len(ids) == 4 * total


@pytest.mark.parametrize("workers", [0, 3])
def test_resume_gives_the_same_batches(data: ReduceInput, workers: int) -> None:
    whole = list(ShardLoader(data, seed=1, batch_size=4, window=10).batches(0, 20, keep))
    later = list(ShardLoader(data, seed=1, batch_size=4, window=10, workers=workers).batches(7, 20, keep))
    assert len(later) == 13
    assert all(equal(one, other) for one, other in zip(whole[7:], later, strict=True))


def test_resume_reads_only_the_window_it_enters(tmp_path: Path) -> None:
    data = write_units(tmp_path, [4] * 16)
    read: list[int] = []
    counted = replace(data, shard=lambda unit: read.append(unit) or data.shard(unit))  # type: ignore[func-returns-value]
    loader = ShardLoader(counted, seed=1, batch_size=4, window=16)
    next(loader.batches(5, 20, keep))
    assert 1 <= len(read) <= 4


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_a_batch(data: ReduceInput, ranks: int, workers: int) -> None:
    whole = list(ShardLoader(data, seed=1, batch_size=6, window=10).batches(0, 9, keep))
    loaders = [
        ShardLoader(data, seed=1, batch_size=6, window=10, workers=workers, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]
    parts = [list(loader.batches(0, 9, keep)) for loader in loaders]
    for step, batch in enumerate(whole):
        assert all(len(part[step].ids) == 6 // ranks for part in parts)
        assert sorted(row for part in parts for row in rows(part[step])) == rows(batch)


def test_a_visit_draws_one_reference(data: ReduceInput) -> None:
    samples = {s.id: s for unit in data.units for s in read_samples(data.shard(unit.unit), unit.unit)}
    drawn = Counter()
    loader = ShardLoader(data, seed=1, batch_size=33, window=1000)
    for batch in loader.batches(0, 12, keep):
        assert batch.tensors["reference"].dtype == torch.float16
        for row, name in enumerate(batch.ids):
            stored = samples[name].tensors
            assert torch.equal(batch.tensors["target"][row], stored["target"])
            matches = [
                k for k in range(REFERENCES) if torch.equal(batch.tensors["reference"][row], stored["references"][k])
            ]
            assert len(matches) == 1
            drawn[name, matches[0]] += 1
    shares = np.array([sum(count for (_, k), count in drawn.items() if k == index) for index in range(REFERENCES)])
    assert shares.min() > 0.2 * shares.sum()
    assert max(Counter(name for name, _ in drawn).values()) > 1


def test_other_seed_other_order(data: ReduceInput) -> None:
    one, other = (next(ShardLoader(data, seed=s, batch_size=8, window=99).batches(0, 1, keep)) for s in (0, 1))
    assert one.ids != other.ids


def test_cache_keeps_what_is_in_use_and_forgets_the_oldest(data: ReduceInput) -> None:
    shards = {unit: read_samples(data.shard(unit), unit) for unit in (0, 2, 3, 4)}
    size = sum(tensor.nbytes for sample in shards[0] for tensor in sample.tensors.values())
    loads: list[int] = []
    cache = ShardCache(lambda unit: loads.append(unit) or shards[unit], limit=3 * size)  # type: ignore[func-returns-value]
    cache.pin({0})
    for unit in (0, 2, 3, 4, 0):
        cache.get(unit)
    assert loads == [0, 2, 3, 4]
    cache.get(4)
    assert loads == [0, 2, 3, 4]
    cache.get(2)
    assert loads == [0, 2, 3, 4, 2]


def test_threads_read_a_unit_once(data: ReduceInput) -> None:
    begin, loads = threading.Barrier(4), []

    def load(unit: int) -> list:
        loads.append(unit)
        return read_samples(data.shard(unit), unit)

    def ask() -> None:
        begin.wait()
        cache.get(0)

    cache = ShardCache(load, 0)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [0]


def test_little_memory_changes_nothing(data: ReduceInput) -> None:
    much = list(ShardLoader(data, seed=1, batch_size=4, window=10).batches(0, 20, keep))
    little = list(ShardLoader(data, seed=1, batch_size=4, window=10, cache_bytes=0, workers=2).batches(0, 20, keep))
    assert all(equal(one, other) for one, other in zip(much, little, strict=True))


def rows(batch: Batch) -> list[tuple[str, int, bytes]]:
    references = [row.numpy().tobytes() for row in batch.tensors["reference"]]
    return sorted(zip(batch.ids, batch.seeds, references, strict=True))


@pytest.mark.parametrize("counts", [(), (0, 0), (3,)])
def test_too_few_samples(tmp_path: Path, counts: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=rf"^train.global_batch_size: 4 is more than the {sum(counts)} encoded"):
        ShardLoader(write_units(tmp_path, counts), seed=0, batch_size=4)


def test_fewer_shards_than_ranks(tmp_path: Path) -> None:
    data = write_units(tmp_path, (8, 0, 8))
    one = ShardLoader(data, seed=0, batch_size=6)
    three = [ShardLoader(data, seed=0, batch_size=6, rank=rank, ranks=3) for rank in range(3)]
    for step in range(4):
        assert sorted(name for loader in three for name in loader.batch(step).ids) == sorted(one.batch(step).ids)


def test_a_rank_reads_a_part_of_the_shards(tmp_path: Path) -> None:
    data = write_units(tmp_path, (4,) * 24)
    reads: list[set[int]] = [set(), set()]
    for rank, seen in enumerate(reads):

        def shard(unit: int, seen: set[int] = seen) -> bytes:
            seen.add(unit)
            return data.shard(unit)

        loader = ShardLoader(replace(data, shard=shard), seed=0, batch_size=24, window=96, rank=rank, ranks=2)
        list(loader.batches(0, 4, keep))
    assert len(reads[0] | reads[1]) == 24
    assert len(reads[0] & reads[1]) <= 8, "only those near the middle are read by both"


def test_damage_is_named(data: ReduceInput) -> None:
    wrong = replace(data, units=[replace(unit, samples=unit.samples + 1) for unit in data.units if unit.samples])
    with pytest.raises(CorruptPart, match=r"unit \d holds \d samples instead of \d"):
        ShardLoader(wrong, seed=0, batch_size=4).batch(0)
    shard = bytearray(data.shard(0))
    begin = shard.index(b"prompt_embeds")
    shard[begin : begin + 13] = b"prompt_xxxxxx"
    with pytest.raises(InputError, match="lacks prompt_embeds"):
        read_samples(bytes(shard), 0)
    with pytest.raises(CorruptPart):
        read_samples(data.shard(0)[:5000], 0)


def test_shapes_must_agree(tmp_path: Path) -> None:
    small = write_units(tmp_path / "small", [4], side=8)
    large = write_units(tmp_path / "large", [0, 4], side=16)
    mixed = ReduceInput([*small.units, large.units[1]], lambda unit: (large if unit else small).shard(unit), None)
    with pytest.raises(InputError, match="different shapes"):
        ShardLoader(mixed, seed=0, batch_size=8).batch(0)


@pytest.mark.parametrize("pooled", [False, True])
def test_texts_that_encode_stored_once_are_read_as_both(data: ReduceInput, pooled: bool) -> None:
    """encode leaves the reference's text out where it is the caption; older stores and other captions have both."""
    both, once, mixed = {}, {}, {}
    for unit in data.units:
        full, short, some = [], [], []
        for number, (key, files) in enumerate(read_shard(data.shard(unit.unit))):
            tensors = load(files["safetensors"])
            tensors["reference_prompt_embeds"] = tensors["prompt_embeds"].clone()
            if pooled:
                tensors["pooled_prompt_embeds"] = tensors["prompt_embeds"][0].clone()
                tensors["pooled_reference_prompt_embeds"] = tensors["pooled_prompt_embeds"].clone()
            few = {name: tensor for name, tensor in tensors.items() if "reference_prompt" not in name}
            full.append((f"{key}.safetensors", save(tensors)))
            short.append((f"{key}.safetensors", save(few)))
            some.append((full if number % 2 else short)[-1])
        for shards, members in ((both, full), (once, short), (mixed, some)):
            shards[unit.unit] = write_shard(members)
    read = [
        ShardLoader(replace(data, shard=shards.__getitem__), seed=1, batch_size=6, window=20).batch(2)
        for shards in (both, once, mixed)
    ]
    for batch in read[1:]:
        assert batch.ids == read[0].ids and batch.tensors.keys() == read[0].tensors.keys()
        assert all(torch.equal(tensor, read[0].tensors[name]) for name, tensor in batch.tensors.items())
    assert read[1].tensors["reference_prompt_embeds"] is read[1].tensors["prompt_embeds"], "one copy in memory"
