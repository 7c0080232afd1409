"""Stops a run: units in worker threads end at their next slice, and a process that takes too long is ended."""

from __future__ import annotations

import os
import signal
import threading
import time

from bootpig.stages.engine.contract import Progress

GRACE_SECONDS = 30.0

_stopping = threading.Event()
exits_process = False
"""Set by the command line: after `GRACE_SECONDS` the process exits even if threads still run. Commits are atomic."""


class Stopped(BaseException):
    """Ends a unit in a worker thread. Not an `Exception`, so that no code takes it for an error of a sample."""


def exit_code(error: BaseException) -> int:
    """130 for Ctrl-C, 143 for SIGTERM (Prefect's `TerminationSignal`), or the code of a SystemExit."""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 130 if isinstance(error, KeyboardInterrupt) else 143


def stop(error: BaseException) -> None:
    """Ask the units in worker threads to end. If a signal is the reason, the process ends after the grace period."""
    _stopping.set()
    if exits_process and not isinstance(error, Exception):
        timer = threading.Timer(GRACE_SECONDS, os._exit, [exit_code(error)])
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


def stoppable(progress: Progress) -> Progress:
    """Wrap `progress` so that it raises `Stopped` once a stop has been requested."""

    def report(done: int, total: int, text: str) -> None:
        if _stopping.is_set():
            raise Stopped
        progress(done, total, text)

    return report
