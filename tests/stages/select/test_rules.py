"""The rules of a selection on made-up scores: what they keep, drop and say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from bootpig.stages.engine.contract import InputError
from bootpig.stages.report.selection import MEANINGS
from bootpig.stages.score.stage import Score
from bootpig.stages.select.config import SelectConfig
from bootpig.stages.select.duplicates import Nearest
from bootpig.stages.select.rules import NEAREST, SCORES, Flags, Outcome, Scored, choose, nothing_left


def scored(count: int = 20) -> Scored:
    """Scores that rise from 0 in steps of 0.05 or fall, as float32 as in the store."""
    rising = np.arange(count, dtype=np.float32) / np.float32(20)
    rows = [
        dict.fromkeys(SCORES)
        | {"id": f"{i:04d}", "unit": i // 5, "object": f"a {'red' if i % 4 else 'blue'} mug", "status": "ok"}
        | {"sharpness": float(rising[i]), "area": float(rising[-1 - i]), "detections": i % 3}
        for i in range(count)
    ]
    return Scored.of_rows([*rows, {**rows[0], "id": "x", "status": "failed"}])


def select(data: Scored | None = None, seed: int = 0, **rules: Any) -> Outcome:
    def compare(kept: Flags) -> Nearest:
        raise AssertionError("no near-duplicates were asked for")

    return choose(scored() if data is None else data, SelectConfig(**rules), seed, compare)


def places(outcome: Outcome) -> list[int]:
    return np.flatnonzero(outcome.kept).tolist()


def test_a_sample_passes_all_thresholds_and_the_limit_itself_passes() -> None:
    assert places(select(min_sharpness=0.35, max_sharpness=0.6)) == list(range(7, 13))
    assert places(select(max_detections=0)) == list(range(0, 20, 3))
    assert places(select()) == list(range(20))
    assert select(min_sharpness=0.9).ids == ["0018", "0019"]


def test_a_quantile_is_taken_over_all_samples() -> None:
    outcome = select(min_sharpness="25%", max_area="90 %")
    low, high = outcome.rules
    assert (low.limit, high.limit) == ("25%", "90%")
    assert low.dropped.sum() == 5 and high.dropped.sum() == 2
    assert low.value == pytest.approx(0.2375)


def test_what_rules_drop_together_and_alone() -> None:
    facts = select(min_sharpness=0.5, min_area=0.1, max_per_object=6).facts()
    rules = {rule["rule"]: (rule["dropped"], rule["alone"]) for rule in facts["rules"]}
    assert rules == {"min_sharpness": (10, 10), "min_area": (2, 2), "max_per_object": (0, 0)}
    both = select(min_sharpness=0.5, max_area=0.5).facts()
    assert both["overlaps"] == [{"rules": ["min_sharpness", "max_area"], "samples": 9}]
    assert [(rule["dropped"], rule["alone"]) for rule in both["rules"]] == [(10, 1), (9, 0)]
    assert (both["samples"], both["selected"]) == (20, 10)
    assert both["subjects"] == [{"subject": "mug", "samples": 20, "selected": 10}]


def test_the_nearest_samples_on_both_sides_are_named() -> None:
    (rule,) = select(min_sharpness=0.5).facts()["rules"]
    assert [entry["id"] for entry in rule["nearest"]["kept"]] == [f"{i:04d}" for i in range(10, 10 + NEAREST)]
    assert [entry["id"] for entry in rule["nearest"]["dropped"]] == [f"{i:04d}" for i in range(9, 9 - NEAREST, -1)]
    assert rule["nearest"]["dropped"][0]["unit"] == 1


def test_at_most_so_many_of_an_object_and_in_all() -> None:
    outcome = select(max_per_object=3)
    assert sum(outcome.scored.objects[i] == "a blue mug" for i in places(outcome)) == 3
    assert len(places(outcome)) == 6
    assert places(outcome) == places(select(max_per_object=3)) != places(select(max_per_object=3, seed=1))
    assert len(places(select(max_samples=7))) == 7
    assert set(select(max_samples=7).ids) <= set(select(max_samples=8).ids)
    grown, small = set(select(scored(40), max_samples=30).ids), set(select(scored(40), max_samples=20).ids)
    assert small < grown
    assert max(places(select(scored(40), max_samples=20))) > 25, "not the first ones"


def test_near_duplicates_are_looked_for_among_what_the_thresholds_keep() -> None:
    def compare(kept: Flags) -> Nearest:
        assert kept.sum() == 10
        cosines = np.array([-np.inf, *np.linspace(0.895, 0.975, 9)], np.float32)
        return Nearest(cosines, np.array([-1, *[0] * 9]))

    config = SelectConfig(min_sharpness=0.5, max_similarity=0.95, max_samples=5)
    outcome = choose(scored(), config, 0, compare)
    similar = outcome.rules[1]
    assert np.flatnonzero(similar.dropped).tolist() == [17, 18, 19]
    assert len(places(outcome)) == 5 and not set(places(outcome)) & {17, 18, 19}
    first = outcome.facts()["rules"][1]["nearest"]["dropped"][0]
    assert (first["id"], first["like"]) == ("0017", {"id": "0010", "unit": 2})


def test_a_score_that_no_sample_has_and_a_selection_of_nothing_are_one_line() -> None:
    with pytest.raises(InputError, match=r"^select\.min_head_score: 5% → no sample has head_score"):
        select(min_head_score="5%")
    assert nothing_left(select(min_sharpness=2, min_area=0.5).facts()) == (
        "no sample is left of 20 (min_sharpness 2 drops 20, min_area 0.5 drops 10); loosen these settings of select"
    )
    assert "no scored sample" in str(nothing_left(select(Scored.of_rows([]), min_sharpness=2).facts()))
    assert nothing_left(select(min_sharpness=0.9).facts()) is None


def of_values(**scores: list[float | None]) -> Scored:
    """Samples with these scores and no others."""
    count = len(next(iter(scores.values())))
    rows = [
        {
            "id": f"{i:04d}",
            "unit": 0,
            "object": "a mug",
            "status": "ok",
            **{name: row[i] for name, row in scores.items()},
        }
        for i in range(count)
    ]
    return Scored.of_rows(rows)


def test_only_a_sample_without_views_passes_a_limit_for_what_it_lacks() -> None:
    data = of_values(view_identity=[0.9, None, 0.4], rubric=[8.0, 2.0, None], sharpness=[0.5, 0.5, float("nan")])
    assert places(select(data, min_view_identity=0.6)) == [0, 1]
    assert places(select(data, max_view_identity=0.6)) == [1, 2]
    assert places(select(data, min_view_identity="50%")) == [0, 1]
    assert places(select(data, min_rubric=1)) == places(select(data, max_rubric=9)) == [0, 1]
    assert places(select(data, min_sharpness=0.1)) == [0, 1]
    nothing = of_values(view_identity=[None, None], area=[0.1, 0.2])
    with pytest.raises(InputError, match=r"^select\.min_view_identity: 0.6 → no sample has view_identity"):
        select(nothing, min_view_identity=0.6)


def test_scores_that_are_not_finite_are_missing_ones() -> None:
    data = of_values(head_score=[float("inf"), 1.0, float("-inf")], area=[float("inf")] * 3)
    assert list(data.scores) == ["head_score"]
    assert places(select(data, min_head_score="50%")) == [1]


def test_a_quantile_of_three_samples() -> None:
    data = of_values(sharpness=[0.1, 0.2, 0.4])
    assert places(select(data, min_sharpness="34%")) == [1, 2]
    assert select(data, min_sharpness="75%").rules[0].value == pytest.approx(0.3)
    assert places(select(data, min_sharpness="99.9%")) == [2]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"min_sharpness": "5"}, None),
        ({"min_sharpness": "0%"}, "must be between 0% and 100%"),
        ({"min_sharpness": "much"}, "must be a number, or a share of the samples such as 5%"),
        ({"min_sharpness": float("nan")}, "must be a number"),
        ({"min_sharpness": [1]}, "must be a number"),
        ({"min_sharpness": True}, "is a truth value"),
        ({"min_area": 0.5, "max_area": 0.4}, "min_area 0.5 is above max_area 0.4; no sample would pass"),
        ({"min_area": "90%", "max_area": "10%"}, "min_area 90% is above max_area 10%"),
        ({"similarity": "clip"}, "similarity: no effect without max_similarity"),
        ({"max_similarity": 1.0}, "less than 1"),
        ({"min_beauty": 1}, "Extra inputs"),
    ],
)
def test_limits(rules: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert SelectConfig(**rules).min_sharpness == 5.0
        return
    with pytest.raises(ValidationError, match=message) as caught:
        SelectConfig(**rules)
    assert caught.value.error_count() == 1


def test_every_score_has_its_limits() -> None:
    names = {f"{side}_{score}" for side in ("min", "max") for score in SCORES}
    assert names < set(SelectConfig.model_fields)
    assert set(SelectConfig(**dict.fromkeys(names, 0.5)).limits()) == names
    numbers = [field.name for field in [*Score.columns, *Score.optional_columns] if pa.types.is_primitive(field.type)]
    assert sorted(numbers) == sorted(SCORES) == sorted(MEANINGS)
