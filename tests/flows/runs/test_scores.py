"""`bootpig runs diff` compares the score distributions of two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bootpig.flows.cli.main import main
from bootpig.flows.loading import load_config
from bootpig.flows.runs.records import RunRecord, StageRecord, new_run
from bootpig.flows.runs.scores import compare_scores
from bootpig.stages.score.stage import Score
from bootpig.storage.parts import Parts
from bootpig.storage.root import Root

TOY = Path(__file__).parents[3] / "configs" / "toy.yaml"
MEASURED = "score={clip: null, dino: null}"


def scored_run(
    settings: list[str], fingerprint: str, scores: list[dict[str, float | None]], *sets: str
) -> tuple[Root, RunRecord]:
    """A run with a unit of scored samples, and one that failed."""
    config = load_config(TOY, [*settings, *sets])
    root = Root(config.root)
    record = new_run(root, config)
    rows: list[dict[str, Any]] = [
        {"id": f"{i:016x}", "unit": 0, "status": "ok", "reason": "", "object": "a mug", **row}
        for i, row in enumerate(scores)
    ]
    rows.append({**rows[0], "id": "f" * 16, "status": "failed", "reason": "error"})
    used = {name for row in scores for name in row}
    more = [field for field in Score.optional_columns if field.name in used]
    schema = pa.schema([*Score.columns, *more])
    Parts(root, "score", fingerprint).commit(0, rows, schema, b"payload", "input")
    record.stages["score"] = StageRecord(fingerprint=fingerprint)
    record.save(root)
    return root, record


def test_quartiles_limits_and_what_passes_of_both(settings: list[str]) -> None:
    values = [0.1, 0.2, 0.3, 0.4]
    root, a = scored_run(
        settings,
        "a" * 16,
        [{"sharpness": value, "caption_score": 0.5} for value in values],
        MEASURED,
        "select={min_sharpness: 0.2, max_sharpness: 0.35}",
    )
    _, b = scored_run(settings, "b" * 16, [{"sharpness": None, "rubric": 7.0}, {"sharpness": 0.8}, {}], MEASURED)
    found = compare_scores(root, a, b)
    assert list(found) == ["caption_score", "sharpness", "rubric"]
    assert found["sharpness"]["a"] == {
        "samples": 4,
        "missing": 0,
        "lower_quartile": pytest.approx(0.175),
        "median": pytest.approx(0.25),
        "upper_quartile": pytest.approx(0.325),
        "limits": {"min_sharpness": 0.2, "max_sharpness": 0.35},
        "passing": 0.5,
    }
    only = found["sharpness"]["b"]
    assert only is not None and (only["samples"], only["missing"], only["limits"]) == (1, 2, {})
    assert only["lower_quartile"] == only["median"] == pytest.approx(0.8) and only["passing"] is None
    assert found["rubric"]["a"] is None and found["caption_score"]["b"] is None


def test_the_command_prints_tables_or_json(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    root, a = scored_run(settings, "a" * 16, [{"sharpness": 0.5}] * 3, MEASURED, "select={min_sharpness: 50%}")
    _, b = scored_run(settings, "b" * 16, [{"area": 0.5}], MEASURED)
    plain = new_run(root, load_config(TOY, settings))
    assert main(["runs", "--root", root.url, "diff", a.id, b.id, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"what": "select.min_sharpness", "a": "50%", "b": "–"} in facts["differences"]
    assert facts["scores"]["sharpness"]["a"]["passing"] == 1 and facts["scores"]["sharpness"]["b"] is None
    assert main(["runs", "--root", root.url, "diff", a.id, b.id]) == 0
    said = capsys.readouterr().out
    assert "min_sharpness 50%" in said and "100.0%" in said and "lower quartile" in said
    assert main(["runs", "--root", root.url, "diff", plain.id, plain.id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"differences": [], "scores": {}}
