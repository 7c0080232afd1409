"""Which stages and units a run is about."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.graph import Graph


@dataclass(frozen=True)
class Selection:
    """What is to run.

    Args:
        stages: in DAG order.
        units: of the map stages; None: all of the run.
        force: make complete units again.
        retry_failed: make the slices again that hold failed rows.
    """

    stages: tuple[str, ...]
    units: tuple[int, ...] | None = None
    force: bool = False
    retry_failed: bool = False


def span(graph: Graph, first: str | None = None, until: str | None = None) -> tuple[str, ...]:
    """The stages from `first` to `until`, both included: those that depend on the one and that the other depends on.

    Raises:
        InputError: no such stages, or none lies between.
    """
    begin = known_stage("from", first, graph) if first else None
    end = known_stage("until", until, graph) if until else None
    return graph.span(begin, end)


def known_stage(field: str, stage: str, graph: Graph) -> str:
    """`stage` itself. Raises InputError when the run has none of that name."""
    if stage not in graph.stages:
        close = difflib.get_close_matches(stage, graph.stages, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(graph.stages)}"
        raise InputError(f"{field}: {stage!r} → there is no such stage; {hint}")
    return stage


def known_units(
    config: PipelineConfig, graph: Graph, stages: Sequence[str], units: Sequence[int] | None
) -> tuple[int, ...] | None:
    """`units` sorted, each once. Raises InputError for one that the run does not have, or where units mean nothing."""
    if units is None:
        return None
    if not units:
        raise InputError("units: [] → names no unit; leave it out for all of them")
    have = config.unit_numbers()
    if wrong := [unit for unit in units if unit not in have]:
        raise InputError(
            f"units: {', '.join(map(str, wrong))} → no unit of this run; they are 0 to {len(have) - 1}"
            f" (caption.count {config.caption.count}, unit_size {config.unit_size})"
        )
    if not any(graph.is_map(stage) for stage in stages):
        raise InputError(f"units: {', '.join(map(str, units))} → {stages[0]} makes one result, it has no units")
    return tuple(sorted(set(units)))


def parse_units(text: str) -> list[int]:
    """`3,17,20-24` as numbers. Raises InputError."""
    units: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise InputError(f"units: {text!r} → write numbers and spans, such as 3,17,20-24")
        units += range(int(first), int(last or first) + 1)
    return units
