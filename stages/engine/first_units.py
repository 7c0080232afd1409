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

    So the verdict is the same with any runner and after a resume, and later units never change it. A run with fewer
    rows goes on: a handful of rejected rows may be chance, and costs little.

    Args:
        stage: the map stage.
        units: the units that are complete or will be made.
        max_rejected: the fraction of rejected rows above which the run stops. 1: never.
    """

    def __init__(self, stage: MapStage, units: Iterable[int], max_rejected: float) -> None:
        self._stage = stage
        self._units = sorted(units)
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
                self._decide(rows)
                return

    def _decide(self, rows: Counts) -> None:
        self.decided = True
        judged = _judged(rows)
        rejected = Counter({reason: count for (status, reason), count in rows.items() if status == "rejected"})
        if rejected.total() <= self._max_rejected * judged:
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
