"""What is no answer, though the endpoint says 200: nothing is journaled, and what passes is tried again."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from bootpig.stages.caption.llm import client as llm_client
from bootpig.stages.caption.llm.client import LLMClient
from bootpig.stages.caption.llm.faults import Fault
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from tests.servers.llm import Endpoint
from tests.stages.caption.llm.runs import configured, rows, run

REQUEST = {"model": "writer-1", "messages": [{"role": "user", "content": "captions"}]}

PASSING = {
    "a gateway's code": {"choices": None, "error": {"code": 429, "message": "slow down"}},
    "a word": {"error": {"type": "rate_limit_exceeded", "message": "slow down"}},
    "Google's word": {"error": {"code": "x", "status": "RESOURCE_EXHAUSTED"}},
    "Anthropic's word": {"type": "error", "error": {"type": "overloaded_error"}},
    "a code on top": {"code": "503", "message": "no worker"},
}

WRONG = {
    "no such path": {"error": "Unexpected endpoint or method. (POST /chat/completions)"},
    "another service": {"status": "ok"},
    "a model list": {"object": "list", "data": []},
    "nothing": None,
}


@pytest.mark.parametrize("name", list(PASSING))
def test_an_error_that_passes_is_tried_again(endpoint: Endpoint, url: str, tmp_path: Path, name: str) -> None:
    endpoint.fault(kind="body", body=json.dumps(PASSING[name]), times=2, retry_after=None)
    config = configured(tmp_path, url, units=1, concurrency=1)
    assert run(config)[0].state == "done"
    assert len(list(tmp_path.rglob("journal/*"))) == len(endpoint.log) - 2, "errors are not kept"


def test_an_error_that_stays_is_a_code(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    endpoint.fault(kind="body", body=json.dumps(PASSING["a gateway's code"]), times=-1, retry_after=None)
    client = LLMClient(configured(tmp_path, url, max_retries=1).caption.openai)
    with pytest.raises(Fault, match=r"rate_limited: .* answers 200 with an error 429 in the body \(2 tries\)"):
        client.ask(REQUEST)


def test_a_page_with_a_status_in_its_title_passes(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    endpoint.fault(kind="body", body="<html><title>502 Bad Gateway</title></html>", times=1, retry_after=None)
    assert run(configured(tmp_path, url, units=1, concurrency=1))[0].state == "done"


@pytest.mark.parametrize("name", list(WRONG))
def test_anything_else_ends_at_once_and_names_the_address(
    endpoint: Endpoint, url: str, tmp_path: Path, name: str
) -> None:
    endpoint.fault(kind="body", body=json.dumps(WRONG[name]), times=-1, retry_after=None)
    with pytest.raises(InputError, match=r"^caption\.openai\.base_url: .*/v1$"):
        run(configured(tmp_path, url, units=1))
    assert not list(tmp_path.rglob("journal/*")) and len(endpoint.log) <= 4


def test_an_answer_without_a_choice_is_withheld(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    endpoint.fault(kind="body", body='{"object": "chat.completion", "choices": []}', times=-1, retry_after=None)
    with pytest.raises(Fault, match=r"content_filter: .* without a choice"):
        LLMClient(configured(tmp_path, url).caption.openai).ask(REQUEST)


def test_an_error_in_the_journal_of_an_earlier_version_is_asked_for_again(
    endpoint: Endpoint, url: str, tmp_path: Path
) -> None:
    config = configured(tmp_path / "one", url, units=1, concurrency=1)
    run(config)
    expected = [row["caption"] for row in rows(config)]
    survey = Engine(config).survey("caption")
    folder = tmp_path / "one" / survey.path
    files = sorted((folder / "journal").iterdir())
    record = json.loads(files[0].read_text())
    files[0].write_text(json.dumps(record | {"body": '{"error": "Unexpected endpoint"}'}))
    for marker in folder.glob("part-*"):
        marker.unlink()
    asked = len(endpoint.log)
    assert run(config)[0].state == "done"
    assert len(endpoint.log) == asked + 1 and len(rows(config)) == len(expected)


@pytest.mark.parametrize("value", ["0", "-5", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_retry_after_that_asks_for_no_wait_backs_off(
    endpoint: Endpoint, url: str, tmp_path: Path, value: str
) -> None:
    endpoint.fault(kind="429", times=-1, retry_after=value)
    started = time.monotonic()
    with pytest.raises(Fault, match=r"\(4 tries\)"):
        LLMClient(configured(tmp_path, url, max_retries=3).caption.openai).ask(REQUEST)
    assert time.monotonic() - started > 0.7, "three pauses of a quarter of a second at least"


def test_a_long_wait_is_said(endpoint: Endpoint, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_client, "TOLD_WAIT", 0.5)
    endpoint.fault(kind="429", times=1, retry_after=1)
    said: list[str] = []
    config = configured(tmp_path, url, units=1, concurrency=1)
    Engine(config).run_unit("caption", 0, progress=lambda done, total, text: said.append(text))
    assert any(text.startswith("the endpoint asks to wait 1 s") for text in said) and said[-1] == ""
    client = LLMClient(config.caption.openai)
    endpoint.fault(kind="429", times=-1, retry_after=30)
    threading.Timer(0.3, client.stop).start()
    with pytest.raises(Fault):
        client.ask(REQUEST)
    assert "asks to wait 3" in client.wait()
