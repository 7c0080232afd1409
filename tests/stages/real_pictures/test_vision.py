"""Captions of pictures by a vision model, from a real endpoint on loopback: journal, replay, cap, faults."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bootpig.flows.runs.plan import plan
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.preflight import preflight
from tests.servers.llm import KEY, Endpoint
from tests.stages.caption.llm.runs import VARIABLE
from tests.stages.doubles import image_bytes
from tests.stages.real_pictures.sets import configured, rows, run, write_pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures without captions; the last one is broken, and 003 is a copy."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, range(8))
    (folder / "003.png").write_bytes((folder / "001.png").read_bytes())
    (folder / "007.png").write_bytes(b"no picture")
    for path in folder.glob("*.txt"):
        path.unlink()
    return folder


def described(store: Path, folder: Path, url: str, **changes: Any) -> PipelineConfig:
    vision = {"base_url": url, "model": "writer-1", "api_key_env": VARIABLE, "concurrency": 2, "max_retries": 1}
    return configured(store, folder, 8, captions="openai", openai=vision | changes)


def test_each_picture_gets_a_caption_of_its_own_and_is_paid_for_once(
    endpoint: Endpoint, url: str, folder: Path, tmp_path: Path
) -> None:
    config = described(tmp_path / "a", folder, url)
    assert [report.rows["ok"] for report in run(config)] == [3, 3]
    found = {row["name"]: row for row in rows(config)}
    assert {name: row["reason"] for name, row in found.items() if row["reason"]} == {
        "003.png": "duplicate",
        "007.png": "unreadable",
    }
    good = [row for row in found.values() if row["status"] == "ok"]
    assert len({row["caption"] for row in good}) > 3 and all(row["object"] in row["caption"] for row in good)
    assert len(endpoint.log) == 6, "nothing is asked about copies and broken files"
    message = endpoint.log[0]["body"]["messages"][-1]["content"]
    assert "A photo of a [object]" in message[0]["text"]
    entries = list((tmp_path / "a").rglob("journal/*.json"))
    assert len(entries) == 6 and not any("base64" in path.read_text() for path in entries)
    assert {int(path.name.split("-")[0]) for path in entries} == {int(row["id"], 16) for row in good}

    before = image_bytes(tmp_path / "a")
    for path in (tmp_path / "a").rglob("part-*"):
        path.unlink()
    os.environ.pop(VARIABLE)  # a replay needs no key
    assert [report.state for report in run(config)] == ["done", "done"]
    assert image_bytes(tmp_path / "a") == before and len(endpoint.log) == 6


def test_a_picture_that_changes_is_asked_for_again_and_one_that_moves_is_not(
    endpoint: Endpoint, url: str, folder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "pictures"
    write_pictures(own, range(8))
    run(described(tmp_path / "a", own, url))
    asked = len(endpoint.log)
    write_pictures(tmp_path / "new", range(20, 21))
    (tmp_path / "new" / "020.png").rename(own / "000a.png")  # all others move on by one
    config = described(tmp_path / "a", own, url)
    assert [report.state for report in run(config)] == ["done", "done"]
    assert len(endpoint.log) == asked + 1
    (own / "002.png").write_bytes((folder / "007.png").read_bytes())
    run(config)
    assert len(endpoint.log) == asked + 1


def test_a_forced_unit_asks_again_and_goes_on_where_it_was_stopped(
    endpoint: Endpoint, url: str, folder: Path, tmp_path: Path
) -> None:
    config = described(tmp_path / "a", folder, url, concurrency=1, max_retries=0)
    run(config)
    endpoint.fault(kind="500", after=2, times=-1)
    assert Engine(config).run_unit("pictures", 0, force=True).state == "failed"
    endpoint.faults.clear()
    asked = len(endpoint.log)
    assert Engine(config).run_unit("pictures", 0, force=True).state == "done"
    assert len(endpoint.log) == asked + 1, "two of three answers were there"
    assert set(Engine(config).survey("pictures").units.values()) == {"complete"}


def test_the_cap_leaves_units_pending(endpoint: Endpoint, url: str, folder: Path, tmp_path: Path) -> None:
    capped = described(tmp_path / "a", folder, url, cap_usd=0.0045, price_input=1.0, price_output=1.0)
    reports = run(capped)
    assert [report.state for report in reports] == ["done", "pending"]
    told = reports[1].message
    assert told.startswith("pictures unit 1: the spending cap pictures.openai.cap_usd 0.0045 would be exceeded (")
    assert [report.state for report in run(described(tmp_path / "a", folder, url))] == ["cached", "done"]
    assert len(endpoint.log) == 6


@pytest.mark.parametrize(
    ("kind", "code"),
    [("refusal", "refusal"), ("truncated", "truncated")],
)
def test_an_answer_without_a_caption_is_asked_again_then_a_failed_row(
    endpoint: Endpoint, url: str, folder: Path, tmp_path: Path, kind: str, code: str
) -> None:
    endpoint.fault(kind=kind, times=2)
    config = described(tmp_path / "a", folder, url, concurrency=1)
    assert [report.rows["failed"] for report in run(config)] == [0, 0], "asked again"
    endpoint.faults.clear()
    endpoint.fault(kind=kind, times=-1)
    config = described(tmp_path / "b", folder, url, rounds=1).model_copy(update={"max_failed": 1.0})
    run(config)
    assert {row["reason"] for row in rows(config)} == {code, "duplicate", "unreadable"}
    endpoint.faults.clear()
    engine = Engine(config)
    assert engine.run_unit("pictures", 0, retry_failed=True).rows == {"ok": 3, "rejected": 1, "failed": 0}


def test_what_is_wrong_with_the_endpoint_is_one_line(
    endpoint: Endpoint, url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^pictures\.openai\.model: 'nosuch' → no_model: .*; it serves writer-1"):
        run(described(tmp_path / "a", folder, url, model="nosuch"))
    endpoint.fault(kind="html", times=-1)
    with pytest.raises(InputError, match=r"^pictures\.openai\.base_url: .*not a chat completion"):
        run(described(tmp_path / "a", folder, url))
    endpoint.faults.clear()
    (report, _) = run(described(tmp_path / "a", folder, "http://127.0.0.1:9/v1", max_retries=0))
    assert report.state == "failed" and "unreachable: http://127.0.0.1:9/v1" in report.message
    endpoint.schema = False
    with pytest.raises(InputError, match=r"^pictures\.openai\.format: 'json' → the endpoint answers 400"):
        run(described(tmp_path / "a", folder, url, format="json"))
    assert [report.state for report in run(described(tmp_path / "a", folder, url))] == ["done", "done"]
    monkeypatch.setenv(VARIABLE, "sk-not-the-one")
    with pytest.raises(InputError, match=r"^pictures\.openai\.api_key_env: .* unauthorized"):
        run(described(tmp_path / "c", folder, url))
    monkeypatch.delenv(VARIABLE)
    (problem,) = preflight(Engine(described(tmp_path / "c", folder, url)), ["pictures"])
    assert problem.startswith(f"pictures.openai.api_key_env: '{VARIABLE}' → this environment variable is not set")
    assert KEY not in json.dumps([path.read_text() for path in tmp_path.rglob("*.json*")])


def test_plan_tells_what_captions_cost(endpoint: Endpoint, url: str, folder: Path, tmp_path: Path) -> None:
    config = described(tmp_path / "a", folder, url, price_input=1.0, price_output=2.0)
    facts = plan(config)["stages"]["pictures"]
    assert facts["llm"]["requests"] == 8 and facts["llm"]["input_tokens"] > 8000
    assert facts["cost_usd"] == pytest.approx(facts["llm"]["cost_usd"]) and facts["cost_usd"] > 0.008
