"""The program that spoils a data set: what it changes, and that a selection is measured against it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.spoil import KINDS, check, make, wilson
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.shardio import unpack
from bootpig.storage.parts import Parts
from tests.stages.doubles import config, doubles  # noqa: F401

SECTIONS = {"score": {"clip": None, "dino": None}, "select": {"min_sharpness": 0.48}}


def shard(engine: Engine, unit: int) -> bytes:
    survey = engine.survey("segment")
    return Parts(engine.root, "segment", survey.fingerprint).payload(unit, survey.markers[unit])


@pytest.mark.usefixtures("doubles")
def test_a_share_of_the_samples_is_spoilt_in_three_ways(tmp_path: Path) -> None:
    good = Engine(config(tmp_path / "good"))
    for stage in ("caption", "synthesize", "segment"):
        for unit in good.units():
            good.run_unit(stage, unit)
    truth = make(good, tmp_path / "spoilt", 0.8)
    assert set(truth.values()) == set(KINDS)
    bad = Engine(config(tmp_path / "spoilt", **SECTIONS))
    survey = bad.survey("segment")
    assert survey.count("complete") == 4
    for unit, marker in survey.markers.items():
        before, after = (unpack(marker.rows, shard(each, unit)) for each in (good, bad))
        for was, now in zip(before, after, strict=True):
            changed = {
                "caption": was.meta != now.meta,
                "mask": was.files["mask.json"] != now.files["mask.json"],
                "blur": was.files["png"] != now.files["png"],
            }
            assert [kind for kind, differs in changed.items() if differs] == (
                [truth[now.id]] if now.id in truth else []
            )
    for unit in bad.units():
        assert bad.run_unit("score", unit).state == "done"
    assert bad.run_reduce("select").state == "done"
    found = {kind: (dropped, total) for kind, dropped, total in check(bad)}
    assert {kind: found[kind][1] for kind in KINDS} == Counter(truth.values())
    blurred, good_ones = found["blur"], found["good"]
    assert blurred[0] / blurred[1] > good_ones[0] / good_ones[1]


def test_intervals_of_shares() -> None:
    low, high = wilson(90, 100)
    assert (low, high) == (pytest.approx(0.8256, abs=1e-3), pytest.approx(0.9448, abs=1e-3))
    assert wilson(5, 5)[1] == pytest.approx(1) and wilson(0, 5)[0] == pytest.approx(0, abs=1e-9)
