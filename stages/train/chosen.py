"""Which of encode's samples training reads: those that select has chosen, without those that are held out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence, Set

from bootpig.stages.engine.contract import ReduceInput, UnitRef
from bootpig.stages.select.stage import read_selected

_LOG = logging.getLogger(__name__)


def selected_samples(data: ReduceInput) -> frozenset[str] | None:
    """The samples that select has chosen. None without select: all of them."""
    select = data.beside.get("select")
    if select is None:
        return None
    assert select.result is not None
    return frozenset(read_selected(select.result))


def held_out_place(sample_id: str) -> float:
    """A number in [0, 1) that depends on nothing but the sample's id. Samples below a fraction are held out."""
    return int.from_bytes(hashlib.sha256(f"validation/{sample_id}".encode()).digest()[:6], "big") / 2**48


def rows_of(data: ReduceInput, unit: UnitRef, chosen: Set[str] | None) -> list[int]:
    """The indices in a unit's shard of the samples that are read."""
    if chosen is None:
        return list(range(unit.samples))
    return [index for index, sample_id in enumerate(_ids(data, unit)) if sample_id in chosen]


def _ids(data: ReduceInput, unit: UnitRef) -> list[str]:
    return [row["id"] for row in data.rows(unit.unit) if row["status"] == "ok"]


def held_out_samples(
    data: ReduceInput, units: Sequence[UnitRef], rows: Mapping[int, Sequence[int]], fraction: float
) -> list[tuple[UnitRef, int]]:
    """The samples below `fraction`, lowest first. A warning if there are none.

    Args:
        rows: for each unit, the indices in its shard of the samples that are read.
    """
    found = []
    for unit in units:
        ids = _ids(data, unit)
        places = [(held_out_place(ids[index]), unit, index) for index in rows[unit.unit]]
        found += [place for place in places if place[0] < fraction]
    if not found:
        total = sum(map(len, rows.values()))
        _LOG.warning(
            "train.validation: %g holds out none of the %d encoded samples, so that nothing tells whether references "
            "are used; raise it",
            fraction,
            total,
        )
    return [(unit, index) for _, unit, index in sorted(found, key=lambda place: place[0])]
