"""Reads encode's shards as training batches, in a seeded order that can be entered at any step (for exact resume)."""

from __future__ import annotations

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
from bootpig.stages.train.chosen import held_out_samples, rows_of
from bootpig.stages.train.reference_draws import choose_references, references_in
from bootpig.storage.errors import CorruptPart
from bootpig.storage.shards import read_shard

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


@dataclass(frozen=True)
class Window:
    """A group of samples that are shuffled together."""

    units: list[int]
    """Positions in the list of units."""
    begin: int
    end: int
    """Positions in the epoch."""


@dataclass(frozen=True)
class Epoch:
    """One pass over all samples."""

    order: np.ndarray
    """(samples,) int64: the sample at each position, numbered across all units."""
    windows: list[Window]


class Order:
    """The order of samples in the endless stream of epochs, computed without reading any data.

    In each epoch the units are shuffled and grouped into windows of about `window` samples; then the samples of each
    window are shuffled. A batch may span two epochs, so no sample is ever dropped.
    """

    def __init__(self, counts: Sequence[int], seed: int, window: int) -> None:
        """`counts`: number of samples of each unit, all greater than 0."""
        self.seed = seed
        self.ends = np.cumsum(counts)
        self.counts = np.asarray(counts)
        self.samples = int(self.ends[-1])
        self.windows = min(len(counts), max(1, round(self.samples / window)))
        self.epoch = lru_cache(maxsize=3)(self._epoch)

    def _epoch(self, number: int) -> Epoch:
        generator = np.random.default_rng([self.seed, number])
        blocks, windows, begin = [], [], 0
        for units in np.array_split(generator.permutation(len(self.counts)), self.windows):
            block = np.concatenate([np.arange(self.ends[u] - self.counts[u], self.ends[u]) for u in units])
            generator.shuffle(block)
            blocks.append(block)
            windows.append(Window(units.tolist(), begin, begin + len(block)))
            begin += len(block)
        return Epoch(np.concatenate(blocks), windows)

    def at(self, position: int) -> tuple[int, int, int]:
        """The (epoch, unit's position in the list, index in the unit) for a position in the stream."""
        number, offset = divmod(position, self.samples)
        sample = self.epoch(number).order[offset]
        unit = int(np.searchsorted(self.ends, sample, side="right"))
        return number, unit, int(sample - self.ends[unit] + self.counts[unit])

    def ahead(self, position: int) -> tuple[list[int], list[int]]:
        """The units of the current window, and those of the next window that should be loaded by now.

        The number of units of the next window grows with the progress in this one, so that reading is spread evenly.
        """
        number, offset = divmod(position, self.samples)
        windows = self.epoch(number).windows
        index = next(i for i, window in enumerate(windows) if offset < window.end)
        here = windows[index]
        after = windows[index + 1] if index + 1 < len(windows) else self.epoch(number + 1).windows[0]
        share = (offset + 1 - here.begin) / (here.end - here.begin)
        return here.units, after.units[: -int(-share * len(after.units) // 1)]


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
    """Batches from encode's shards.

    Batch `step` holds the positions [step·B, (step+1)·B) of the stream. Rank r of W takes the r-th of W contiguous
    parts, so samples and draws do not depend on the number of ranks or threads.
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
        self.seed = seed
        self.batch_size = batch_size
        self.workers = workers
        self.references = references
        self.rank = rank
        self.ranks = ranks
        self._chosen = chosen
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

    def _own(self, step: int) -> list[tuple[int, int, int]]:
        """This rank's samples of batch `step`, as `Order.at` gives them.

        Ranks divide a batch by units, not by positions, so that each of them reads only a part of the shards.
        """
        begin = step * self.batch_size
        samples = [self.order.at(position) for position in range(begin, begin + self.batch_size)]
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
        old, _ = self.order.ahead(oldest * self.batch_size)
        new, soon = self.order.ahead((newest + 1) * self.batch_size - 1)
        self.cache.pin({*old, *new, *soon})
        if self.ranks > 1:  # about our part of the next window: batches are divided in the order of the units
            share = -(-len(soon) // self.ranks)
            coming = sorted(soon)[self.rank * share : (self.rank + 1) * share]
            return {*coming, *(unit for _, unit, _ in self._own(newest))}
        return {*new, *soon}


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
