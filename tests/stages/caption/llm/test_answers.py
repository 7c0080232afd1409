"""Parsing the answers of a model, whatever they contain."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from bootpig.stages.caption.llm.answers import read_answer
from bootpig.stages.caption.llm.client import _retry_after

ONE, TWO = "A photo of a red mug, on a table", "A photo of an umbrella, in the rain"


def body(content: Any, finish: str = "stop", **message: Any) -> str:
    return json.dumps({"choices": [{"finish_reason": finish, "message": {"content": content, **message}}]})


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"captions": [ONE, TWO]}),
        json.dumps([ONE, TWO], indent=2),
        f"```json\n{json.dumps({'captions': [ONE, TWO]})}\n```",
        f"{ONE}\n{TWO}\n",
        f'Here are your captions:\n\n1. {ONE}\n2) "{TWO}"',
        f"- {ONE}\r\n* **{TWO}**",
        "A photo of a [red mug], [on a table]\nA photo of an [umbrella], [in the rain]",
        [{"type": "text", "text": f"{ONE}\n"}, {"type": "text", "text": TWO}],
        f"{ONE}\n{TWO}\nA photo of a third, too many",
    ],
)
def test_captions_in_all_formats(content: Any) -> None:
    answer = read_answer(body(content), 2)
    assert answer.captions == (ONE, TWO) and answer.fault == ""


@pytest.mark.parametrize(
    ("text", "fault", "captions"),
    [
        ("", "invalid_json", 0),
        ("null", "invalid_json", 0),
        ('{"choices": []}', "invalid_json", 0),
        ('{"choices": [{"message": "hello"}]}', "invalid_json", 0),
        (body(None), "empty", 0),
        (body('{"captions": "none"}'), "invalid_json", 0),
        (body('{"other": 1}'), "invalid_json", 0),
        (body('{"captions": [1, null, "", {}]}'), "empty", 0),
        (body(f'{{"captions": ["{ONE}", "{TWO[:9]}', "length"), "truncated", 1),
        (body(f"{ONE}\n{TWO[:9]}", "length"), "truncated", 1),
        (body("", "length"), "truncated", 0),
        (body(ONE, "content_filter"), "content_filter", 0),
        (body(ONE, refusal="no"), "refusal", 0),
        (body(ONE), "short", 1),
    ],
)
def test_faults_have_codes_and_whole_captions_are_kept(text: str, fault: str, captions: int) -> None:
    answer = read_answer(text, 2)
    assert answer.fault == fault and answer.message.startswith(f"{fault}: ") and "\n" not in answer.message
    assert answer.captions == (ONE,) * captions


def test_lines_are_refused_where_only_json_is_accepted() -> None:
    assert read_answer(body(f"{ONE}\n{TWO}"), 2, lines_too=False).fault == "invalid_json"


def test_retry_after_is_seconds_or_a_date() -> None:
    assert (_retry_after(None), _retry_after("1.5"), _retry_after("-3"), _retry_after("soon")) == (
        None,
        1.5,
        None,
        None,
    )
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < (_retry_after(later) or 0) <= 100
