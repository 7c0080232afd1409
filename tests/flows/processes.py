"""Runs the command line in a marked process, so that all its descendants can be found."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

PROJECT = Path(__file__).parents[2]
MARK = "BOOTPIG_TEST_MARK"


class Command:
    """A `bootpig …` process. Its stdout and stderr go to a file."""

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.mark = uuid.uuid4().hex
        self.log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from bootpig.flows.cli.main import entry; entry()", *arguments],
                cwd=PROJECT,
                env={**os.environ, **environment, MARK: self.mark},
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    def wait(self, seconds: float) -> int:
        return self.process.wait(seconds)

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        """Raises AssertionError if the process ends or time runs out before the condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def left(self, seconds: float = 20.0) -> list[list[str]]:
        """Command lines of the process and its descendants that still exist after that time."""
        deadline = time.monotonic() + seconds
        while (found := self._marked()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def _marked(self) -> list[list[str]]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.cmdline())
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found
