"""Runs the parts of `python -m science` as processes, several at a time.

A training of the toy world uses one core well and two badly, so two parts at a time finish sooner than one after the
other. Parts that share trainings follow each other; what they share is then in the store.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from science import WORK

POLL_SECONDS = 0.5
GRACE_SECONDS = 60
NEWS_SECONDS = 600.0
"""Time between two lines on how far the parts are."""
KNOWN_MINUTES = 10.0
"""Weight of the planned minutes against the measured ones: at the beginning, little is measured."""


@dataclass(frozen=True)
class Part:
    """One process."""

    name: str
    arguments: Sequence[str]
    """Of `python -m`."""
    minutes: float
    """What it takes on one core beside another part, measured; for the time left."""
    after: Sequence[str] = ()
    """Parts that end before it begins, whether or not they succeed."""


class Pace:
    """Estimates the time left, from how long parts took in comparison to what was planned."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.planned = self.taken = KNOWN_MINUTES

    def add(self, planned: float, taken: float) -> None:
        """A part ended. Both in minutes. One that was mostly in the store already says nothing."""
        if taken > planned / 10:
            self.planned += planned
            self.taken += taken

    def left(self, waiting: Sequence[float], running: Sequence[tuple[float, float]]) -> float:
        """The minutes left.

        Args:
            waiting: the planned minutes of the parts that have not begun.
            running: the planned minutes of the others, and the minutes that they have run.
        """
        per_minute = self.taken / self.planned
        parts = [planned * per_minute for planned in waiting]
        parts += [max(0.0, planned * per_minute - been) for planned, been in running]
        return max(sum(parts) / self.jobs, *parts, 0.0)


def run_parts(parts: Sequence[Part], jobs: int, threads: int) -> list[str]:
    """Run all parts, `jobs` at a time, each with `threads` threads. Their output goes to `WORK/logs`.

    Returns:
        The names of those that failed. If this process is interrupted, the parts are interrupted too, and what they
        finished stays.
    """
    logs = WORK / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running, ended, failed = list(parts), dict[str, _Running](), set[str](), list[str]()
    pace, news = Pace(jobs), time.monotonic() + NEWS_SECONDS
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while waiting or running:
            for part in [each for each in waiting if ended.issuperset(each.after)][: jobs - len(running)]:
                waiting.remove(part)
                running[part.name] = _Running(part, logs / f"{part.name}.log", threads)
                _say(f"{part.name} begins, {len(ended) + len(running)} of {len(parts)}")
            time.sleep(POLL_SECONDS)
            for name, each in list(running.items()):
                if (code := each.process.poll()) is None:
                    continue
                del running[name]
                ended.add(name)
                pace.add(each.part.minutes, each.minutes())
                _say(f"{name} {'ended' if code == 0 else 'failed'}, {_left(pace, waiting, running)}")
                if code != 0:
                    failed.append(name)
                    _say(f"{name}: {each.last_line()} ({each.log})")
            if time.monotonic() >= news:
                news += NEWS_SECONDS
                for each in running.values():
                    _say(f"{each.part.name}: {each.progress()}")
                _say(_left(pace, waiting, running))
    except KeyboardInterrupt:
        for each in running.values():
            os.killpg(each.process.pid, signal.SIGINT)  # its own processes too
        for each in running.values():
            each.end()
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    return failed


class _Running:
    """A part that runs."""

    def __init__(self, part: Part, log: Path, threads: int) -> None:
        self.part, self.log, self.begin = part, log, time.monotonic()
        with log.open("ab") as output:
            self.old = output.tell()
            """Bytes of the log that earlier processes of this part wrote."""
            # in a session of its own, so that ctrl-c in a terminal reaches it once, from here
            self.process = subprocess.Popen(
                [sys.executable, "-m", *part.arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                start_new_session=True,
            )

    def end(self) -> None:
        """Wait for it, but not for ever."""
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def minutes(self) -> float:
        """Since it began."""
        return (time.monotonic() - self.begin) / 60

    def last_line(self) -> str:
        return next((line for line in self._lines() if line), "no output")

    def progress(self) -> str:
        """How far it is: the run of its sweep, or the subject that it trained last."""
        marks = ("[", f"{self.part.name}: ")
        found = next((line for line in self._lines() if line.startswith(marks)), "at its beginning")
        return found.removeprefix(marks[1])

    def _lines(self) -> Iterator[str]:
        """The lines that it wrote, the last one first."""
        lines = self.log.read_bytes()[self.old :].decode(errors="replace").split("\n")
        return (line.strip() for line in reversed(lines))


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M')} science: {what}", flush=True)


def _left(pace: Pace, waiting: Sequence[Part], running: Mapping[str, _Running]) -> str:
    now = [(each.part.minutes, each.minutes()) for each in running.values()]
    return _about(pace.left([part.minutes for part in waiting], now))


def _about(minutes: float) -> str:
    if minutes < 1:
        return "less than a minute left"
    hours, rest = divmod(round(minutes), 60)
    return f"about {hours} h {rest:02d} min left" if hours else f"about {rest} min left"
