"""What decides the pictures of an evaluation, and what decides only how they are measured or judged."""

from __future__ import annotations

from typing import Any

from bootpig.stages.evaluate.measures.config import drawn_by


def identity(models: dict[str, str], **config: Any) -> dict[str, Any]:
    return {"stage": "evaluate", "config": {"steps": 2, **config}, "models": {"model": "base", **models}}


def test_a_judge_and_measures_do_not_decide_pictures() -> None:
    plain = drawn_by(identity({}))
    assert drawn_by(identity({"clip": "a", "segment.sam": "b"}, metrics=["clip_t"], segment={"border": 0})) == plain
    assert drawn_by(identity({"ratings": "people.csv"}, judge={"model": "vision"})) == plain
    assert drawn_by(identity({}, steps=3)) != plain
    assert drawn_by(identity({"model": "other"})) != plain


def test_the_segment_models_decide_pictures_where_they_cut_the_references_out() -> None:
    cut = drawn_by(identity({"segment.sam": "a"}, benchmark="dreambooth"))
    assert drawn_by(identity({"segment.sam": "b"}, benchmark="dreambooth")) != cut
