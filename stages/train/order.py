"""The order of the training samples: seeded, and known at any position without reading data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


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
    window are shuffled.
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
