"""Captions from a real endpoint on loopback: journal, replay, duplicates, spending cap, batches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from bootpig.stages.caption.llm.journal import Journal
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.engine import Engine
from tests.servers.llm import Endpoint
from tests.stages.caption.llm.runs import VARIABLE, configured, rows, run
from tests.stages.doubles import image_bytes


def journal(config: PipelineConfig) -> Journal:
    engine = Engine(config)
    return Journal(engine.root, f"{engine.survey('caption').path}/journal")


def asked(endpoint: Endpoint) -> Counter[str]:
    """How often each request was answered."""
    return Counter(entry["digest"] for entry in endpoint.log if entry["path"] == "chat" and entry["status"] == 200)


def test_units_fill_are_deduplicated_in_order_and_cached(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    config = configured(tmp_path, url)
    assert [report.state for report in run(config)] == ["done"] * 3
    made = rows(config)
    assert len(made) == 60 and {row["status"] for row in made} <= {"ok", "rejected"}
    captions = [row["caption"] for row in made if row["status"] == "ok"]
    assert len(set(captions)) == len(captions) > 40
    assert all(row["object"] in row["caption"] for row in made if row["status"] == "ok")
    assert {row["reason"] for row in made if row["status"] == "rejected"} <= {"duplicate"}
    first, last = endpoint.log[0]["body"], endpoint.log[-1]["body"]
    assert first["messages"][0] == {"role": "system", "content": config.caption.openai.system}
    assert first["temperature"] == 1.2 and first["response_format"]["type"] == "json_schema"
    assert "covered already" not in first["messages"][1]["content"]
    covered = last["messages"][1]["content"].split("covered already: ")[1].split(".")[0].split(", ")
    assert set(covered) == {row["object"].split()[-1] for row in made[:40] if row["status"] == "ok"}
    assert len(endpoint.log) == 12 and set(asked(endpoint).values()) == {1}, "no two requests are the same"
    assert [report.state for report in run(config)] == ["cached"] * 3
    assert len(endpoint.log) == 12


def test_duplicates_are_rows_and_go_no_further(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    endpoint.fault(kind="duplicates", times=-1)
    config = configured(tmp_path, url, units=2)
    assert [report.rows["ok"] for report in run(config)] == [1, 0]
    made = rows(config)
    assert Counter(row["reason"] for row in made) == {"": 1, "duplicate": 39}
    assert {row["status"] for row in made if row["reason"]} == {"rejected"}
    assert len({row["id"] for row in made}) == 40 and len({row["caption"] for row in made}) == 1


def test_a_lost_part_comes_back_from_the_journal_with_equal_bytes(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    endpoint.surprise = True
    config = configured(tmp_path, url)
    run(config)
    before, answered = image_bytes(tmp_path), len(endpoint.log)
    for path in tmp_path.rglob("part-00001*"):
        path.unlink()
    os.environ.pop(VARIABLE)  # a replay needs no key
    assert [report.state for report in run(config)] == ["cached", "done", "cached"]
    assert image_bytes(tmp_path) == before and len(endpoint.log) == answered


def test_a_damaged_answer_is_asked_for_again(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    config = configured(tmp_path, url, units=1)
    run(config)
    before = image_bytes(tmp_path)
    for path in [*tmp_path.rglob("part-*"), *tmp_path.rglob("00000-00-00-0002.json")]:
        path.write_bytes(b"{")
    assert [report.state for report in run(config)] == ["done"]
    assert image_bytes(tmp_path) == before and len(endpoint.log) == 5


def test_a_forced_unit_makes_new_requests_and_leaves_the_others_alone(
    endpoint: Endpoint, url: str, tmp_path: Path
) -> None:
    endpoint.surprise = True
    config = configured(tmp_path, url)
    run(config)
    before = image_bytes(tmp_path)
    engine = Engine(config)
    assert engine.run_unit("caption", 1, force=True).state == "done"
    assert len(endpoint.log) == 16
    changed = {name for name, data in image_bytes(tmp_path).items() if before.get(name) != data}
    assert all("part-00001" in name for name in changed) and changed
    assert set(engine.survey("caption").units.values()) == {"complete"}
    captions = [row["caption"] for row in rows(config) if row["status"] == "ok"]
    assert len(set(captions)) == len(captions)
    assert journal(config).root.names(journal(config).folder).keys() >= {"00001-01-00-0003.json"}


def test_an_interrupted_forced_unit_goes_on_and_pays_once(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    endpoint.surprise = True
    config = configured(tmp_path, url, units=1, concurrency=1, max_retries=0)
    run(config)
    endpoint.fault(kind="500", after=2, times=-1)
    assert Engine(config).run_unit("caption", 0, force=True).state == "failed"
    assert Engine(config).survey("caption").units == {0: "complete"}, "what was there is kept"
    endpoint.faults.clear()
    assert Engine(config).run_unit("caption", 0, force=True).state == "done"
    assert sum(entry["status"] == 200 for entry in endpoint.log) == 8


SCRIPT = """
import sys
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.engine import Engine
engine = Engine(PipelineConfig.model_validate_json(sys.stdin.read()))
for unit in engine.units():
    print(engine.run_unit("caption", unit).state, flush=True)
"""


def killed_when(config: PipelineConfig, answers: int, folder: Path) -> None:
    """Run the units in another process, and kill it once the journal holds so many answers."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None
    process.stdin.write(config.model_dump_json(exclude_unset=True))
    process.stdin.close()
    deadline = time.monotonic() + 120
    while len(list(folder.rglob("journal/*.json"))) < answers and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(folder.rglob("journal/*.json"))) == answers


@pytest.mark.slow
def test_killed_between_answer_and_commit_nothing_is_paid_twice(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    whole = configured(tmp_path / "whole", url, units=2)
    run(whole)
    endpoint.log.clear()
    endpoint.fault(kind="hang", after=7)  # the last request of unit 1: seven answers are there, unit 1 is not committed
    config = configured(tmp_path / "killed", url, units=2)
    killed_when(config, 7, tmp_path / "killed")
    assert Engine(config).survey("caption").units == {0: "complete", 1: "pending"}
    assert [report.state for report in run(config)] == ["cached", "done"]
    assert sum(entry["status"] == 200 for entry in endpoint.log) == 8, "the one that hung, and no other, is asked again"
    assert image_bytes(tmp_path / "killed") == image_bytes(tmp_path / "whole")


@pytest.mark.parametrize("cap", [{"cap_tokens": 2000}, {"cap_usd": 0.002, "price_input": 1.0, "price_output": 1.0}])
def test_the_cap_leaves_units_pending_and_a_higher_one_goes_on(
    endpoint: Endpoint, url: str, tmp_path: Path, cap: dict
) -> None:
    config = configured(tmp_path / "capped", url, **cap)
    reports = run(config)
    assert [report.state for report in reports] == ["done", "pending", "pending"]
    capped, waiting = reports[1].message, reports[2].message
    assert capped.startswith(f"caption unit 1: the spending cap caption.openai.{next(iter(cap))} ")
    assert "spent); raise it and run again, paid answers are kept" in capped and "\n" not in capped
    assert waiting == "caption unit 2: waits for unit 1; captions from an LLM are made in order of units"
    assert set(Engine(config).survey("caption").units.values()) == {"complete", "pending"}
    kept = journal(config)
    kept.refresh()
    assert 0 < kept.spent.tokens <= 2000
    answered = len(endpoint.log)
    raised = configured(tmp_path / "capped", url)
    assert [report.state for report in run(raised)] == ["cached", "done", "done"]
    run(configured(tmp_path / "whole", url))
    assert image_bytes(tmp_path / "capped") == image_bytes(tmp_path / "whole")
    assert 0 < answered < 12


@pytest.mark.slow
class TestBatch:
    def test_a_batch_serves_several_units_at_half_the_price(self, endpoint: Endpoint, url: str, tmp_path: Path) -> None:
        config = configured(tmp_path, url, batch=True, price_input=1.0, price_output=2.0)
        assert [report.state for report in run(config)] == ["done"] * 3
        batches = [entry for entry in endpoint.log if entry["path"] == "batch"]
        assert [entry["requests"] for entry in batches] == [12]
        kept = journal(config)
        kept.refresh()
        spent = kept.spent
        assert (spent.input, spent.output) == (0, 0) and spent.batch_input > 0
        usd = config.caption.openai.usd(spent)
        assert usd == pytest.approx((spent.batch_input + 2 * spent.batch_output) / 2e6)

    def test_a_restart_picks_the_same_batch_up(self, endpoint: Endpoint, url: str, tmp_path: Path) -> None:
        endpoint.fault(kind="batch_hang")
        config = configured(tmp_path, url, units=2, batch=True)
        process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, text=True)
        assert process.stdin is not None
        process.stdin.write(config.model_dump_json(exclude_unset=True))
        process.stdin.close()
        note = None
        while note is None or json.loads(note.read_text())["state"] != "submitted":
            assert process.poll() is None
            time.sleep(0.02)
            note = next(tmp_path.rglob("journal/batch-*.json"), None)
        process.send_signal(signal.SIGKILL)
        process.wait()
        (batch,) = endpoint.batches.values()
        lines = [json.loads(line) for line in endpoint.files[batch["input_file_id"]].splitlines()]
        output = [{"custom_id": line["custom_id"], "response": endpoint._batched(line)} for line in lines]
        endpoint.files["file-late"] = "\n".join(map(json.dumps, output)).encode()
        batch |= {"status": "completed", "output_file_id": "file-late"}
        assert [report.state for report in run(config)] == ["done", "done"]
        assert len(endpoint.batches) == 1

    def test_a_submission_whose_answer_was_lost_is_found_again(
        self, endpoint: Endpoint, url: str, tmp_path: Path
    ) -> None:
        endpoint.fault(kind="batch_lost")
        config = configured(tmp_path, url, units=1, batch=True, max_retries=0)
        (report,) = run(config)
        assert report.state == "failed" and "(server_error)" in report.message
        assert run(config)[0].state == "done"
        assert len(endpoint.batches) == 1

    @pytest.mark.parametrize("kind", ["batch_failed", "batch_expired"])
    def test_what_a_batch_leaves_out_is_batched_again(
        self, endpoint: Endpoint, url: str, tmp_path: Path, kind: str
    ) -> None:
        endpoint.fault(kind=kind)
        config = configured(tmp_path, url, units=1, batch=True)
        assert run(config)[0].state == "done"
        assert [entry["requests"] for entry in endpoint.log] == ([4, 4] if kind == "batch_failed" else [4, 2])
        endpoint.fault(kind=kind, times=-1)
        (report,) = run(configured(tmp_path / "always", url, units=1, batch=True, rounds=1))
        assert report.state == "failed" and "(batch_failed)" in report.message

    def test_the_cap_holds_for_a_batch(self, endpoint: Endpoint, url: str, tmp_path: Path) -> None:
        config = configured(tmp_path, url, batch=True, cap_tokens=3000)
        assert [report.state for report in run(config)] == ["done", "done", "pending"]
        assert [entry["requests"] for entry in endpoint.log] == [8]
