"""Stops a run: units in threads and worker processes end at their next slice, and what takes too long is ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from types import FrameType

from bootpig.stages.engine.contract import Progress

GRACE_SECONDS = 30.0
WORKER_SECONDS = 15.0
"""Time for a worker process to end its slice. Less than the time after which a Prefect worker kills a run."""
_SEND_SECONDS = 1.0
"""Time for a worker process to send the end of its unit."""

_stopping = threading.Event()
_idle = threading.Event()
"""Of a worker process: whether it makes no unit."""
_idle.set()
exits_process = False
"""Set by the command line: after `GRACE_SECONDS` the process exits even if threads still run. Commits are atomic."""


class Stopped(BaseException):
    """Ends a unit in a worker. Not an `Exception`, so that no code takes it for an error of a sample."""


def exit_code(error: BaseException) -> int:
    """130 for Ctrl-C, 143 for SIGTERM (Prefect's `TerminationSignal`), or the code of a SystemExit."""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 130 if isinstance(error, KeyboardInterrupt) else 143


def stop(error: BaseException, workers: Iterable[BaseProcess] = ()) -> None:
    """Ask the units in threads and `workers` to end; a worker process that does not is killed. If a signal is the
    reason, this process ends after the grace period, even if threads still run."""
    _stopping.set()
    for worker in workers:
        worker.terminate()
        _later(WORKER_SECONDS + 2 * _SEND_SECONDS, worker.kill)
    if exits_process and not isinstance(error, Exception):
        _later(GRACE_SECONDS, partial(os._exit, exit_code(error)))


def _later(seconds: float, act: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()


def reset() -> None:
    _stopping.clear()


def end_with_parent(kill: bool = True) -> None:
    """From now on, end this process when its parent is gone for any reason.

    Args:
        kill: exit at once. If false, send SIGTERM first, so that training writes a checkpoint.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        if not kill:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(GRACE_SECONDS)
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()


def begin_worker() -> None:
    """Make this process a worker of its parent: it ends with it, and on SIGTERM at the next slice of its unit."""

    def leave() -> None:
        _idle.wait(WORKER_SECONDS)
        time.sleep(_SEND_SECONDS)
        os._exit(143)

    def end(number: int, frame: FrameType | None) -> None:
        _stopping.set()
        threading.Thread(target=leave, daemon=True).start()

    signal.signal(signal.SIGTERM, end)
    end_with_parent()


@contextmanager
def keeping_ctrl_c() -> Iterator[None]:
    """A context for starting worker processes, or threads that start them. Ctrl-C, which a terminal sends to all
    processes of a run, never reaches them, not even while they import. This process gets it when the context ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def working() -> Iterator[None]:
    """A context in which a worker process makes a unit."""
    _idle.clear()
    try:
        yield
    finally:
        _idle.set()


def stoppable(progress: Progress) -> Progress:
    """Wrap `progress` so that it raises `Stopped` once a stop has been requested."""

    def report(done: int, total: int, text: str) -> None:
        if _stopping.is_set():
            raise Stopped
        progress(done, total, text)

    return report
