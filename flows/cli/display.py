"""Progress in the terminal: a bar per stage with rate and time left. Without a terminal, one line per stage."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from bootpig.stages.engine.contract import Progress as ProgressCallback
from bootpig.stages.plain_text import printable


class _Rate(ProgressColumn):
    """Steps or samples per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:.1f}/s" if speed < 1000 else f"{speed / 1000:.1f}k/s", style="cyan")


class Display:
    """Shows the progress of a run's stages.

    Args:
        console: where to draw; None draws nothing.
    """

    def __init__(self, console: Console | None) -> None:
        self.console = console
        self._bars: Progress | None = None
        if console is not None and console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description:<11}"),
                BarColumn(bar_width=28),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                _Rate(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=console,
            )

    @contextmanager
    def stage(self, stage: str, total: int) -> Iterator[StageBar]:
        """The progress bar of one stage with `total` samples or steps. Removed when the block ends."""
        if self._bars is None:
            yield StageBar(None, 0, self.line)
            return
        bar = self._bars.add_task(stage, total=total, text="")
        self._bars.start()
        try:
            yield StageBar(self._bars, int(bar))
        finally:
            self._bars.remove_task(bar)
            self._bars.stop()

    def line(self, text: str, style: str | None = None) -> None:
        """Print a line that stays on the screen. A full disk under a log of the output ends no run: from then on,
        nothing is printed."""
        if self.console is None:
            return
        try:
            self.console.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)
        except BrokenPipeError:  # whoever reads the output has had enough
            raise
        except OSError:
            self.console = None


class StageBar:
    """Adds up the progress of a stage's units, which may run at the same time."""

    def __init__(
        self, bars: Progress | None, bar: int, line: Callable[[str, str | None], None] = lambda text, style: None
    ) -> None:
        """`line`: prints, where there is no bar."""
        self._bars = bars
        self._bar = bar
        self._line = line
        self._lock = threading.Lock()
        self._said: set[str] = set()

    def advance(self, amount: int) -> None:
        if self._bars is not None:
            self._bars.advance(self._bar, amount)  # type: ignore[arg-type]

    def _tell(self, text: str) -> None:
        """What a unit waits for: beside the bar, or, where there is none, once as a line."""
        if self._bars is not None:
            self._bars.update(self._bar, text=text)  # type: ignore[arg-type]
        elif text and (kind := re.sub(r"\d+", "", text)) not in self._said:
            self._said.add(kind)
            self._line(f"  {text}", "dim")

    def unit(self) -> ProgressCallback:
        """The progress callback of one unit. Its progress is added to that of the other units."""
        last = 0

        def report(done: int, total: int, text: str) -> None:
            nonlocal last
            with self._lock:
                self.advance(done - last)
                last = done
                self._tell(text)

        return report

    def result(self) -> ProgressCallback:
        """The progress callback of a stage that makes one result and reports its own total."""

        def report(done: int, total: int, text: str) -> None:
            if self._bars is not None:
                self._bars.update(self._bar, completed=done, total=total, text=text)  # type: ignore[arg-type]

        return report


current = Display(None)
"""The display of this process. Set by the command line; a flow started by a server draws nothing."""


@contextmanager
def shown_on(console: Console | None) -> Iterator[Display]:
    """Draw on `console` until the block ends; None draws nothing."""
    global current
    before, current = current, Display(console)
    try:
        yield current
    finally:
        current = before
