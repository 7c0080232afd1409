"""Faults of an endpoint by code: no answer, bad answers, rejected keys, hostile text."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from bootpig.stages.caption.llm.client import LONGEST_WAIT, LLMClient
from bootpig.stages.caption.llm.faults import Fault
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.preflight import preflight
from tests.servers.llm import KEY, Endpoint
from tests.stages.caption.llm.runs import VARIABLE, configured, rows, run
from tests.stages.doubles import image_bytes

TRANSPORT = [
    ("429", "rate_limited", "answers 429 (3 tries): an injected fault with colour"),
    ("500", "server_error", "answers 500 (3 tries): an injected fault with colour"),
    ("quota", "quota", "answers 429 (1 try): You exceeded your current quota"),
    ("hang", "timeout", "within 0.3 s (1 try)"),
]


@pytest.mark.parametrize(("kind", "code", "message"), TRANSPORT)
def test_no_answer_is_a_code_and_a_later_run_equals_one_without_faults(
    endpoint: Endpoint, url: str, tmp_path: Path, kind: str, code: str, message: str
) -> None:
    settings = {"timeout": 0.3, "max_retries": 0} if kind == "hang" else {}
    endpoint.fault(kind=kind, times=-1, retry_after=0.01)
    config = configured(tmp_path / "ill", url, units=1, **settings)
    (report,) = run(config)
    assert report.state == "failed" and "\n" not in report.message and "\x1b" not in report.message
    assert f"20 of 20 rows failed ({code})" in report.message and f"first: {code}: {url}" in report.message.replace(
        "no answer from ", ""
    )
    assert message in report.message
    endpoint.faults.clear()
    assert run(config)[0].state == "done"
    run(configured(tmp_path / "well", url, units=1, **settings))
    assert image_bytes(tmp_path / "ill") == image_bytes(tmp_path / "well")


@pytest.mark.parametrize("kind", ["429", "500", "408"])
def test_what_passes_is_tried_again_after_retry_after(endpoint: Endpoint, url: str, tmp_path: Path, kind: str) -> None:
    endpoint.fault(kind=kind, times=2, retry_after=0.4)
    config = configured(tmp_path, url, units=1, concurrency=1)
    assert run(config)[0].state == "done"
    first, second, third = (entry["time"] for entry in endpoint.log[:3])
    assert second - first >= 0.4 and third - second >= 0.4, "Retry-After is a lower bound"
    (log,) = tmp_path.rglob("log-00000.jsonl")
    usage = json.loads(log.read_text().splitlines()[-1])["usage"]
    assert (usage["requests"], usage["retries"], usage["replayed"]) == (4, 2, 0) and usage["output_tokens"] > 0


REQUEST = {"model": "writer-1", "messages": [{"role": "user", "content": "captions"}]}


def test_a_stop_ends_the_wait_for_another_try_and_asks_no_more(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    endpoint.fault(kind="429", times=-1, retry_after=60)
    client = LLMClient(configured(tmp_path, url).caption.openai)
    threading.Timer(0.3, client.stop).start()
    started = time.monotonic()
    with pytest.raises(Fault, match=r"answers 429 \(1 try\)"):
        client.ask(REQUEST)
    assert time.monotonic() - started < 30 and len(endpoint.log) == 1


def test_a_retry_after_that_is_too_long_is_not_waited_for(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    endpoint.fault(kind="429", times=-1, retry_after=LONGEST_WAIT + 1)
    with pytest.raises(Fault, match=r"answers 429 \(1 try\)"):
        LLMClient(configured(tmp_path, url).caption.openai).ask(REQUEST)
    assert len(endpoint.log) == 1


def test_a_refused_connection_is_a_code(endpoint: Endpoint, tmp_path: Path) -> None:
    (report,) = run(configured(tmp_path, "http://127.0.0.1:9/v1", units=1, max_retries=0))
    assert "20 of 20 rows failed (unreachable)" in report.message and "is it running?" in report.message
    assert "\n" not in report.message


ANSWERS = [
    ("refusal", "refusal", """the model refused: "I can't help with that.\""""),
    ("content_filter", "content_filter", "blocked"),
    ("truncated", "truncated", "cut off after"),
    ("invalid_json", "invalid_json", "not JSON: "),
    ("empty", "empty", "the answer is empty"),
    ("prose", "empty", "no caption in 'Certainly"),
    ("short", "short", ""),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "code", "message"), ANSWERS)
def test_a_bad_answer_is_asked_again_then_a_failed_row_with_its_code(
    endpoint: Endpoint, url: str, tmp_path: Path, kind: str, code: str, message: str
) -> None:
    endpoint.fault(kind=kind, times=1)
    once = configured(tmp_path / "once", url, units=1, concurrency=1)
    assert run(once)[0].state == "done"
    assert {row["status"] for row in rows(once)} <= {"ok", "rejected"}, "a second round fills what is open"

    endpoint.faults.clear()
    endpoint.log.clear()
    endpoint.fault(kind=kind, after=3, times=-1)
    config = configured(tmp_path / "always", url, units=1, concurrency=1, captions_per_request=6)
    config = config.model_copy(update={"max_failed": 0.2})
    report = run(config)[0]
    assert report.state == "done" and 0 < report.rows["failed"] <= 2
    (log,) = (tmp_path / "always").rglob("log-00000.jsonl")
    messages = json.loads(log.read_text().splitlines()[-1])["messages"]
    if kind == "short":  # half of one caption is none
        code, message = "empty", "no caption in"
    assert {entry["reason"] for entry in messages} == {code}
    assert all(entry["message"].startswith(f"{code}: ") and message in entry["message"] for entry in messages)
    answered = len(endpoint.log)
    endpoint.faults.clear()
    assert run(config)[0].state == "cached"
    assert Engine(config).run_unit("caption", 0, retry_failed=True).state == "done"
    assert len(endpoint.log) == answered + 1
    assert {row["status"] for row in rows(config)} <= {"ok", "rejected"}


def test_what_is_no_endpoint_ends_at_once_and_names_the_address(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    endpoint.fault(kind="html", times=-1)
    with pytest.raises(InputError, match=r"^caption\.openai\.base_url: .* not a chat completion: '<html>.*/v1"):
        run(configured(tmp_path, url))
    assert len(endpoint.log) <= 4 and not list(tmp_path.rglob("journal/*"))


def test_a_wrong_key_stops_at_once_and_names_the_variable(
    endpoint: Endpoint, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "sk-not-the-one")
    with pytest.raises(InputError) as caught:
        run(configured(tmp_path, url))
    assert str(caught.value) == (
        f"caption.openai.api_key_env: '{VARIABLE}' → unauthorized: {url} refuses the key (401); "
        f"export a valid key in {VARIABLE}"
    )
    assert len(endpoint.log) <= 4 and not list(tmp_path.rglob("journal/*"))


def test_a_missing_key_is_found_before_any_work_and_only_where_it_is_needed(
    endpoint: Endpoint, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path, url, units=1)
    monkeypatch.delenv(VARIABLE)
    (problem,) = preflight(Engine(config), ["caption"])
    assert problem.startswith(
        f"caption.openai.api_key_env: '{VARIABLE}' → this environment variable is not set; export"
    )
    assert preflight(Engine(configured(tmp_path, url, api_key_secret="llm")), ["caption"]) == []
    monkeypatch.setenv(VARIABLE, KEY)
    run(config)
    monkeypatch.delenv(VARIABLE)
    assert preflight(Engine(config), ["caption"]) == []


def test_an_endpoint_without_a_key(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    endpoint.key = ""
    assert run(configured(tmp_path, url, units=1, api_key_env=None))[0].state == "done"


def test_a_model_that_is_not_there_is_named_with_those_that_are(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run(configured(tmp_path, url, model="writer-2"))
    assert str(caught.value) == (
        f"caption.openai.model: 'writer-2' → no_model: {url} answers 404; it serves writer-1, writer-1-mini"
    )


@pytest.mark.parametrize("format", ["auto", "json", "lines"])
def test_an_endpoint_without_json_schema(endpoint: Endpoint, url: str, tmp_path: Path, format: str) -> None:
    endpoint.schema = False
    config = configured(tmp_path, url, units=2, format=format, concurrency=1)
    if format == "json":
        with pytest.raises(InputError, match=r"caption\.openai\.format: 'json' → the endpoint answers 400"):
            run(config)
        return
    assert [report.state for report in run(config)] == ["done", "done"]
    refused = sum(entry["status"] == 400 for entry in endpoint.log)
    assert refused == (1 if format == "auto" else 0), "found out once"
    assert "one caption a line" in endpoint.log[-1]["body"]["messages"][1]["content"]


def test_hostile_captions_become_harmless_lines(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    endpoint.fault(kind="hostile")
    config = configured(tmp_path, url, units=1, concurrency=1)
    run(config)
    caption = rows(config)[0]["caption"]
    assert caption == "A photo of a alert(1) mug, link(javascript:x) on a table"


def test_an_endpoint_that_repeats_the_key_never_gets_it_kept(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    endpoint.fault(kind="echo_key", times=-1, retry_after=0.01)
    config = configured(tmp_path, url, units=1)
    (report,) = run(config)
    assert "request was Bearer ***" in report.message
    endpoint.faults.clear()
    run(config)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
