"""Reads encode's shards as training batches, in a seeded order that can be entered at any step (for exact resume)."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from bootpig.stages.engine.contract import InputError, ReduceInput, UnitRef, sample_seed
from bootpig.stages.train.buckets import Buckets
from bootpig.stages.train.chosen import held_out_samples, rows_of
from bootpig.stages.train.order import Order
from bootpig.stages.train.reference_draws import choose_references, references_in
from bootpig.storage.errors import CorruptPart
from bootpig.storage.shards import read_shard

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

TENSORS = ("target", "references", "prompt_embeds")
SHARED = {
    "reference_prompt_embeds": "prompt_embeds",
    "pooled_reference_prompt_embeds": "pooled_prompt_embeds",
}
"""Tensors that encode leaves out if the Reference UNet reads the caption → the tensors to use instead."""
AHEAD = 2
"""Batches to prepare in advance."""


@dataclass(frozen=True)
class EncodedSample:
    """One decoded member of an encode shard."""

    id: str
    meta: bytes
    """The sample's `.json`: caption and object."""
    tensors: dict[str, torch.Tensor]
    """float16: target (C, h, w), references (K, C, h, w), prompt_embeds (S, D), reference_prompt_embeds (S, D). With an
    SDXL base also pooled_prompt_embeds (P) and pooled_reference_prompt_embeds (P)."""


@dataclass(frozen=True)
class Batch:
    """The samples of a step, on the CPU."""

    ids: list[str]
    seeds: list[int]
    """Per sample, the seed of all its random draws in this epoch: a function of (train seed, epoch, sample id)."""
    tensors: dict[str, torch.Tensor]
    """The stacked `EncodedSample.tensors`, with one of the references as `reference` (B, C, h, w), or several as
    (B, n, C, h, w)."""


class ShardCache:
    """Decoded shards in memory. Above `limit` bytes the least recently used are removed, but never those in use."""

    def __init__(self, load: Callable[[int], list[EncodedSample]], limit: int) -> None:
        self._load = load
        self._limit = limit
        self._shards: OrderedDict[int, list[EncodedSample]] = OrderedDict()
        self._bytes: dict[int, int] = {}
        self._locks: dict[int, threading.Lock] = {}
        self._pinned: set[int] = set()
        self._guard = threading.Lock()

    def get(self, unit: int) -> list[EncodedSample]:
        """A unit's samples. If several threads ask for the same unit, only one reads it."""
        with self._guard:
            if unit in self._shards:
                self._shards.move_to_end(unit)
                return self._shards[unit]
            lock = self._locks.setdefault(unit, threading.Lock())
        with lock:
            with self._guard:
                if unit in self._shards:
                    return self._shards[unit]
            samples = self._load(unit)
            with self._guard:
                self._shards[unit] = samples
                self._bytes[unit] = sum(
                    {id(t): t.nbytes for sample in samples for t in sample.tensors.values()}.values()
                )
                self._evict(spare=unit)
            return samples

    def pin(self, units: set[int]) -> None:
        """Set which units are in use."""
        with self._guard:
            self._pinned = units
            self._evict()

    def _evict(self, spare: int | None = None) -> None:
        total = sum(self._bytes.values())
        for unit in [unit for unit in self._shards if unit not in self._pinned and unit != spare]:
            if total <= self._limit:
                break
            total -= self._bytes.pop(unit)
            del self._shards[unit]


class ShardLoader:
    """Batches from encode's shards. The pictures of a batch have one size, see `Buckets`.

    Rank r of W takes the r-th of W parts of each batch, so samples and draws do not depend on the number of ranks or
    threads.
    """

    def __init__(
        self,
        data: ReduceInput,
        *,
        seed: int,
        batch_size: int,
        window: int = 4096,
        cache_bytes: int = 2**31,
        workers: int = 0,
        rank: int = 0,
        ranks: int = 1,
        held_out: float = 0.0,
        references: tuple[int, int] = (1, 1),
        chosen: Set[str] | None = None,
    ) -> None:
        """
        Args:
            data: encode's units.
            seed: seed of the order, the choice of references, and `Batch.seeds`.
            batch_size: samples per step over all ranks; a multiple of `ranks`.
            window: samples that are shuffled together. About two windows are kept in memory.
            cache_bytes: memory for decoded shards that are not part of the windows in use.
            workers: threads that read ahead; 0 reads on demand.
            rank, ranks: this process and the number of processes.
            held_out: fraction of the samples that are in no batch, see `held_out_place`.
            references: fewest and most references of a sample in a batch; their number is drawn for each step.
            chosen: ids of the samples that are read, in batches or held out; None: all.

        Raises:
            InputError: there are fewer samples than `batch_size`.
        """
        units = [unit for unit in data.units if unit.samples]
        rows = {unit.unit: rows_of(data, unit, chosen) for unit in units}
        self.held: list[tuple[UnitRef, int]] = []
        """The held-out samples, as (unit, index in its shard)."""
        if held_out:
            self.held = held_out_samples(data, units, rows, held_out)
            for unit, index in self.held:
                rows[unit.unit].remove(index)
        self.units: list[UnitRef] = [unit for unit in units if rows[unit.unit]]
        self.rows = [rows[unit.unit] for unit in self.units]
        """For each unit, the indices in its shard of the samples to train on."""
        total = sum(len(indices) for indices in self.rows)
        if total < batch_size:
            besides = "" if chosen is None else " that select has chosen"
            besides += f" that are left beside {len(self.held)} held out for validation" if self.held else ""
            raise InputError(
                f"train.global_batch_size: {batch_size} is more than the {total} encoded samples{besides}; lower it, "
                f"{'' if chosen is None else 'loosen select, '}or raise caption.count"
            )
        self.order = Order([len(indices) for indices in self.rows], seed, window)
        sizes, numbers = _sizes(data, self.units, self.rows)
        self.buckets = Buckets(self.order, batch_size, numbers)
        for size, count in zip(sizes, self.buckets.counts, strict=False):
            if count < batch_size:
                _LOG.warning(
                    "train: only %d of %d samples have %dx%d pixels, less than a batch; one batch of them repeats "
                    "samples, and comes every %.3g epochs",
                    count,
                    total,
                    size[1],
                    size[0],
                    batch_size / count,
                )
        self.seed = seed
        self.batch_size = batch_size
        self.workers = workers
        self.references = references
        self.rank = rank
        self.ranks = ranks
        self._chosen = chosen
        self._samples = lru_cache(maxsize=16)(self._find)
        self._shard = data.shard
        self.cache = ShardCache(self._load, cache_bytes)

    def _load(self, index: int) -> list[EncodedSample]:
        return self._read(self.units[index])

    def _read(self, unit: UnitRef) -> list[EncodedSample]:
        samples = read_samples(self._shard(unit.unit), unit.unit)
        if len(samples) != unit.samples:
            raise CorruptPart(
                f"encode: unit {unit.unit} holds {len(samples)} samples instead of {unit.samples}; run again"
            )
        return samples

    def epochs(self, step: int) -> float:
        """Number of passes over the data before batch `step`."""
        return step * self.batch_size / self.order.samples

    def first(self, count: int) -> list[EncodedSample]:
        """The first `count` samples in the order of the units, or all if there are fewer."""
        samples: list[EncodedSample] = []
        for index in range(len(self.units)):
            found = [s for s in self.cache.get(index) if self._chosen is None or s.id in self._chosen]
            samples += found[: count - len(samples)]
            if len(samples) == count:
                break
        return samples

    def one_of_each_size(self) -> list[EncodedSample]:
        """A sample of each size of pictures."""
        firsts = np.unique(self.buckets.sizes, return_index=True)[1].tolist()
        units = [int(np.searchsorted(self.order.ends, first, side="right")) for first in firsts]
        return [
            self.cache.get(unit)[self.rows[unit][first - int(self.order.ends[unit] - self.order.counts[unit])]]
            for first, unit in zip(firsts, units, strict=True)
        ]

    def held_samples(self, count: int) -> list[EncodedSample]:
        """The first `count` of the held-out samples, or all if there are fewer."""
        chosen: dict[UnitRef, list[int]] = {}
        for unit, index in self.held[:count]:
            chosen.setdefault(unit, []).append(index)
        found = []
        for unit, indices in chosen.items():
            samples = self._read(unit)
            found += [samples[index] for index in indices]
        return found

    def batch(self, step: int) -> Batch:
        """This rank's part of batch `step`.

        Raises:
            InputError: the samples have different shapes, or too few references.
        """
        count = references_in(self.seed, step, *self.references)
        ids, seeds, rows = [], [], []
        for epoch, unit, index in self._own(step):
            sample = self.cache.get(unit)[self.rows[unit][index]]
            seed = sample_seed(self.seed, "train", sample.id, epoch)
            references = sample.tensors["references"]
            row = {name: tensor for name, tensor in sample.tensors.items() if name != "references"}
            row["reference"] = choose_references(references, seed, count)
            ids.append(sample.id)
            seeds.append(seed)
            rows.append(row)
        try:
            own = [name for name in rows[0] if any(row[name] is not row.get(SHARED.get(name, "")) for row in rows)]
            tensors = {name: torch.stack([row[name] for row in rows]) for name in own}
            tensors |= {name: tensors[SHARED[name]] for name in rows[0] if name not in own}
        except (RuntimeError, KeyError) as error:
            raise InputError(
                f"encode: samples have different shapes ({error}); run encode again with --force"
            ) from None
        return Batch(ids, seeds, tensors)

    def _find(self, step: int) -> list[tuple[int, int, int]]:
        """The samples of batch `step`, as `Order.at` gives them."""
        return [self.order.at(position) for position in self.buckets.batch(step)]

    def _own(self, step: int) -> list[tuple[int, int, int]]:
        """This rank's samples of batch `step`.

        Ranks divide a batch by units, not by positions, so that each of them reads only a part of the shards.
        """
        samples = self._samples(step)
        if self.ranks == 1:
            return samples
        share = self.batch_size // self.ranks
        return sorted(samples)[self.rank * share : (self.rank + 1) * share]

    def batches(self, begin: int, end: int, prepare: Callable[[int, Batch], T]) -> Iterator[T]:
        """Yield `prepare(step, batch)` for each step in [begin, end), in order, computed ahead by worker threads."""
        if not self.workers:
            for step in range(begin, end):
                self._pin(step, step)
                yield prepare(step, self.batch(step))
            return
        waiting: deque[Future[T]] = deque()
        asked: set[int] = set()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="loader")
        try:
            submitted = begin
            for step in range(begin, end):
                while submitted < min(step + 1 + AHEAD, end):
                    waiting.append(pool.submit(lambda number: prepare(number, self.batch(number)), submitted))
                    wanted = self._pin(step, submitted)
                    for unit in wanted - asked:
                        pool.submit(self.cache.get, unit)
                    asked = wanted
                    submitted += 1
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _pin(self, oldest: int, newest: int) -> set[int]:
        """Pin the units needed for batches `oldest` to `newest`. Returns the units that should be loaded by then."""
        begun = {unit for step in range(oldest, newest + 1) for _, unit, _ in self._samples(step)}
        new, soon = self.order.ahead(self.buckets.batch(newest)[-1])
        self.cache.pin({*begun, *new, *soon})
        if self.ranks > 1:  # about our part of the next window: batches are divided in the order of the units
            share = -(-len(soon) // self.ranks)
            coming = sorted(soon)[self.rank * share : (self.rank + 1) * share]
            return {*coming, *(unit for _, unit, _ in self._own(newest))}
        return {*new, *soon}


def _sizes(
    data: ReduceInput, units: Sequence[UnitRef], rows: Sequence[Sequence[int]]
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """The different (height, width) of pictures in pixels, empty if all have the same, and for each sample of `units`
    the number of its size.

    Args:
        rows: for each unit, the indices of its samples.
    """
    if "height" not in data.columns:  # encode leaves it out if all pictures have the same size
        return [], np.zeros(sum(map(len, rows)), np.int64)
    of_samples: list[tuple[int, int]] = []
    for unit, indices in zip(units, rows, strict=True):
        ok = [(row["height"], row["width"]) for row in data.rows(unit.unit) if row["status"] == "ok"]
        of_samples += [ok[index] for index in indices]
    sizes = sorted(set(of_samples))
    numbers = {size: number for number, size in enumerate(sizes)}
    return sizes, np.array([numbers[size] for size in of_samples], np.int64)


def same_shapes(samples: Sequence[EncodedSample]) -> list[list[int]]:
    """The positions of samples whose latents have equal shapes, in order of appearance."""
    alike: dict[tuple[torch.Size, torch.Size], list[int]] = {}
    for place, sample in enumerate(samples):
        shapes = sample.tensors["target"].shape, sample.tensors["references"].shape
        alike.setdefault(shapes, []).append(place)
    return list(alike.values())


def read_samples(shard: bytes, unit: int) -> list[EncodedSample]:
    """Decode the encode shard of a unit.

    Raises:
        CorruptPart: a member is damaged.
        InputError: a sample lacks a tensor that training needs.
    """
    samples = []
    for sample_id, files in read_shard(shard):
        try:
            tensors = safetensors.torch.load(files["safetensors"])
        except (KeyError, SafetensorError) as error:
            raise CorruptPart(f"encode unit {unit}: sample {sample_id} is not readable ({error}); run again") from None
        missing = [name for name in TENSORS if name not in tensors]
        if missing:
            raise InputError(f"encode unit {unit}: sample {sample_id} lacks {', '.join(missing)}; run encode again")
        for name, other in SHARED.items():
            if name not in tensors and other in tensors:
                tensors[name] = tensors[other]
        samples.append(EncodedSample(sample_id, files.get("json", b"{}"), tensors))
    return samples
