"""Selects and validates the stages and units to run."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.graph import Graph

MOST_UNITS = 1_000_000
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
            f"units: {', '.join(map(str, wrong[:8]))}{', …' if len(wrong) > 8 else ''} → not in this run, which has "
            f"units 0 to {len(have) - 1}"
            f" (caption.count {config.caption.count}, unit_size {config.unit_size})"
        )
    if not any(graph.is_map(stage) for stage in stages):
        raise InputError(
            f"units: {', '.join(map(str, units))} → {stages[0]} makes one result and has no units; leave out --units"
        )
    return tuple(sorted(set(units)))


def parse_units(text: str) -> list[int]:
    """Parse a list such as `3,17,20-24`. Raises InputError."""
    units: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError(f"units: {text!r} → write numbers and ranges, such as 3,17,20-24")
        begin, end = int(first[:DIGITS]), int((last or first)[:DIGITS])
        if len(first) > DIGITS or len(last) > DIGITS or end - begin >= MOST_UNITS - len(units):
            raise InputError(f"units: {text[:60]!r} → names more than {MOST_UNITS} units; no run has as many")
        units += range(begin, end + 1)
    return units
