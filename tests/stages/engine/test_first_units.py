"""Which units decide whether a run goes on after a stage has rejected its first rows."""

from __future__ import annotations

import inspect
import re
from collections import Counter

import pytest

from bootpig.stages.engine.contract import MapStage
from bootpig.stages.engine.first_units import ENOUGH, FirstUnits
from bootpig.stages.registry import MAP_STAGES, STAGES
from bootpig.stages.segment.stage import Segment, SegmentConfig

STAGE = Segment(SegmentConfig(detector="x", sam="y"), 0)


def counts(ok: int = 0, failed: int = 0, **rejected: int) -> Counter[tuple[str, str]]:
    rows = {("ok", ""): ok, ("failed", "error"): failed}
    return Counter(rows | {("rejected", reason): count for reason, count in rejected.items()})


def judge(*units: Counter[tuple[str, str]] | None, most: float = 0.999, more: int = 1) -> FirstUnits:
    """The judge after `units`; the run has `more` units after them."""
    first = FirstUnits(STAGE, range(len(units) + more), most)
    for unit, rows in enumerate(units):
        first.add(unit, rows)
    return first


def test_a_first_unit_of_rejected_rows_stops_the_run_and_says_why() -> None:
    first = judge(counts(low_score=18, no_mask=2))
    assert first.decided
    assert first.problem == (
        "segment: stopped because 20 of its first 20 rows were rejected (18 low_score: the best box scores below "
        "min_score; 2 no_mask); change segment.min_score, or set max_rejected to 1 to go on"
    )


def test_one_row_is_enough_to_go_on_and_later_units_change_nothing() -> None:
    first = judge(counts(ok=1, low_score=19), counts(low_score=1000))
    assert first.decided
    assert not first.problem


def test_small_units_are_judged_together() -> None:
    few = [counts(low_score=3)] * 5
    assert not judge(*few).decided
    assert judge(*few, counts(low_score=1)).problem
    assert not judge(*few, counts(ok=1)).problem
    assert sum(3 for _ in few) + 1 == ENOUGH


def test_units_are_judged_in_order_whatever_order_they_come_in() -> None:
    bad, good = counts(low_score=20), counts(ok=20)
    first = FirstUnits(STAGE, range(4), 0.999)
    first.add(2, bad)
    first.add(1, bad)
    assert not first.decided
    first.add(0, good)
    assert first.decided
    assert not first.problem


def test_empty_and_failed_units_and_failed_rows_say_nothing() -> None:
    assert not judge(counts(), None, counts(failed=50)).decided
    assert judge(counts(), None, counts(failed=50), counts(low_score=16)).problem
    assert not judge(counts(), None, counts(failed=50), more=0).problem
    assert not judge(more=0).decided


def test_a_small_run_goes_on() -> None:
    assert not judge(counts(low_score=4)).decided
    assert not judge(counts(low_score=ENOUGH - 1), more=0).decided
    assert judge(counts(low_score=ENOUGH), more=0).problem


def test_the_fraction_is_a_setting() -> None:
    assert judge(counts(ok=8, low_score=12), most=0.5).problem
    assert not judge(counts(ok=10, low_score=10), most=0.5).problem
    assert judge(counts(ok=19, low_score=1), most=0.0).problem
    never = judge(counts(low_score=20), most=1.0)
    assert never.decided
    assert not never.problem


@pytest.mark.parametrize("name", MAP_STAGES)
def test_every_rejection_of_every_stage_names_settings_that_exist(name: str) -> None:
    stage = STAGES[name]
    assert issubclass(stage, MapStage)
    assert set(stage.settings) <= set(stage.reasons)
    fields = stage.config_class.model_fields
    assert all(field in fields for names in stage.settings.values() for field in names)
    source = inspect.getsource(inspect.getmodule(stage))  # type: ignore[arg-type]
    assert set(re.findall(r'\.rejected\("(\w+)"', source)) <= set(stage.settings)
