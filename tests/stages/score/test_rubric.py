"""Ratings by a vision model, from a real endpoint on loopback: journal, replay, cap, answers that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bootpig.flows.runs.plan import plan
from bootpig.stages.caption.llm.journal import Record
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine, UnitReport
from bootpig.stages.engine.preflight import preflight
from bootpig.stages.score.rubric.config import RubricConfig
from bootpig.stages.score.rubric.ratings import read_ratings
from tests.servers.llm import Endpoint
from tests.stages.caption.llm.runs import VARIABLE
from tests.stages.doubles import config as small_config
from tests.stages.doubles import doubles, image_bytes  # noqa: F401

QUESTIONS = {"caption": "Is it what the caption says?", "quality": "Is it free of faults?"}


def configured(
    root: Path, url: str, *, count: int = 10, more: dict[str, Any] | None = None, **changes: Any
) -> PipelineConfig:
    """Units of five samples with a rubric of two questions and no other model. `more`: of the section score."""
    rubric = {"base_url": url, "model": "writer-1", "api_key_env": VARIABLE, "questions": QUESTIONS, "max_retries": 0}
    score = {"clip": None, "dino": None, "rubric": rubric | {"concurrency": 1} | changes, **(more or {})}
    return small_config(root, caption__count=count, score=score)


def run(config: PipelineConfig, **options: Any) -> list[UnitReport]:
    engine = Engine(config)
    for stage in ("caption", "synthesize", "segment"):
        for unit in engine.units():
            engine.run_unit(stage, unit)
    return [engine.run_unit("score", unit, **options) for unit in engine.units()]


def rows(config: PipelineConfig) -> list[dict[str, Any]]:
    markers = Engine(config).survey("score").markers
    return [row for unit in sorted(markers) for row in markers[unit].rows]


@pytest.mark.usefixtures("doubles")
def test_each_sample_is_rated_and_paid_for_once(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    config = configured(tmp_path / "a", url)
    assert {report.state for report in run(config)} == {"done"}
    found = rows(config)
    assert len(endpoint.log) == len(found) > 5
    for row in found:
        assert row["rubric_ratings"] is not None and all(0 <= rating <= 10 for rating in row["rubric_ratings"])
        assert row["rubric"] == pytest.approx(sum(row["rubric_ratings"]) / 2) and row.get("rubric_reason") is None
    assert len({row["rubric"] for row in found}) > 2
    text = endpoint.log[0]["body"]["messages"][-1]["content"][0]["text"]
    assert "- quality: Is it free of faults?" in text and "from 0 (worst) to 10 (best)" in text
    assert "A photo of" in text, "the caption"
    schema = endpoint.log[0]["body"]["response_format"]["json_schema"]["schema"]
    assert schema["required"] == list(QUESTIONS)
    entries = list((tmp_path / "a" / "score").glob("journal-*/*.json"))
    assert len(entries) == len(found) and not any("base64" in path.read_text() for path in entries)

    before = image_bytes(tmp_path / "a")
    for path in (tmp_path / "a" / "score").rglob("part-*"):
        path.unlink()
    os.environ.pop(VARIABLE)  # a replay needs no key
    run(config)
    assert image_bytes(tmp_path / "a") == before
    run(configured(tmp_path / "a", url, more={"batch_size": 2}))
    assert len(endpoint.log) == len(found), "asked once"


@pytest.mark.usefixtures("doubles")
def test_another_score_pays_for_no_rating_again_and_a_forced_unit_does(
    endpoint: Endpoint, url: str, tmp_path: Path
) -> None:
    config = configured(tmp_path, url, count=5)
    run(config)
    asked = len(endpoint.log)
    head = {"clip": "models/toy/checkpoints/clip"}
    assert Engine(configured(tmp_path, url, count=5, more=head)).run_unit("score", 0).state == "done"
    assert len(endpoint.log) == asked
    (report,) = run(config, force=True)
    assert report.state == "done" and len(endpoint.log) == 2 * asked


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("eleven", "out_of_range"),
        ("prose", "invalid_json"),
        ("short", "short"),
        ("refusal", "refusal"),
        ("truncated", "truncated"),
        ("body", "content_filter"),
    ],
)
def test_an_answer_without_ratings_is_asked_again_then_a_row_without_a_score(
    endpoint: Endpoint, url: str, tmp_path: Path, kind: str, reason: str
) -> None:
    fault = {"kind": kind, "body": '{"choices": []}'}
    if kind != "body":  # an empty list of choices is no answer: not asked again in this run
        endpoint.fault(**fault, times=2)
        config = configured(tmp_path / "a", url, count=5)
        (report,) = run(config)
        assert report.state == "done" and all(row["rubric"] is not None for row in rows(config))
        endpoint.faults.clear()
    endpoint.fault(**fault, times=-1)
    config = configured(tmp_path / "b", url, count=5, rounds=2)
    (report,) = run(config)
    found = rows(config)
    assert report.state == "done" and {row["status"] for row in found} == {"ok"}
    assert {(row.get("rubric"), row["rubric_reason"]) for row in found} == {(None, reason)}
    assert all(row["sharpness"] is not None for row in found)


@pytest.mark.usefixtures("doubles")
def test_a_request_that_the_endpoint_rejects_does_not_end_the_stage(
    endpoint: Endpoint, url: str, tmp_path: Path
) -> None:
    endpoint.fault(kind="400", after=1, times=2)  # with and without a schema
    config = configured(tmp_path, url, count=5, rounds=1)
    assert [report.state for report in run(config)] == ["done"]
    assert [row["rubric_reason"] for row in rows(config) if row["rubric"] is None] == ["refused"]
    endpoint.fault(kind="400", times=-1)
    with pytest.raises(InputError, match=r"^score\.rubric: bad_request: .* answers 400"):
        run(configured(tmp_path / "b", url, count=5, temperature=0.1))


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("kind", ["wrapped", "more"])
def test_prose_around_ratings_and_a_rating_too_many_do_no_harm(
    endpoint: Endpoint, url: str, tmp_path: Path, kind: str
) -> None:
    endpoint.fault(kind=kind, times=-1)
    config = configured(tmp_path, url, count=5)
    run(config)
    asked = len(rows(config))
    assert all(row["rubric"] is not None for row in rows(config)) and len(endpoint.log) == asked


@pytest.mark.usefixtures("doubles")
def test_a_sample_without_an_answer_fails_and_is_asked_about_again(
    endpoint: Endpoint, url: str, tmp_path: Path
) -> None:
    config = configured(tmp_path, url, count=5).model_copy(update={"max_failed": 1.0})
    endpoint.fault(kind="500", after=1, times=1)
    (report,) = run(config)
    assert report.rows["failed"] == 1 and {row["reason"] for row in rows(config)} == {"", "server_error"}
    assert Engine(config).run_unit("score", 0, retry_failed=True).rows["failed"] == 0
    dead = configured(tmp_path / "dead", "http://127.0.0.1:9/v1", count=5)
    (report,) = run(dead)
    assert report.state == "failed" and "unreachable: http://127.0.0.1:9/v1" in report.message


def journal(root: Path) -> list[Record]:
    return [Record(**json.loads(path.read_text())) for path in (root / "score").glob("journal-*/*.json")]


@pytest.mark.usefixtures("doubles")
def test_the_cap_leaves_units_pending_and_plan_tells_the_costs(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    prices = {"price_input": 1.0, "price_output": 1.0}
    (count,) = {report.rows["ok"] for report in run(configured(tmp_path / "a", url, count=5, **prices))}
    took = [sum(record.tokens()) for record in journal(tmp_path / "a")]
    assert len(took) == count and max(took) < 1.1 * min(took)
    capped = configured(tmp_path, url, cap_usd=(sum(took) + 400) / 1e6, **prices)  # a request is expected to take more
    states = run(capped)
    assert [report.state for report in states] == ["done", "pending"]
    assert states[1].message.startswith("score unit 1: the spending cap score.rubric.cap_usd 0.00")
    assert [report.state for report in run(configured(tmp_path, url, **prices))] == ["cached", "done"]
    facts = plan(configured(tmp_path / "b", url, **prices))
    stage = facts["stages"]["score"]
    assert stage["llm"]["requests"] == 10 and stage["cost_usd"] > 0.01
    assert any(line.startswith("ratings: 10 requests") for line in facts["assumptions"])


@pytest.mark.usefixtures("doubles")
def test_a_unit_can_be_rated_in_a_batch(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    endpoint.fault(kind="batch_expired")  # half of the first one is answered
    config = configured(tmp_path / "a", url, batch=True, batch_poll=0.01)
    assert {report.state for report in run(config)} == {"done"}
    found = rows(config)
    assert all(row["rubric"] is not None for row in found)
    assert {entry["path"] for entry in endpoint.log} == {"batch"} and len(endpoint.batches) == 3
    assert sum(entry["requests"] for entry in endpoint.log) > len(found)
    notes = list((tmp_path / "a" / "score").glob("journal-*/batch-*.json"))
    assert len(notes) == 3 and not any("base64" in path.read_text() for path in notes)
    run(configured(tmp_path / "b", url))
    assert rows(configured(tmp_path / "b", url)) == found, "the same requests"


@pytest.mark.usefixtures("doubles")
def test_what_is_wrong_with_the_endpoint_is_one_line(
    endpoint: Endpoint, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^score\.rubric\.model: 'nosuch' → no_model: .*; it serves writer-1"):
        run(configured(tmp_path, url, count=5, model="nosuch"))
    endpoint.schema = False
    with pytest.raises(InputError, match=r"^score\.rubric\.format: 'json' → the endpoint answers 400"):
        run(configured(tmp_path, url, count=5, format="json"))
    assert [report.state for report in run(configured(tmp_path, url, count=5))] == ["done"]
    monkeypatch.delenv(VARIABLE)
    problems = preflight(Engine(configured(tmp_path / "b", url, count=5)), ["score"])
    assert [line for line in problems if line.startswith(f"score.rubric.api_key_env: '{VARIABLE}' → this environment")]


def body(content: Any, finish: str = "stop") -> str:
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": finish}]})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"caption": 7, "quality": 3.5}', (7.0, 3.5)),
        ('<think>{"caption": 1, "quality": 1}?</think>{"caption": "8", "quality": "9/10"}', (8.0, 9.0)),
        ('{"caption": 1, "quality": 1} No: {"caption": 2, "quality": 10}', (2.0, 10.0)),
        ('{"ratings": {"caption": 7, "quality": 3}}', "short"),
        ('{"caption": true, "quality": 3}', "invalid_json"),
        ('{"caption": NaN, "quality": 3}', "invalid_json"),
        ('{"caption": null, "quality": 3}', "invalid_json"),
        ('{"caption": "9/5", "quality": 3}', "invalid_json"),
        ('{"caption": 1e999, "quality": 3}', "invalid_json"),
        (f'{{"caption": 1{"0" * 400}, "quality": 3}}', "invalid_json"),
        ('{"caption": -1, "quality": 3}', "out_of_range"),
        ("[7, 3]", "invalid_json"),
        ("{" * 100_000, "invalid_json"),
        ("", "empty"),
    ],
)
def test_what_is_read_from_an_answer(content: str, expected: tuple[float, ...] | str) -> None:
    found = read_ratings(body(content), RubricConfig(model="m", questions=QUESTIONS))
    assert (found.values[0] if found.values else found.fault) == expected
    assert "\n" not in found.message and len(found.message) < 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lowest": 5, "highest": 5}, "lowest 5 is not below highest 5; exchange them"),
        ({"questions": {}}, "at least 1 item"),
        ({"questions": {"two words": "?"}}, "'two words' is not a name of letters"),
        ({"questions": {"a": " "}}, "'a' has no question; write one"),
        ({"prompt": "{scene}"}, "only the blank {caption} and {object} is allowed"),
        ({"cap_usd": 1}, "cap_usd needs price_input and price_output"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RubricConfig(model="m", **changes)
    assert message in str(caught.value)
