"""Which samples form each batch, if the pictures have several sizes: those of one size, as they come in the order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bootpig.stages.train.order import Order


@dataclass(frozen=True)
class _Layout:
    """One epoch."""

    places: list[np.ndarray]
    """For each size, the positions in the epoch of its samples, ascending."""
    full: list[tuple[int, int]]
    """The batches that become full, as (size, number among the batches of this size in all epochs), in order."""


class Buckets:
    """Divides the stream of samples into batches of one size.

    Each size collects its samples in the order of the stream. When it has `batch_size` of them, they are the next
    batch. What is left at the end of an epoch is in the first batch of that size in a later one, so no sample is ever
    dropped, and each sample is used once per epoch. With a single size, batch k is the k-th piece of the stream.

    Any batch can be found without those before it: by the end of epoch e, a size of n samples has had ⌊e·n / B⌋.
    """

    def __init__(self, order: Order, batch_size: int, sizes: np.ndarray) -> None:
        """
        Args:
            sizes: (samples,) int64: the number of each sample's size, from 0. Every number occurs.
        """
        self.order = order
        self.batch_size = batch_size
        self.sizes = sizes
        self.counts: list[int] = np.bincount(sizes).tolist()
        self._layout = lru_cache(maxsize=3)(self._lay_out)

    def batch(self, step: int) -> list[int]:
        """The positions in the stream of the samples of batch `step`, ascending. It becomes full with the last one."""
        epoch = step * self.batch_size // self.order.samples
        while self._before(epoch + 1) <= step:
            epoch += 1
        size, number = self._layout(epoch).full[step - self._before(epoch)]
        turns, indices = np.divmod(np.arange(self.batch_size) + number * self.batch_size, self.counts[size])
        found: list[int] = []
        for turn in np.unique(turns).tolist():
            places = self._layout(turn).places[size][indices[turns == turn]]
            found += (places + turn * self.order.samples).tolist()
        return found

    def _before(self, epoch: int) -> int:
        """The number of batches that are full before an epoch."""
        return sum(epoch * count // self.batch_size for count in self.counts)

    def _lay_out(self, epoch: int) -> _Layout:
        sizes = self.sizes[self.order.epoch(epoch).order]
        places, ends = [], []
        for size, count in enumerate(self.counts):
            own = np.flatnonzero(sizes == size)
            first, left = divmod(epoch * count, self.batch_size)
            places.append(own)
            last = own[self.batch_size - 1 - left :: self.batch_size].tolist()
            ends += [(place, size, first + number) for number, place in enumerate(last)]
        return _Layout(places, [(size, number) for _, size, number in sorted(ends)])
