"""Decides whether a run goes on after the first units of a map stage, which may have rejected all of their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from bootpig.stages.engine.contract import MapStage

ENOUGH = 16
"""Rows that decide. With the default `min_yield`, a stage rejects at most 70 % of them; 16 in a row by chance are then
rarer than one in 300."""

Counts = Counter[tuple[str, str]]
"""Rows by (status, reason)."""


class FirstUnits:
    """Judges the first units of a stage that together have `ENOUGH` rows, in the order of their numbers.

    So the verdict is the same with any runner and after a resume, and later units never change it. A stage with fewer
    rows is judged only when all of its units are there, and only stopped if it accepted none of them: nothing would be
    left for later stages.

    Args:
        stage: the map stage.
        units: the units that are complete or will be made.
        whole: whether these are all units of the run.
        max_rejected: the fraction of rejected rows above which the run stops. 1: never.
    """

    def __init__(self, stage: MapStage, units: Iterable[int], whole: bool, max_rejected: float) -> None:
        self._stage = stage
        self._units = sorted(units)
        self._whole = whole
        self._max_rejected = max_rejected
        self._known: dict[int, Counts] = {}
        self.decided = max_rejected >= 1
        """Whether further units no longer matter."""
        self.problem = ""
        """Why the run stops, in one line. Empty if it goes on."""

    def add(self, unit: int, counts: Counts | None) -> None:
        """Note a unit that is complete, or with None one that failed."""
        if self.decided:
            return
        self._known[unit] = counts or Counter()
        rows: Counts = Counter()
        for number in self._units:
            if number not in self._known:
                return
            rows += self._known[number]
            if _judged(rows) >= ENOUGH:
                self._decide(rows, self._max_rejected)
                return
        if self._whole:
            self._decide(rows, max(self._max_rejected, _all_but_one(rows)))

    def _decide(self, rows: Counts, most: float) -> None:
        self.decided = True
        judged = _judged(rows)
        rejected = Counter({reason: count for (status, reason), count in rows.items() if status == "rejected"})
        if not judged or rejected.total() <= most * judged:
            return
        name, (first, *others) = self._stage.name, rejected.most_common()
        reasons = [f"{first[1]} {first[0]}: {self._stage.reasons.get(first[0], 'no meaning is known')}"]
        reasons += [f"{count} {reason}" for reason, count in others]
        see = " and ".join(f"{name}.{field}" for field in self._stage.settings.get(first[0], ()))
        self.problem = (
            f"{name}: stopped because {rejected.total()} of its first {judged} rows were rejected "
            f"({'; '.join(reasons)}); {f'change {see}' if see else 'fix the cause'}, or set max_rejected to 1 to go on"
        )


def _judged(rows: Counts) -> int:
    """Rows that a filter accepted or rejected. Failed ones are a matter of `max_failed`."""
    return sum(count for (status, _), count in rows.items() if status != "failed")


def _all_but_one(rows: Counts) -> float:
    """A fraction that only a stage without any `ok` row exceeds."""
    judged = max(_judged(rows), 1)
    return (judged - 1) / judged
