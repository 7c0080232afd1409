"""The record of measured runs: it stands in for a store that is gone, and not for other settings or code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from bootpig.flows.loading import load_config
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import Stage
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.survey import StageSurvey, graph_of, make_stage
from bootpig.stages.evaluate.stage import Evaluate
from science import results as science_results
from science.__main__ import HERE
from science.__main__ import main as science_main
from science.record import provenances, read_others, read_record, write_record
from science.results import Cell, Evaluation, Results, read_results
from science.tables import measured_others, table_1_rows
from science.terminal import show

SCORES = {"bootpig": {"dino": {"a": 0.5, "b": 0.25}, "clip_t": {"a": 0.75}}, "text_only": {"dino": {"a": 0.125}}}


def evaluation(key: str, fingerprint: str = "f", provenance: str = "commit 1") -> Evaluation:
    seconds = {"train": ("train/f", 10.0)}
    return Evaluation(300, SCORES, {"dino": 0.9}, seconds, "/store", "evaluate/f", key, fingerprint, provenance)


def results(*runs: Evaluation | None) -> Results:
    cells = {"ours": {"as shipped": Cell("as shipped", {}, dict(zip("012", runs, strict=False)))}}
    return Results(cells, others={"inpainting": {"subjects": 3}})


def test_what_is_recorded_is_read_again(tmp_path: Path) -> None:
    assert read_record(tmp_path / "record") == {}
    assert read_others(tmp_path / "record") == {}
    write_record(results(evaluation("1"), None, evaluation("2", "g", "commit 2")), tmp_path / "record")
    found = read_record(tmp_path / "record")
    assert found["1"] == replace(evaluation("1"), root="", folder="")
    assert found["2"].fingerprint == "g"
    assert read_others(tmp_path / "record") == {"inpainting": {"subjects": 3}}
    assert provenances(results(*found.values())) == {"commit 1": 1, "commit 2": 1}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("scores.parquet", None),
        ("scores.parquet", b""),
        ("runs.json", None),
        ("runs.json", b"[]"),
        ("runs.json", b'{"1": 3}'),
        ("runs.json", b'{"1": {"updates": 300}}'),
        ("runs.json", b"<<<<<<< HEAD"),
        ("others.json", b"3"),
        ("others.json", b"{"),
    ],
)
def test_a_damaged_record_is_one_line_and_is_not_written_over(
    name: str,
    content: bytes | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_record(results(evaluation("1")), tmp_path)
    file = tmp_path / name
    damaged = file.read_bytes()[:-20] if content is None else content
    file.write_bytes(damaged)
    monkeypatch.setattr("science.record.FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["science"])  # before any part of it begins
    assert science_main() == 2
    assert capsys.readouterr().err.startswith(f"{file}: is damaged; restore the folder")
    assert file.read_bytes() == damaged


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    file = tmp_path / "two.yaml"
    settings = {
        "name": "two",
        "base": "toy",
        "root": str(tmp_path / "store"),
        "grid": {"train.steps": [100, 200]},
        "seeds": {"train.seed": [0]},
    }
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return file


@pytest.fixture
def keys(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """Updates → the key of a run of `sweep`."""
    found: dict[int, str] = {}
    measured: Callable[..., Evaluation | None] = science_results._measured

    def noted(run: science_results.CellRun, key: str, *rest: object) -> Evaluation | None:
        found[run.config.train.steps] = key
        return measured(run, key, *rest)

    monkeypatch.setattr(science_results, "_measured", noted)
    assert not read_results([sweep]).count()[0]
    return found


@pytest.mark.parametrize(("fingerprint", "measured"), [("own", 1), ("", 2)])
def test_a_record_stands_in_for_the_store_unless_it_is_of_another_fingerprint(
    fingerprint: str, measured: int, sweep: Path, keys: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Known:
        """An engine of an empty store."""

        graph = graph_of(load_config("toy"))

        def __init__(self, config: PipelineConfig) -> None:
            self.config = config

        def make(self, name: str) -> Stage:
            return make_stage(self.config, name)

        def survey_all(self) -> dict[str, StageSurvey]:
            return {"evaluate": StageSurvey("evaluate", fingerprint, "evaluate", {}, {})}

    monkeypatch.setattr(science_results, "Engine", Known)
    recorded = {keys[100]: evaluation(keys[100], "own"), keys[200]: evaluation(keys[200], "of an older judge")}
    found = read_results([sweep], recorded=recorded)
    assert found.count() == (measured, 2)
    assert found.cells["two"]["train.steps=100"].seeds["train.seed=0"] == recorded[keys[100]]


def test_in_an_empty_store_a_record_of_an_older_judge_does_not_count(
    sweep: Path, keys: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = {}
    for steps, key in keys.items():
        config = load_config("toy", [f"train.steps={steps}"])
        recorded[key] = replace(evaluation(key), identity=science_results._identity(Engine(config)))
    assert read_results([sweep], recorded=recorded).count() == (2, 2)
    monkeypatch.setattr(Evaluate, "version", Evaluate.version + 1)
    assert read_results([sweep], recorded=recorded).count() == (0, 2)
    before = {key: evaluation(key) for key in keys.values()}
    assert read_results([sweep], recorded=before).count() == (2, 2), "a record of before does not say"


def test_a_run_whose_models_are_gone_is_taken_from_the_record(
    sweep: Path, keys: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> Engine:
        raise OSError("no such model")

    monkeypatch.setattr(science_results, "Engine", gone)
    assert read_results([sweep], recorded={keys[100]: evaluation(keys[100])}).count() == (1, 2)
    assert read_results([sweep]).count() == (0, 2)


def test_the_committed_record_is_read_without_a_store(tmp_path: Path) -> None:
    found = read_results([HERE / "trained-parts.yaml"], str(tmp_path / "store"), read_record())
    assert not found.missing()


def test_the_terminal_shows_table_1_and_the_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("science.tables.WORK", tmp_path)
    (tmp_path / "ip-adapter").mkdir()
    (tmp_path / "ip-adapter" / "training.json").write_text('{"cpu_seconds": 251.2}', encoding="utf-8")
    (tmp_path / "dreambooth" / "a").mkdir(parents=True)
    (tmp_path / "dreambooth" / "a" / "training.json").write_text('{"cpu_seconds": 30}', encoding="utf-8")
    found = replace(results(evaluation("1")), others=measured_others())
    rows = {row[0]: row for row in table_1_rows(found)}
    assert rows["IP-Adapter"][-1] == "none (251 s once)"
    assert rows["DreamBooth"][-1] == "30 s (1 subjects)"
    assert rows["Textual Inversion"][-1] == "–"
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    show(found, console)
    text = console.export_text()
    assert "251 s once" in text
    assert "not measured" in text
