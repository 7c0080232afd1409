"""A vision model as judge, from a real endpoint on loopback: journal, replay, cap, faults; agreement with people."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from bootpig.stages.engine.contract import FatalError, InputError
from bootpig.stages.evaluate.contact_sheet import CELL, GAP, LINE, MARGIN
from bootpig.stages.evaluate.drawing import METHODS
from bootpig.stages.evaluate.ratings import Rated, agreement, check_ratings, read_ratings
from bootpig.stages.evaluate.results import judge_lines, result_columns
from bootpig.stages.evaluate.stage import EvaluateConfig
from bootpig.stages.evaluate.vision_judge import Question, Score, ask, read_score
from bootpig.stages.evaluate.vision_judge_config import PROMPTS, JudgeConfig
from bootpig.storage.fingerprint import digest
from bootpig.storage.parts import Parts
from bootpig.storage.root import Root
from tests.servers.llm import KEY, Endpoint
from tests.stages.caption.llm.runs import VARIABLE
from tests.stages.evaluate.world import engine, make_world

CODES = {"refusal": "refusal", "content_filter": "content_filter", "truncated": "truncated", "empty": "empty"}
CODES |= {"prose": "no_score", "invalid_json": "no_score", "out_of_range": "out_of_range"}


def judge(url: str, **changes: Any) -> JudgeConfig:
    values = {"base_url": url, "model": "writer-1", "api_key_env": VARIABLE, "concurrency": 2, "max_retries": 0}
    return JudgeConfig(**{**values, **changes})


def questions(folder: Path, count: int = 3) -> list[Question]:
    """Two questions about each picture."""
    folder.mkdir(exist_ok=True)
    found = []
    for number in range(count):
        picture, reference = folder / f"{number}.png", folder / "reference.png"
        Image.new("RGB", (16, 16), (20 * number, 9, 9)).save(picture)
        Image.new("RGB", (16, 16), (1, 2, 3)).save(reference)
        found += [Question("concept", picture, "mug", reference), Question("following", picture, "a mug {on} a table")]
    return found


def asked(config: JudgeConfig, store: Path, wanted: list[Question]) -> dict[Question, Score]:
    return ask(config, wanted, Parts(Root(str(store)), "evaluate", "x"), "bootpig", lambda *_: None)


def test_each_question_is_asked_once_with_its_pictures(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    wanted = questions(tmp_path / "pictures")
    copy = tmp_path / "copy.png"
    copy.write_bytes(wanted[0].picture.read_bytes())
    again = Question("following", copy, wanted[1].about)
    scores = asked(judge(url), tmp_path / "store", [*wanted, again, wanted[0]])
    assert all(score.score in range(5) and not score.reason for score in scores.values())
    assert scores[again] == scores[wanted[1]]
    assert len(endpoint.log) == 6
    parts = [entry["body"]["messages"][-1]["content"] for entry in endpoint.log]
    assert sorted(len(content) for content in parts) == [2, 2, 2, 3, 3, 3]
    assert any("a mug {on} a table" in content[0]["text"] for content in parts)
    (folder,) = (tmp_path / "store" / "evaluate").iterdir()
    assert folder.name.startswith("judge-")
    entries = [
        path.read_text() for path in folder.joinpath("journal" if (folder / "journal").is_dir() else "").glob("*.json")
    ]
    assert len(entries) == 6
    assert not any("base64" in entry or KEY in entry for entry in entries)

    os.environ.pop(VARIABLE)  # a replay needs no key
    assert asked(judge(url), tmp_path / "store", wanted) == {question: scores[question] for question in wanted}
    assert len(endpoint.log) == 6


@pytest.mark.parametrize("kind", CODES)
def test_a_bad_answer_is_asked_again_and_then_a_null_with_a_reason(
    endpoint: Endpoint, url: str, tmp_path: Path, kind: str
) -> None:
    wanted = questions(tmp_path / "pictures", 1)
    endpoint.fault(kind=kind, times=2)
    scores = asked(judge(url, concurrency=1), tmp_path / "a", wanted)
    assert all(score.score is not None for score in scores.values())
    assert len(endpoint.log) == 4
    assert len({entry["digest"] for entry in endpoint.log}) == 4, "a gateway that caches would answer the same"
    endpoint.faults.clear()
    endpoint.fault(kind=kind, times=-1)
    scores = asked(judge(url, rounds=2), tmp_path / "b", wanted)
    assert set(scores.values()) == {Score(None, CODES[kind])}
    assert len(endpoint.log) == 8


def test_an_endpoint_without_schemas_is_asked_for_text(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    endpoint.schema = False
    scores = asked(judge(url, concurrency=1), tmp_path / "store", questions(tmp_path / "pictures"))
    assert all(score.score is not None for score in scores.values())
    assert "Score: N" in endpoint.log[-1]["body"]["messages"][-1]["content"][0]["text"]
    with pytest.raises(InputError, match=r"evaluate\.judge\.format"):
        asked(judge(url, format="json"), tmp_path / "b", questions(tmp_path / "pictures"))


def test_what_breaks_off_goes_on_without_paying_twice(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    wanted = questions(tmp_path / "pictures")
    endpoint.fault(kind="500", after=2, times=-1)
    with pytest.raises(FatalError, match="questions about bootpig got no answer") as caught:
        asked(judge(url, concurrency=1), tmp_path / "store", wanted)
    assert "\n" not in str(caught.value)
    endpoint.faults.clear()
    before = sum(entry["status"] == 200 for entry in endpoint.log)
    assert before == 2
    scores = asked(judge(url), tmp_path / "store", wanted)
    assert all(score.score is not None for score in scores.values())
    assert sum(entry["status"] == 200 for entry in endpoint.log) == 6


def test_a_single_lost_answer_does_not_end_it(
    endpoint: Endpoint, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = questions(tmp_path / "pictures", 12)
    endpoint.fault(kind="500", after=3, times=1)
    scores = asked(judge(url, concurrency=1), tmp_path / "a", wanted)
    assert all(score.score is not None for score in scores.values()), "asked again"
    # a picture that the endpoint always fails at
    endpoint.fault(kind="500", after=23, times=-1)
    scores = asked(judge(url, concurrency=1), tmp_path / "b", wanted)
    assert [score.reason for score in scores.values() if score.score is None] == ["server_error"]
    assert "1 of 24 scores of bootpig are missing" in caplog.text


def test_a_request_that_a_filter_rejects_does_not_keep_others_from_being_asked_again(
    endpoint: Endpoint, url: str, tmp_path: Path
) -> None:
    endpoint.fault(kind="body", body='{"choices": []}')
    endpoint.fault(kind="prose", after=1)
    first, *others = asked(judge(url, concurrency=1), tmp_path / "store", questions(tmp_path / "pictures")).values()
    assert first == Score(None, "content_filter")
    assert all(score.score is not None for score in others)
    assert len(endpoint.log) == 7


def test_the_cap_stops_it_and_a_higher_one_goes_on(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    wanted = questions(tmp_path / "pictures")
    prices = {"price_input": 1.0, "price_output": 1.0, "concurrency": 1}
    with pytest.raises(FatalError, match=r"the spending cap evaluate\.judge\.cap_usd 0\.003 would be exceeded"):
        asked(judge(url, cap_usd=0.003, **prices), tmp_path / "store", wanted)
    paid = len(endpoint.log)
    assert 0 < paid < 6
    asked(judge(url, cap_usd=1.0, **prices), tmp_path / "store", wanted)
    assert len(endpoint.log) == 6


def test_a_wrong_key_or_model_is_one_line(endpoint: Endpoint, url: str, tmp_path: Path, monkeypatch) -> None:
    wanted = questions(tmp_path / "pictures", 1)
    with pytest.raises(InputError, match=r"evaluate\.judge\.model: 'nobody' → no_model"):
        asked(judge(url, model="nobody"), tmp_path / "store", wanted)
    monkeypatch.setenv(VARIABLE, "wrong")
    with pytest.raises(InputError, match=r"evaluate\.judge\.api_key_env"):
        asked(judge(url), tmp_path / "store", wanted)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(InputError, match="is not set"):
        asked(judge(url), tmp_path / "store", wanted)


def body(text: str, finish: str = "stop") -> str:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish}]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"reason": "x", "score": 3}', 3),
        ('```json\n{"score": "2"}\n```', 2),
        ('Here: {"score": 1.0}', 1),
        ("4", 4),
        ("**Score:** 2/4", 2),
        ("score 0 would be a cat.\nScore: 3.", 3),
        ("I give it a score of 3 out of 4", 3),
        ("<think>score: 1</think>Score: 2", 2),
        ("9 of 4", "out_of_range"),
        ("8/10", "out_of_range"),
        ("Score: -1", "out_of_range"),
        ("Score: 3.5", "out_of_range"),
        ('{"score": 1e999}', "out_of_range"),
        ('{"score": true}', "no_score"),
        ('{"score": null}', "no_score"),
        ("The score is between 0 and 4", "no_score"),
        ("It has 3 legs and 2 eyes, which is good enough for me.", "no_score"),
        ("٣", "no_score"),
        ("", "empty"),
    ],
)
def test_scores_as_models_write_them(text: str, expected: int | str) -> None:
    found = read_score(body(text))
    assert (found if isinstance(found, int) else found[0]) == expected


def test_reading_never_raises() -> None:
    draw = random.Random(0)
    pieces = [
        "{",
        "}",
        '"score"',
        ":",
        "4",
        "9",
        "-",
        ".",
        "e9",
        "of",
        "/",
        "score",
        "[",
        "]",
        "null",
        "\x00",
        "٣",
        " ",
        "\n",
    ]
    for _ in range(3000):
        text = "".join(draw.choice(pieces) for _ in range(draw.randrange(30)))
        found = read_score(body(text, draw.choice(["stop", "length"])))
        assert (isinstance(found, int) and 0 <= found <= 4) or found[0]  # type: ignore[index]
    for raw in ("", "[", "{}", '{"choices": []}', '{"choices": [{"message": {"content": 7}}]}', "[" * 9999):
        assert read_score(raw)[0] in ("invalid_json", "empty")  # type: ignore[index]
    assert read_score(body('{"score": 1', "length"))[0] == "truncated"  # type: ignore[index]
    assert read_score(body("{" * 50_000)) is not None


def test_the_texts_of_a_version_never_change() -> None:
    assert digest(PROMPTS[1])[:16] == "45ab30b5c78e6348"


def test_what_changes_scores_is_hashed_and_a_config_without_judge_is_as_before() -> None:
    plain = EvaluateConfig(subjects="x")
    assert "judge" not in plain.hashed()
    one = JudgeConfig(model="a")
    hashed = one.hashed()
    assert {"model", "prompts", "system", "temperature"} <= set(hashed)
    same = one.model_copy(update={"base_url": "http://other/v1", "cap_usd": 1.0, "ratings": "x.csv", "rounds": 9})
    assert same.hashed() == hashed
    for change in ({"model": "b"}, {"temperature": 0.5}, {"system": "y"}, {"extra_body": {"seed": 1}}):
        assert one.model_copy(update=change).hashed() != hashed
    for wrong in ({"prompts": 2}, {"model": ""}, {"base_url": "http://u:p@h/v1"}, {"rating": "x"}):
        with pytest.raises(ValidationError):
            JudgeConfig(**{"model": "a", **wrong})


# Ratings of people


def csv_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "ratings.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_agreement_by_hand(tmp_path: Path) -> None:
    lines = ["subject,prompt,number,rater,concept,following", 'mug,"a mug, red",0,x,4,1', 'mug,"a mug, red",0,y,2,']
    lines += ['mug,"a mug, red",1,x,1,3', "cat,a cat,0,x,0,4", "cat,a cat,0,y,1,4"]
    ratings = read_ratings(csv_file(tmp_path, "\ufeff" + "\r\n".join(lines) + "\r\n"))
    red0, red1, cat = (
        Rated("bootpig", "mug", "a mug, red", 0),
        Rated("bootpig", "mug", "a mug, red", 1),
        Rated("bootpig", "cat", "a cat", 0),
    )
    assert ratings.scores["concept"] == {red0: [4, 2], red1: [1], cat: [0, 1]}
    found = agreement(ratings, {"concept": {red0: 3, red1: 1, cat: 0}, "following": {red0: 1, red1: 1}})
    assert found["concept"]["pictures"] == 3
    assert found["concept"]["spearman"] == pytest.approx(1.0)
    # means of people 3, 1, 0.5: 1 - 5 * (2 * 0.25) / sum over all ordered pairs of 3,3,1,1,0,.5 of d², halved
    values = [3, 3, 1, 1, 0, 0.5]
    expected = sum((a - b) ** 2 for a in values for b in values)
    assert found["concept"]["alpha"] == pytest.approx(1 - 5 * 2 * 0.25 / expected)
    assert found["following"] == {"pictures": 2, "alpha": pytest.approx(0), "spearman": None, "people_alpha": None}


HEAD = "subject,prompt,concept,following\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1 → has no column 'subject'"),
        ("subject;prompt;concept;following\nmug;a mug;1;2\n", "line 1 → has no column 'subject'"),
        (HEAD, "has no scores"),
        (HEAD + "mug,a mug,,\n", "has no scores"),
        (HEAD + "mug,a mug,5,1\n", "line 2 → has concept '5'; give a whole number from 0 to 4"),
        (HEAD + "mug,a mug,1,2.5\n", "line 2 → has following '2.5'"),
        (HEAD + "mug,a mug,1,٣\n", "line 2 → has following"),
        (HEAD + "mug,a mug, red,1,2\n", "line 2 → has not 4 values"),
        (HEAD + "mug,a mug,1\n", "line 2 → has not 4 values"),
        (HEAD + "mug,a mug,1,2\nmug,a mug,1,2\n", "line 3 → rates a picture again for a rater without a name"),
        (HEAD + 'mug,"a mug,1,2\n', "is no CSV file"),
        (HEAD + "cat,a cat,1,2\n", "rates no picture of this evaluation"),
    ],
)
def test_ratings_that_cannot_be_used_are_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        check_ratings(csv_file(tmp_path, text), {("mug", "a mug", 0)})
    assert said in str(caught.value)
    assert str(caught.value).startswith("evaluate.judge.ratings: ")
    assert "\n" not in str(caught.value)


# The stage


@pytest.mark.slow
def test_the_whole_stage(
    endpoint: Endpoint, url: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch
) -> None:
    world = make_world(tmp_path_factory.mktemp("world"), 2)
    settings = {"base_url": url, "model": "writer-1", "api_key_env": VARIABLE, "concurrency": 2, "max_retries": 0}
    settings |= {"cap_usd": 0.005, "price_input": 1.0, "price_output": 1.0}
    work = engine(world, tmp_path / "store", judge=settings)
    report = work.run_reduce("evaluate")
    assert (report.state, "cap_usd 0.005 would be exceeded" in report.message) == ("failed", True), report.message
    settings["cap_usd"] = 100.0
    texts: list[str] = []
    report = engine(world, tmp_path / "store", judge=settings).run_reduce(
        "evaluate", progress=lambda done, total, text: texts.append(text)
    )
    assert report.state == "done", report.message
    assert any(text.startswith("judge ") for text in texts)
    result = engine(world, tmp_path / "store", judge=settings).survey("evaluate").result
    assert result is not None
    folder = tmp_path / "store" / result.path
    table = pq.read_table(folder / "judge.parquet").to_pylist()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(table) == len(METHODS) * metrics["images"]
    assert {row["concept_reason"] for row in table} == {""}
    assert list(metrics["judge"]["methods"]) == list(METHODS)
    mine = [row for row in table if row["method"] == "bootpig"]
    names = sorted({row["subject"] for row in mine})
    means = [[row["concept"] for row in mine if row["subject"] == name] for name in names]
    expected = sum(sum(scores) / len(scores) for scores in means) / len(means)
    assert metrics["judge"]["methods"]["bootpig"]["concept"]["mean"] == pytest.approx(expected, abs=1e-5)
    assert judge_lines(metrics) == ["writer-1 judges from 0 to 4"]
    assert list(result_columns(metrics))[-2:] == ["concept", "following"]
    with Image.open(folder / "contact_sheet.png") as sheet:
        noted = sheet.height
    # two subjects: one row of pictures per caption, each with a line for the scores
    assert (noted - 2 * MARGIN - LINE) % (CELL + 2 * LINE + 2 * GAP) == 0

    # with ratings it is another result, for which nothing is asked again
    rated = mine[0]
    lines = ["subject,prompt,number,concept,following", f'{rated["subject"]},"{rated["prompt"]}",0,3,4']
    settings["ratings"] = csv_file(tmp_path, "\n".join(lines))
    count = len(endpoint.log)
    work = engine(world, tmp_path / "store", judge=settings)
    work.make("evaluate").check_ready()
    assert work.run_reduce("evaluate").state == "done"
    assert len(endpoint.log) == count
    again = work.survey("evaluate").result
    assert again is not None and again.path != result.path
    found = json.loads((tmp_path / "store" / again.path / "metrics.json").read_text())["judge"]["agreement"]
    assert found["concept"]["pictures"] == 1
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(InputError, match="is not set"):
        work.make("evaluate").check_ready()
