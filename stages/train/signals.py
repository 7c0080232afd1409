"""Ends a training in order on SIGTERM and Ctrl-C: after the current step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Self


class Signals:
    """A context that records SIGTERM and SIGINT, so that the current step can finish.

    Works only in the main thread, which alone may set handlers. In other threads it changes nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt  # second Ctrl-C: stop without waiting
        self.received = number
