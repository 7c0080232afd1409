"""Runs a stage on one slice of a unit: retries errors, halves batches when memory runs out, isolates bad samples."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from bootpig.models.memory import free_memory, is_out_of_memory
from bootpig.stages.engine.contract import FatalError, InputError, MapStage, Sample
from bootpig.storage.errors import NO_SPACE, StoreError, StoreFull
from bootpig.storage.retry import patiently

T = TypeVar("T")
R = TypeVar("R")

TOO_LARGE = (
    "out of memory with a single sample; take smaller pictures, a smaller model or dtype, or a device with more memory"
)

_LOG = logging.getLogger(__name__)


def halving(
    rows: Sequence[T], size: int, process: Callable[[Sequence[T]], R], halved: Callable[[int], None]
) -> Iterator[R]:
    """`process` on batches of `size` rows, in order; one for which memory runs out is halved, as are all after it.

    Args:
        halved: told each new size.

    Raises:
        FatalError: a single row is too large.
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
    # Left at once: whoever holds the exception holds the tensors of all its frames.
    try:
        return process(batch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return None


class Slices:
    """Sends the slices of one unit through a loaded stage."""

    def __init__(self, stage: MapStage, unit: int) -> None:
        self.name = stage.name
        self.unit = unit
        self.size = stage.slice_size
        self.halved: list[int] = []
        """Samples per call, each time after memory ran out."""
        self.one_by_one: list[str] = []
        """Errors of batches that had to be run sample by sample. Batches of one can differ in the last bits."""

    def process(self, stage: MapStage, samples: Sequence[Sample]) -> list[Sample]:
        """The results of one slice, in order.

        Args:
            stage: the stage of this name that has its models loaded.

        Raises:
            FatalError, InputError, StoreError: further samples would meet it too.
        """
        return [
            result for made in halving(samples, self.size, partial(self._batch, stage), self._halve) for result in made
        ]

    def _halve(self, size: int) -> None:
        self.size = size
        self.halved.append(size)
        name = self.name
        _LOG.warning("%s unit %d: out of memory; going on with %d at once (%s.batch_size)", name, self.unit, size, name)

    def _batch(self, stage: MapStage, batch: Sequence[Sample], second: bool = False) -> list[Sample]:
        """A batch that fails twice is run one by one, to find the sample.

        Twice, because a batch of another size can give other bytes: one that failed by chance keeps its own.
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
                    "again, complete units are kept"
                ) from error
            if _is_fatal(error):
                raise FatalError(f"{type(error).__name__}: {_first_line(error)}") from error
            message = f"{type(error).__name__}: {_first_line(error)}"
            if len(batch) == 1:
                return [batch[0].failed("error", message)]
        # tenacity's call and the fault refer to each other: only a collection frees what the failed try held
        free_memory()
        if not second:
            return self._batch(stage, batch, second=True)
        self.one_by_one.append(message)
        _LOG.warning("%s unit %d: a batch of %d failed, runs one by one: %s", name, self.unit, len(batch), message)
        return [result for sample in batch for result in self._batch(stage, [sample])]


def _is_fatal(error: Exception) -> bool:
    """Whether every further sample would meet it too."""
    if isinstance(error, OSError):
        return error.errno in (errno.EIO, errno.EROFS)
    return type(error).__name__ == "AcceleratorError"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
