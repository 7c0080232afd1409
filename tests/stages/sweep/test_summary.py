"""The summary of a sweep: means and differences by hand, and what happens to seeds and subjects that are missing."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bootpig.stages.report.pictures import data_uri
from bootpig.stages.report.sweep import SweepEntry, SweepPage, build_sweep
from bootpig.stages.sweep.scores import RunScores, read_run_scores, scores_table
from bootpig.stages.sweep.summary import CellSummary, summarise
from bootpig.storage.root import Root
from tests.stages.report.test_report import Page

PIXEL = data_uri(Image.new("RGB", (1, 1)))


def run(cell: str, seed: str, scores: Mapping[str, float], reason: str = "") -> RunScores:
    """A run with one DINO score per subject."""
    return RunScores(cell, seed, reason, values={("bootpig", name, "dino"): (v, 2) for name, v in scores.items()})


def cells(*runs: RunScores, baseline: str | None = "a") -> dict[str, CellSummary]:
    names = dict.fromkeys(run.cell for run in runs)
    return {cell.name: cell for cell in summarise([(name, {}, baseline) for name in names], runs)}


def test_means_and_differences_by_hand() -> None:
    found = cells(
        run("a", "0", {"cat": 0.2, "dog": 0.4}),
        run("a", "1", {"cat": 0.3, "dog": 0.5}),
        run("b", "1", {"dog": 0.9, "cat": 0.5}),
        run("b", "0", {"dog": 0.4, "cat": 0.6}),
    )
    a, b = found["a"].scores["bootpig", "dino"], found["b"].scores["bootpig", "dino"]
    assert (a.interval.mean, a.seeds, a.subjects) == (pytest.approx(0.35), 2, 2)
    assert b.interval.mean == pytest.approx(0.6)
    difference = found["b"].differences["bootpig", "dino"]
    assert (difference.interval.mean, difference.seeds, difference.subjects) == (pytest.approx(0.25), 2, 2)
    assert difference.interval.low < 0.25 < difference.interval.high
    assert found["a"].differences == {}


def test_only_seeds_and_subjects_that_both_have_are_compared() -> None:
    found = cells(
        run("a", "0", {"cat": 0.2, "dog": 0.4}),
        run("a", "1", {}, "train: it broke"),
        run("b", "0", {"cat": 0.5, "fox": 0.9}),
        run("b", "1", {"cat": 0.7, "fox": 0.9}),
    )
    assert found["a"].failed == {"1": "train: it broke"}
    assert found["a"].scores["bootpig", "dino"].seeds == 1
    assert found["b"].scores["bootpig", "dino"].interval.mean == pytest.approx(0.75)
    difference = found["b"].differences["bootpig", "dino"]
    assert (difference.interval.mean, difference.seeds, difference.subjects) == (pytest.approx(0.3), 1, 1)


def test_nothing_in_common_is_no_difference() -> None:
    found = cells(run("a", "0", {"cat": 0.2}), run("b", "0", {"dog": 0.5}), run("c", "0", {}, "it broke"))
    assert found["b"].differences == {} and found["b"].scores
    assert found["c"].scores == {} and found["c"].failed == {"0": "it broke"}
    json.dumps([cell.facts() for cell in found.values()], allow_nan=False)


def test_scores_are_read_from_the_store_and_a_failed_run_is_a_row(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    rows = [
        {"method": "bootpig", "subject": "cat", "prompt": "p", "file": "x", "clip_t": 0.1, "clip_i": 0.2, "dino": 0.3},
        {"method": "bootpig", "subject": "cat", "prompt": "q", "file": "y", "clip_t": 0.3, "clip_i": None, "dino": 0.5},
    ]
    write_result(root, "a" * 16, rows)
    read = read_run_scores(root, "one", "train.seed=0", "a" * 16)
    assert read.values["bootpig", "cat", "dino"] == (pytest.approx(0.4), 2)
    assert read.values["bootpig", "cat", "clip_i"] == (pytest.approx(0.2), 1)
    gone = read_run_scores(root, "two", "train.seed=0", "b" * 16)
    assert "its result is gone" in gone.reason
    table = scores_table([read, gone]).to_pylist()
    assert len(table) == 4
    assert table[-1] == {
        **dict.fromkeys(("method", "subject", "measure", "value", "pictures")),
        "cell": "two",
        "seed": "train.seed=0",
        "status": "failed",
        "reason": gone.reason,
    }


@pytest.mark.parametrize("damaged", [b"", b"no parquet", None])
def test_scores_that_cannot_be_read_fail_their_run_alone(damaged: bytes | None, tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    write_result(root, "a" * 16, [{"method": "bootpig", "file": "x"}])  # columns are missing
    if damaged is not None:
        root.write(f"evaluate/{'a' * 16}/result/{'0' * 16}/scores.parquet", damaged)
    assert "its scores are not readable" in read_run_scores(root, "one", "", "a" * 16).reason


def write_result(root: Root, fingerprint: str, rows: list[dict[str, Any]]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    root.write(f"evaluate/{fingerprint}/result/{'0' * 16}/scores.parquet", buffer.getvalue())
    root.write(f"evaluate/{fingerprint}/result/manifest.json", json.dumps({"folder": "0" * 16, "files": {}}).encode())


def test_the_page_shows_every_cell_and_escapes_what_it_shows() -> None:
    hostile = "<script>x</script>"
    scores = np.random.default_rng(0).random((3, 4))
    runs = [
        run(name, str(seed), dict(zip("abcd", scores[seed] + shift, strict=True)))
        for name, shift in (("a", 0.0), (hostile, 0.1))
        for seed in range(3)
    ]
    summaries = list(cells(*runs, run("c", "0", {}, hostile)).values())
    page = SweepPage(
        "s", "note", ("dino", "clip_t"), summaries, ("a",), [SweepEntry(hostile, (PIXEL, PIXEL))], "name: s"
    )
    html = build_sweep(page)
    assert hostile not in html
    shown = Page(html)
    assert shown.open == []
    for text in ("Scores", "Differences to the baseline", "Failed runs", "Contact sheet", "0 of 1 runs", "minus a"):
        assert text in shown.text, text
    lines = page.rows()
    assert [line["cell"] for line in lines] == ["a", hostile, "c", "c, 0"]
    assert lines[0]["DINO ↑ − baseline"] == "–" and lines[1]["DINO ↑ − baseline"].startswith("+0.100 [")
    assert lines[0]["CLIP-T ↑"] == "–"
