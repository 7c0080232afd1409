"""Selects and validates the stages and units to run."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from bootpig.stages.config import MOST_UNITS, PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.graph import Graph

DIGITS = 12
"""Of a unit's number."""


@dataclass(frozen=True)
class Selection:
    """What to run.

    Args:
        stages: stages in DAG order.
        units: units of the map stages; None means all units of the run.
        force: make complete units again.
        retry_failed: make slices with failed rows again.
    """

    stages: tuple[str, ...]
    units: tuple[int, ...] | None = None
    force: bool = False
    retry_failed: bool = False


def span(graph: Graph, first: str | None = None, until: str | None = None) -> tuple[str, ...]:
    """The stages from `first` to `until`, inclusive: those that depend on `first` and that `until` depends on.

    Raises:
        InputError: there is no such stage, or `until` does not depend on `first`.
    """
    begin = known_stage("from", first, graph) if first else None
    end = known_stage("until", until, graph) if until else None
    return graph.span(begin, end)


def data_stages(graph: Graph, first: str | None = None) -> tuple[str, ...]:
    """The stages that make the data set: those that train reads, and all above them. Only those that depend on `first`,
    if that is given.

    Raises:
        InputError: there is no such stage.
    """
    below = graph.below(known_stage("from", first, graph)) if first else tuple(graph.stages)
    above = graph.above(graph.upstream["train"])
    return tuple(name for name in below if name in above)


def known_stage(field: str, stage: str, graph: Graph) -> str:
    """Return `stage`. Raises InputError if the run has no stage of that name."""
    if stage not in graph.stages:
        close = difflib.get_close_matches(stage, graph.stages, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(graph.stages)}"
        raise InputError(f"{field}: {stage!r} → there is no such stage; {hint}")
    return stage


def known_units(
    config: PipelineConfig, graph: Graph, stages: Sequence[str], units: Sequence[int] | None
) -> tuple[int, ...] | None:
    """`units` sorted and unique. Raises InputError for an unknown unit, or if no selected stage has units."""
    if units is None:
        return None
    if not units:
        raise InputError("units: [] → is empty; leave it out for all units")
    have = config.unit_numbers()
    if wrong := [unit for unit in units if unit not in have]:
        raise InputError(
            f"units: {_short(wrong)} → not in this run, which has "
            f"units 0 to {len(have) - 1}"
            f" ({config.source}.count {config.count}, unit_size {config.unit_size})"
        )
    if not any(graph.is_map(stage) for stage in stages):
        raise InputError(f"units: {_short(units)} → {stages[0]} makes one result and has no units; leave out --units")
    return tuple(sorted(set(units)))


def _short(units: Sequence[int]) -> str:
    return ", ".join(map(str, units[:8])) + (", …" if len(units) > 8 else "")


def parse_units(text: str) -> list[int]:
    """Parse a list such as `3,17,20-24`, sorted and unique. Raises InputError."""
    units: set[int] = set()
    for piece in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", piece)
        if found is None:
            raise InputError(f"units: {text[:60]!r} → write numbers and ranges, such as 3,17,20-24")
        first, last = found[1], found[2] or found[1]
        begin, end = int(first[:DIGITS]), int(last[:DIGITS])
        if len(first) > DIGITS or len(last) > DIGITS or end - begin >= MOST_UNITS:
            raise InputError(f"units: {text[:60]!r} → names more than {MOST_UNITS} units; no run has as many")
        if end < begin:
            raise InputError(f"units: {piece.strip()!r} → ends before it begins; write {end}-{begin}")
        units.update(range(begin, end + 1))
    return sorted(units)
