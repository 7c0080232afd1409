"""Reads logs of trainings that run, failed or are complete; damaged lines cost only themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bootpig.stages.engine.live import live_path
from bootpig.stages.engine.survey import StageSurvey
from bootpig.stages.train.curves import curves, newest, read_log
from bootpig.storage.folders import Published
from bootpig.storage.root import Root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(str(tmp_path))


RUNNING = StageSurvey("train", "f", "train/f", {}, {0: "pending"})
COMPLETE = StageSurvey("train", "f", "train/f", {}, {0: "complete"}, result=Published("train/f/result/a", {}))
UNKNOWN = StageSurvey("train", "", "", {}, {0: "pending"})


def lines(*values: object) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def test_the_result_counts_more_than_a_copy(root: Root) -> None:
    assert read_log(root, RUNNING) == read_log(root, COMPLETE) == read_log(root, UNKNOWN) == []
    root.write(live_path("train/f"), lines({"step": 10, "loss": 0.5}))
    root.write("train/f/result/a/log.jsonl", lines({"step": 20, "loss": 0.25}))
    assert read_log(root, RUNNING) == [{"step": 10, "loss": 0.5}]
    assert read_log(root, COMPLETE) == [{"step": 20, "loss": 0.25}]


def test_only_the_end_is_read_if_that_is_enough(root: Root) -> None:
    data = lines(*({"step": step, "loss": 0.5} for step in range(100, 200)))
    root.write(live_path("train/f"), data)
    read = read_log(root, RUNNING, len(data) // 100 * 3 + 5)
    assert [line["step"] for line in read] == [197, 198, 199], "a line that is cut is left out"
    assert len(read_log(root, RUNNING, 10**6)) == 100


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 1, "loss"',
        b"\xff\xfe",
        b"[1, 2]",
        b"null",
        b'{"loss": 0.5}',
        b'{"step": "1", "loss": 0.5}',
        b'{"step": NaN, "loss": 0.5}',
        b"[" * 10**5,
    ],
)
def test_a_damaged_line_costs_only_itself(root: Root, line: bytes) -> None:
    root.write(live_path("train/f"), line + b"\n" + lines({"step": 2, "loss": 0.25}))
    assert read_log(root, RUNNING) == [{"step": 2, "loss": 0.25}]


def test_what_is_no_finite_number_is_left_out(root: Root) -> None:
    line = b'{"step": 1, "loss": NaN, "a": Infinity, "b": "text", "c": true, "d": null, "mfu": 0.5, "e": 1' + b"0" * 400
    root.write(live_path("train/f"), line + b"}\n")
    assert read_log(root, RUNNING) == [{"step": 1, "mfu": 0.5}]


def test_newest_values_and_curves() -> None:
    log = [{"step": 2, "loss": 0.5, "epoch": 1}, {"step": 3, "reference_gain": 0.1}, {"step": 4, "loss": 0.4}]
    assert newest(log) == {"step": 4, "loss": 0.4, "epoch": 1, "reference_gain": 0.1}
    assert curves(log) == {"loss": [(2, 0.5), (4, 0.4)], "reference_gain": [(3, 0.1)]}
    assert newest([]) == curves([]) == {}
