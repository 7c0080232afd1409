"""Pictures from a real images endpoint on loopback: journal, replay, caps, generations, bad pictures, bad addresses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from bootpig.flows.runs.plan import plan
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.preflight import preflight
from bootpig.stages.synthesize.config import SynthesizeConfig
from tests.servers.llm import KEY, Endpoint
from tests.stages.caption.llm.runs import VARIABLE
from tests.stages.doubles import image_bytes
from tests.stages.synthesize.drawing import configured, messages, pictures, rows, run


def test_each_caption_gets_a_picture_that_is_paid_for_once(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    config = configured(tmp_path, url, openai={"quality": "high", "extra_body": {"steps": 4}})
    assert [report.rows for report in run(config)] == [{"ok": 4, "rejected": 0, "failed": 0}] * 2
    found = pictures(config)
    assert {picture.shape for picture in found.values()} == {(48, 64, 3)}
    assert len({picture.tobytes() for picture in found.values()}) == 8
    seeds = {row["seed"] for row in rows(config)}
    bodies = [entry["body"] for entry in endpoint.log]
    assert {body.pop("seed") for body in bodies} == seeds and max(seeds) < 2**31
    captions = {row["caption"] for row in Engine(config).survey("caption").markers[0].rows}
    assert captions <= {body.pop("prompt") for body in bodies}
    sent = {"model": "canvas-1", "n": 1, "size": "64x48", "quality": "high", "steps": 4, "response_format": "b64_json"}
    assert bodies == [sent] * 8
    entries = list(tmp_path.glob("synthesize/journal-*/*.json"))
    assert len(entries) == 8 and max(path.stat().st_size for path in entries) < 1000, "pictures are not in them"
    assert len(list(tmp_path.glob("synthesize/journal-*/pictures/*"))) == 8

    before = image_bytes(tmp_path)
    for path in tmp_path.glob("synthesize/*/part-*"):
        path.unlink()
    os.environ.pop(VARIABLE)  # a replay needs no key
    assert [report.state for report in run(config)] == ["done", "done"]
    assert image_bytes(tmp_path) == before and len(endpoint.log) == 8


def test_other_settings_of_the_stage_use_the_same_pictures(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    run(configured(tmp_path, url))
    smaller = configured(tmp_path, url, resize=24, min_contrast=1)
    assert [report.state for report in run(smaller)] == ["done", "done"]
    assert {picture.shape for picture in pictures(smaller).values()} == {(24, 32, 3)} and len(endpoint.log) == 8
    moved = configured(tmp_path, url.replace("127.0.0.1", "localhost"), openai={"timeout": 9, "price_per_image": 1})
    assert [report.state for report in run(moved)] == ["cached", "cached"]
    run(configured(tmp_path, url, openai={"quality": "low"}))
    assert len(endpoint.log) == 16


def test_a_killed_unit_goes_on_with_the_same_requests(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    config = configured(tmp_path / "a", url, units=1, openai={"concurrency": 1, "max_retries": 0})
    endpoint.fault(kind="500", after=2, times=-1)
    (report,) = run(config)
    assert report.state == "failed" and "2 of 4 rows failed (server_error)" in report.message
    endpoint.faults.clear()
    assert run(config)[0].state == "done" and sum(entry["status"] == 200 for entry in endpoint.log) == 4
    whole = configured(tmp_path / "b", url, units=1)
    run(whole)
    assert image_bytes(tmp_path / "a") == image_bytes(tmp_path / "b")


def test_a_forced_unit_asks_again_and_goes_on_where_it_was_stopped(
    endpoint: Endpoint, url: str, tmp_path: Path
) -> None:
    config = configured(tmp_path, url, units=1, openai={"concurrency": 1, "max_retries": 0})
    run(config)
    first = pictures(config)
    endpoint.fault(kind="500", after=3, times=-1)
    assert Engine(config).run_unit("synthesize", 0, force=True).state == "failed"
    endpoint.faults.clear()
    asked = len(endpoint.log)
    assert Engine(config).run_unit("synthesize", 0, force=True).state == "done"
    assert len(endpoint.log) == asked + 1, "three of four answers were there"
    second = pictures(config)
    assert all((first[id] != second[id]).any() for id in first)
    assert Engine(config).run_unit("synthesize", 0, force=True).state == "done"
    assert len(endpoint.log) == asked + 5


@pytest.mark.parametrize(("cap", "value"), [("cap_images", 6), ("cap_usd", 0.24)])
def test_a_cap_leaves_units_pending(endpoint: Endpoint, url: str, tmp_path: Path, cap: str, value: float) -> None:
    reports = run(configured(tmp_path, url, openai={"price_per_image": 0.04, cap: value}))
    assert [report.state for report in reports] == ["done", "pending"]
    assert reports[1].message == (
        f"synthesize unit 1: the spending cap synthesize.openai.{cap} {value:g} would be exceeded (0.24 USD, 6 "
        "pictures spent); raise it and run again, paid answers are kept"
    )
    assert [report.state for report in run(configured(tmp_path, url))] == ["cached", "done"]
    assert len(endpoint.log) == 8


GOOD = ["jpeg", "sixteen_bit", "double", "data_url", "url"]
BAD = [
    ("one_pixel", "rejected", "wrong_size", "1x1 pixels; asked for 64x48"),
    ("wide", "rejected", "wrong_size", "128x48 pixels; asked for 64x48"),
    ("blank", "rejected", "blank", ""),
    ("clear", "rejected", "blank", ""),
    ("moderation", "rejected", "content_filter", "Your request was rejected by the safety system"),
    ("filtered", "rejected", "content_filter", "CONTENT_FILTER"),
    ("cut_off", "failed", "unreadable", "is not a readable picture"),
    ("broken_base64", "failed", "unreadable", "not base64"),
    ("null", "failed", "empty", "neither b64_json nor url"),
    ("no_data", "failed", "empty", "the answer contains no picture"),
]


@pytest.mark.parametrize("kind", GOOD)
def test_pictures_of_other_kinds_are_read(endpoint: Endpoint, url: str, tmp_path: Path, kind: str) -> None:
    endpoint.fault(kind=kind, times=-1)
    config = configured(tmp_path, url, units=1)
    assert run(config)[0].rows == {"ok": 4, "rejected": 0, "failed": 0}
    assert {picture.shape for picture in pictures(config).values()} == {(48, 64, 3)}
    asked = len(endpoint.log)
    for path in tmp_path.glob("synthesize/*/part-*"):
        path.unlink()
    assert run(config)[0].state == "done" and len(endpoint.log) == asked


@pytest.mark.parametrize(("kind", "status", "reason", "message"), BAD)
def test_a_picture_that_cannot_be_used_is_a_row_with_a_reason(
    endpoint: Endpoint, url: str, tmp_path: Path, kind: str, status: str, reason: str, message: str
) -> None:
    endpoint.fault(kind=kind, times=-1)
    config = configured(tmp_path, url, units=1, openai={"rounds": 2}).model_copy(update={"max_failed": 1.0})
    run(config)
    assert {(row["status"], row["reason"]) for row in rows(config)} == {(status, reason)}
    assert len(endpoint.log) == (8 if status == "failed" else 4), "only what may change is asked for again"
    told = messages(tmp_path)
    assert not message or (len(told) == 4 and all(message in entry["message"] for entry in told))
    assert all(entry["message"].startswith(f"{reason}: ") and "\n" not in entry["message"] for entry in told)
    if status == "failed":
        assert len({entry["body"]["seed"] for entry in endpoint.log}) == 8, "with another seed"
        endpoint.faults.clear()
        assert Engine(config).run_unit("synthesize", 0, retry_failed=True).rows["ok"] == 4
    if kind == "moderation":
        capped = configured(tmp_path, url, openai={"rounds": 2, "cap_images": 1})
        assert Engine(capped).survey("synthesize").units[0] == "complete"
        endpoint.faults.clear()
        run(capped)
        assert len(endpoint.log) == 5, "what is refused costs nothing"


def test_a_retry_of_failed_rows_pays_for_nothing_else(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    endpoint.fault(kind="null", after=3, times=-1)
    config = configured(tmp_path, url, units=1, openai={"rounds": 1, "concurrency": 1})
    config = config.model_copy(update={"max_failed": 1.0})
    assert run(config)[0].rows["failed"] == 1
    endpoint.faults.clear()
    for path in tmp_path.glob("synthesize/journal-*/*.json"):
        path.unlink()
    assert Engine(config).run_unit("synthesize", 0, retry_failed=True).rows["ok"] == 4
    assert len(endpoint.log) == 5


def test_only_the_endpoint_itself_is_asked_for_a_picture(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    endpoint.fault(kind="foreign", times=-1)
    config = configured(tmp_path, url, units=1, openai={"rounds": 1}).model_copy(update={"max_failed": 1.0})
    with pytest.raises(InputError, match=r"^synthesize\.openai\.base_url: .*at another server, '169\.254\.169\.254'"):
        run(config)
    assert len(endpoint.log) <= 2, "it ends with the first"
    endpoint.faults.clear()
    endpoint.fault(kind="url", times=-1)
    endpoint.fault(kind="file_redirect", times=1)
    endpoint.fault(kind="file_404", times=-1)
    run(configured(tmp_path / "b", url, units=1, openai={"rounds": 1}).model_copy(update={"max_failed": 1.0}))
    told = {entry["message"].partition(" answered with ")[2] for entry in messages(tmp_path / "b")}
    assert told == {"404"}, "redirects are not followed, and asked for again when the unit is made"


def test_a_picture_that_cannot_be_fetched_now_is_not_paid_for_again(
    endpoint: Endpoint, url: str, tmp_path: Path
) -> None:
    endpoint.fault(kind="url", times=-1)
    endpoint.fault(kind="file_503", times=-1)
    config = configured(tmp_path, url, units=1, openai={"max_retries": 0})
    (report,) = run(config)
    assert report.state == "failed" and "4 of 4 rows failed (server_error)" in report.message
    del endpoint.faults[1]
    assert run(config)[0].state == "done"
    assert sum(entry["path"] == "images" for entry in endpoint.log) == 4


def test_what_is_wrong_with_the_endpoint_is_one_line(
    endpoint: Endpoint, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^synthesize\.openai\.model: 'nosuch' → no_model: .* answers 404"):
        run(configured(tmp_path, url, openai={"model": "nosuch"}))
    endpoint.fault(kind="html", times=-1)
    with pytest.raises(InputError, match=r"^synthesize\.openai\.base_url: .* not an images response: '<html>"):
        run(configured(tmp_path, url))
    endpoint.faults.clear()
    endpoint.fault(kind="400", times=-1)
    with pytest.raises(InputError, match=r"^synthesize\.openai: bad_request: .*; see quality, send_seed, extra_body"):
        run(configured(tmp_path, url))
    endpoint.faults.clear()
    assert not list(tmp_path.glob("synthesize/journal-*/*")), "none of these is an answer"
    endpoint.schema = False
    (first, _) = run(configured(tmp_path, url, openai={"concurrency": 1}))
    assert first.state == "done" and sum(entry["status"] == 400 for entry in endpoint.log[-9:]) == 1
    assert "response_format" not in endpoint.log[-1]["body"]
    monkeypatch.delenv(VARIABLE)
    (problem,) = preflight(Engine(configured(tmp_path / "c", url)), ["synthesize"])
    assert problem.startswith(f"synthesize.openai.api_key_env: '{VARIABLE}' → this environment variable is not set")


def test_a_request_that_is_rejected_after_others_were_answered_concerns_its_caption(
    endpoint: Endpoint, url: str, tmp_path: Path
) -> None:
    config = configured(tmp_path, url, openai={"concurrency": 1}).model_copy(update={"max_failed": 0.5})
    run(config.model_copy(update={"caption": config.caption.model_copy(update={"count": 4})}))
    endpoint.fault(kind="400", times=2)  # with and without response_format
    assert run(config)[1].rows == {"ok": 3, "rejected": 0, "failed": 1}
    (told,) = messages(tmp_path)
    assert told["reason"] == "refused" and told["message"].startswith(f"refused: {url} answers 400: an injected fault")
    assert "response_format" in endpoint.log[-1]["body"]


def test_what_passes_is_tried_again_and_the_key_is_kept_nowhere(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    endpoint.fault(kind="429", times=1, retry_after=0.3)
    endpoint.fault(kind="echo_key", times=1, retry_after=0.01)
    config = configured(tmp_path, url, units=1, openai={"concurrency": 1, "max_retries": 2})
    assert run(config)[0].state == "done"
    first, second = (entry["time"] for entry in endpoint.log[:2])
    assert second - first >= 0.3
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_plan_tells_what_pictures_cost(endpoint: Endpoint, url: str, tmp_path: Path) -> None:
    planned = plan(configured(tmp_path, url, openai={"price_per_image": 0.04, "cap_usd": 0.1}))
    drawn = planned["stages"]["synthesize"]
    assert drawn["images"] == {"requests": 8, "cost_usd": 0.32} and drawn["cost_usd"] == 0.32
    assert drawn["gpu_hours"] == 0 and drawn["licences"] == {}
    assert "pictures: 8 requests to 'canvas-1', no picture twice, 0.04 USD each" in planned["assumptions"]
    assert any("cap_usd 0.1 is less than that" in line for line in planned["assumptions"])


def test_settings_of_the_other_source_are_refused() -> None:
    for settings, told in (
        ({"source": "openai"}, "source 'openai' needs openai"),
        ({}, "source 'diffusers' needs model"),
        ({"model": "m", "openai": {"model": "m"}}, "openai is used by source 'openai' only"),
        ({"source": "openai", "openai": {"model": "m"}, "steps": 9}, "steps is used by source 'diffusers' only"),
        ({"source": "openai", "openai": {"model": "m", "cap_usd": 1}}, "cap_usd needs price_per_image, in USD"),
        ({"source": "openai", "openai": {"model": "m", "extra_body": {"size": "1x1"}}}, "size cannot be set here"),
    ):
        with pytest.raises(ValidationError, match=told):
            SynthesizeConfig.model_validate(settings)
    one = {"source": "openai", "openai": {"model": "m", "base_url": "http://a/v1"}}
    other = {"source": "openai", "openai": {"model": "m", "base_url": "http://b/v1", "concurrency": 3}}
    hashes = [json.dumps(SynthesizeConfig.model_validate(values).hashed(), sort_keys=True) for values in (one, other)]
    assert hashes[0] == hashes[1] and '"model": "m"' in hashes[0]
    assert not {"source", "openai", "model"} & set(SynthesizeConfig(model="m").hashed())
