"""Runs a stage on one slice of a unit: retries errors, halves batches when memory runs out, isolates bad samples."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from bootpig.models.memory import free_memory, is_out_of_memory
from bootpig.stages.engine.contract import FatalError, InputError, MapStage, Sample
from bootpig.storage.errors import NO_SPACE, StoreError, StoreFull
from bootpig.storage.retry import patiently

T = TypeVar("T")
R = TypeVar("R")

TOO_LARGE = (
    "out of memory with a single sample; use smaller pictures, a smaller model or dtype, or a device with more memory"
)

_LOG = logging.getLogger(__name__)


def halving(
    rows: Sequence[T], size: int, process: Callable[[Sequence[T]], R], halved: Callable[[int], None]
) -> Iterator[R]:
    """Call `process` on batches of `size` rows, in order. When memory runs out, this and all later batches are halved.

    Args:
        halved: called with each new size.

    Raises:
        FatalError: memory runs out with a single row.
    """
    begin = 0
    while begin < len(rows):
        batch = rows[begin : begin + size]
        made = _unless_too_large(process, batch)
        if made is not None:
            yield made
            begin += len(batch)
            continue
        if len(batch) == 1:
            raise FatalError(TOO_LARGE)
        size = -(-len(batch) // 2)
        free_memory()
        halved(size)


def _unless_too_large(process: Callable[[Sequence[T]], R], batch: Sequence[T]) -> R | None:
    # Returns without keeping the exception, because it refers to the tensors of all its frames.
    try:
        return process(batch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return None


def in_slices(stage: MapStage, samples: Sequence[Sample]) -> Iterator[list[int]]:
    """The positions of the samples in each slice of a unit: at most `slice_size` samples, in order, with one
    `batch_key`."""
    alike: dict[Hashable, list[int]] = {}
    for place, sample in enumerate(samples):
        alike.setdefault(stage.batch_key(sample), []).append(place)
    for places in alike.values():
        yield from (places[begin : begin + stage.slice_size] for begin in range(0, len(places), stage.slice_size))


class Slices:
    """Runs the slices of one unit through a loaded stage."""

    def __init__(self, stage: MapStage, unit: int) -> None:
        self.name = stage.name
        self.unit = unit
        self.size = stage.slice_size
        self.halved: list[int] = []
        """The new number of samples per call, for each time that memory ran out."""
        self.one_by_one: list[str] = []
        """Errors of batches that were then run sample by sample, which can change the last bits of the output."""

    def process(self, stage: MapStage, samples: Sequence[Sample]) -> list[Sample]:
        """The results of one slice, in order.

        Args:
            stage: the same stage with its models loaded.

        Raises:
            FatalError, InputError, StoreError: an error that further samples would hit too.
        """
        return [
            result for made in halving(samples, self.size, partial(self._batch, stage), self._halve) for result in made
        ]

    def _halve(self, size: int) -> None:
        self.size = size
        self.halved.append(size)
        name = self.name
        _LOG.warning("%s unit %d: out of memory; continuing with %s.batch_size %d", name, self.unit, name, size)

    def _batch(self, stage: MapStage, batch: Sequence[Sample], second: bool = False) -> list[Sample]:
        """Process a batch. If it fails twice, run it sample by sample to find the bad sample.

        It is tried twice because another batch size can change the bytes: after a chance failure, they stay the same.
        """
        name = self.name
        try:
            return patiently(partial(stage.process, batch))
        except (FatalError, InputError, StoreError, KeyboardInterrupt):
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                place = error.filename or tempfile.gettempdir()
                raise StoreFull(
                    f"{name}: {str(place)!r}: {os.strerror(error.errno or 0)}; free some space, or set TMPDIR, and run "
                    "again; complete units are kept"
                ) from error
            if _is_fatal(error):
                raise FatalError(f"{type(error).__name__}: {_first_line(error)}") from error
            message = f"{type(error).__name__}: {_first_line(error)}"
            if len(batch) == 1:
                return [batch[0].failed("error", message)]
        # tenacity's call and the exception refer to each other: only garbage collection frees their memory
        free_memory()
        if not second:
            return self._batch(stage, batch, second=True)
        self.one_by_one.append(message)
        _LOG.warning("%s unit %d: a batch of %d failed, runs one by one: %s", name, self.unit, len(batch), message)
        return [result for sample in batch for result in self._batch(stage, [sample])]


def _is_fatal(error: Exception) -> bool:
    """Whether all further samples would hit the error too."""
    if isinstance(error, OSError):
        return error.errno in (errno.EIO, errno.EROFS)
    return type(error).__name__ == "AcceleratorError"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
