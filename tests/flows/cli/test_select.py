"""`bootpig select` on a real store of fast stages: tables, the page, what it leaves alone, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bootpig.flows.cli.main import main
from bootpig.flows.loading import dump_config
from bootpig.stages.engine.engine import Engine
from bootpig.stages.report.gather import StageDone, gather
from bootpig.stages.report.html import build_report
from tests.stages.doubles import config, doubles  # noqa: F401
from tests.stages.report.test_report import Page

pytestmark = pytest.mark.usefixtures("doubles")


@pytest.fixture
def store(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> tuple[Engine, str]:
    """A store with scores but no selection, and the path of its configuration."""
    monkeypatch.chdir(tmp_path)
    built = tmp_path_factory.getbasetemp() / "scored-store"
    if not built.exists():
        engine = Engine(config(tmp_path / "built", score={"clip": None, "dino": None}))
        for stage in ("caption", "synthesize", "segment", "score"):
            for unit in engine.units():
                assert engine.run_unit(stage, unit).state == "done"
        shutil.copytree(tmp_path / "built", built)
    shutil.copytree(built, tmp_path / "data")
    engine = Engine(config(tmp_path / "data", score={"clip": None, "dino": None}))
    (tmp_path / "run.yaml").write_text(dump_config(engine.config).replace("select: null\n", ""))
    return engine, str(tmp_path / "run.yaml")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_shows_what_rules_cost_and_touches_nothing(
    store: tuple[Engine, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, file = store
    before = contents(tmp_path / "data")
    rules = ["--set", "select.min_sharpness=20%", "--set", "select.max_area=90%", "--set", "select.max_per_object=1"]
    assert main(["select", file, "--json", *rules]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [rule["rule"] for rule in facts["rules"]] == ["min_sharpness", "max_area", "max_per_object"]
    assert 0 < facts["selected"] < facts["samples"]
    assert all(row["selected"] <= 1 for row in facts["subjects"])
    assert main(["select", file, *rules, "-o", "page.html"]) == 0
    said = capsys.readouterr().out
    assert "min_sharpness" in said and "page: page.html" in said
    assert contents(tmp_path / "data") == before
    assert (tmp_path / "select.html").read_text() == (tmp_path / "page.html").read_text()
    page = Page((tmp_path / "page.html").read_text())
    assert page.open == []
    assert all(heading in page.text for heading in ("Selection", "Scores", "Borderline pictures", "min sharpness 20%"))
    pictures = [values for tag, values in page.tags if tag == "img"]
    assert len(pictures) >= 4 and all(str(values["src"]).startswith("data:image/png") for values in pictures)


def test_a_limit_that_drops_everything_still_shows_where_it_is(
    store: tuple[Engine, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["select", store[1], "--set", "select.min_sharpness=5"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("select: no sample is left of") and said.err.count("\n") == 1
    assert "min_sharpness" in said.out
    assert (tmp_path / "select.html").exists()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "select: missing → add a select section"),
        (["select.min_beauty=1"], "select.min_beauty: 1 → there is no such setting"),
        (["select.min_sharpness=much"], "select.min_sharpness: 'much' → must be a number, or a share"),
        (["select.min_caption_score=0.9"], "select.min_caption_score: 0.9 → no stage makes it; set score.clip"),
        (["select.min_area=0.1", "seed=7"], "score: no unit is complete → make them with bootpig run"),
        (["select.min_area=0.1", "score=null"], "select: reads scores, but there is no score section"),
    ],
)
def test_bad_input_is_one_line(
    rules: list[str], message: str, store: tuple[Engine, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["select", store[1], *(word for rule in rules for word in ("--set", rule))]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(message) and said.err.count("\n") == 1 and said.out == ""
    assert main(["select", store[1], "--set", "select.min_area=0.1", "-o", "nowhere/page.html"]) == 2
    assert "--out: 'nowhere/page.html' → cannot be written" in capsys.readouterr().err


def test_the_report_shows_scores_thresholds_and_costs(store: tuple[Engine, str], tmp_path: Path) -> None:
    scored, _ = store
    page = Page(build_report(gather(scored, "20261123-toy", {})))
    assert "Scores" in page.text and "Borderline" not in page.text and "Selection" not in page.text
    selecting = Engine(config(tmp_path / "data", score={"clip": None, "dino": None}, select={"min_sharpness": "30%"}))
    assert selecting.run_reduce("select").state == "done"
    report = gather(selecting, "20261123-toy", {"select": StageDone(1, 0.1)})
    assert report.selection is not None and report.selection.selected
    sharpness = next(h for h in report.selection.histograms if h.name == "sharpness")
    assert [line.rule for line in sharpness.lines] == ["min_sharpness"]
    assert {dropped for _, dropped in sharpness.bars} == {True, False}
    (border,) = report.selection.borders
    assert border.dropped and border.kept
    page = Page(build_report(report))
    assert "Borderline pictures" in page.text and f"{report.selection.selected} of" in page.text
