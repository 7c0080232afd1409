"""The ledger, told as stories: grow, shrink, fail, retry, change, lose, share."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path

import pytest
import torch

import bootpig.stages.engine.loaded
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.survey import graph_of
from bootpig.stages.registry import STAGES
from bootpig.storage.errors import StoreFull
from bootpig.storage.shards import read_shard
from tests.stages.doubles import CALLS, FAULTS, Counter, Painter, config, doubles, image_bytes

pytestmark = pytest.mark.usefixtures("doubles")

__all__ = ["doubles"]

MAPS = graph_of(config(Path("unused"))).maps()


def run(configuration, **options) -> dict[str, list[str]]:
    """Run every stage; returns the unit states by stage."""
    engine = Engine(configuration)
    states = {}
    for stage in MAPS:
        states[stage] = [engine.run_unit(stage, unit, **options).state for unit in engine.units()]
    for stage in ("train", "evaluate"):
        states[stage] = [engine.run_reduce(stage).state]
    return states


def states(configuration) -> dict[str, set[str]]:
    return {name: set(survey.units.values()) for name, survey in Engine(configuration).survey_all().items()}


def test_run_then_cached(tmp_path: Path) -> None:
    first = run(config(tmp_path))
    assert all(set(made) == {"done"} for made in first.values())
    assert all(found == {"complete"} for found in states(config(tmp_path)).values())
    CALLS.clear()
    assert all(set(found) == {"cached"} for found in run(config(tmp_path)).values())
    assert CALLS == []


def test_rows_are_the_ok_rows_above_and_payload_holds_the_ok_ones(tmp_path: Path) -> None:
    run(config(tmp_path))
    surveys = Engine(config(tmp_path)).survey_all()
    for above, below in itertools.pairwise(MAPS):
        for unit in range(4):
            ok = [r["id"] for r in surveys[above].markers[unit].rows if r["status"] == "ok"]
            assert [r["id"] for r in surveys[below].markers[unit].rows] == ok
    marker = surveys["segment"].markers[0]
    members = [key for key, _ in read_shard((tmp_path / surveys["segment"].path / marker.payload).read_bytes())]
    assert members == [r["id"] for r in marker.rows if r["status"] == "ok"]
    rows = surveys["segment"].rows()
    assert rows["rejected"]["blank"] > 0 and rows["ok"] + rows["rejected"]["blank"] == 20


def test_two_roots_hold_the_same_bytes(tmp_path: Path) -> None:
    run(config(tmp_path / "a"))
    run(config(tmp_path / "b", max_failed=0.5))
    assert image_bytes(tmp_path / "a") == image_bytes(tmp_path / "b") != {}


def test_growth_keeps_old_parts_and_equals_a_fresh_run(tmp_path: Path) -> None:
    run(config(tmp_path / "grown"))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "grown").rglob("part-*")}
    grown = config(tmp_path / "grown", caption__count=40)
    made = run(grown)
    for stage in MAPS:
        assert made[stage] == ["cached"] * 4 + ["done"] * 4
    assert made["train"] == made["evaluate"] == ["done"]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    run(config(tmp_path / "fresh", caption__count=40))
    assert image_bytes(tmp_path / "grown") == image_bytes(tmp_path / "fresh")

    CALLS.clear()
    assert all(set(found) == {"cached"} for found in run(config(tmp_path / "grown")).values())
    assert CALLS == []


def test_a_count_between_two_units_is_rounded_up(tmp_path: Path) -> None:
    assert len(Engine(config(tmp_path, caption__count=21)).units()) == 5


def test_failed_rows_then_retry_equals_a_run_that_never_failed(tmp_path: Path) -> None:
    run(config(tmp_path / "clean"))
    victims = [row["id"] for row in Engine(config(tmp_path / "clean")).survey("caption").markers[1].rows[4:5]]
    FAULTS["synthesize"] = set(victims)
    ill = config(tmp_path / "ill", max_failed=0.2)
    run(ill)
    rows = Engine(ill).survey("synthesize").rows()
    assert rows["failed"] == {"error": 1}
    assert image_bytes(tmp_path / "ill") != image_bytes(tmp_path / "clean")

    FAULTS.clear()
    CALLS.clear()
    made = run(ill, retry_failed=True)
    assert made["synthesize"] == ["cached", "done", "cached", "cached"]
    assert [call for call in CALLS if call[0] == "synthesize"] == [("synthesize", 1)], "only the slice that failed"
    assert made["segment"] == ["cached", "done", "cached", "cached"]
    clean = image_bytes(tmp_path / "clean")
    now = image_bytes(tmp_path / "ill")
    assert {name: now[name] for name in clean} == clean


def test_too_many_failures_leave_the_unit_uncommitted_and_named(tmp_path: Path) -> None:
    fine = config(tmp_path)
    engine = Engine(fine)
    engine.run_unit("caption", 0)
    engine.run_unit("caption", 1)
    FAULTS["synthesize"] = {row["id"] for row in engine.survey("caption").markers[0].rows[:2]}
    report = engine.run_unit("synthesize", 0)
    assert report.state == "failed"
    assert "synthesize unit 0: 2 of 5 rows failed (error)" in report.message and "brush" in report.message
    assert engine.survey("synthesize").units[0] == "failed"
    assert engine.run_unit("synthesize", 1).state == "done"
    assert "not complete" in engine.run_unit("segment", 0).message
    FAULTS.clear()
    assert engine.run_unit("synthesize", 0).state == "done"
    assert engine.survey("synthesize").units == {0: "complete", 1: "complete", 2: "pending", 3: "pending"}


def test_one_setting_of_segment_runs_segment_and_below(tmp_path: Path) -> None:
    run(config(tmp_path))
    made = run(config(tmp_path, segment__min_score=0.33))
    assert made["caption"] == made["synthesize"] == ["cached"] * 4
    assert all(set(made[s]) == {"done"} for s in ("segment", "augment", "encode", "train", "evaluate"))


def test_speed_settings_change_nothing(tmp_path: Path) -> None:
    run(config(tmp_path))
    other = config(tmp_path, synthesize__device="cuda:1", workers=7, threads=3, name="other", max_failed=0.5)
    assert all(found == {"complete"} for found in states(other).values())


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip", "marker", "row"])
def test_damage_costs_exactly_one_unit(tmp_path: Path, damage: str) -> None:
    run(config(tmp_path))
    before = image_bytes(tmp_path)
    survey = Engine(config(tmp_path)).survey("segment")
    payload = tmp_path / survey.path / survey.markers[2].payload
    if damage == "delete":
        payload.unlink()
    elif damage == "truncate":
        payload.write_bytes(payload.read_bytes()[:-700])
    elif damage == "flip":
        data = bytearray(payload.read_bytes())
        data[600] ^= 1
        payload.write_bytes(bytes(data))
    elif damage == "marker":
        (tmp_path / survey.path / "part-00002.parquet").write_bytes(b"PAR1 not really")
    else:  # one bit of what was read as another row, or as none, or not at all
        data = bytearray((tmp_path / survey.path / "part-00002.parquet").read_bytes())
        data[100] ^= 1
        (tmp_path / survey.path / "part-00002.parquet").write_bytes(bytes(data))
        assert Engine(config(tmp_path)).verify("segment") == ["segment unit 2: stale"]
    if damage == "flip":  # its size is right: only reading finds it
        assert Engine(config(tmp_path)).survey("segment").units[2] == "complete"
        problems = Engine(config(tmp_path)).verify("segment")
        assert len(problems) == 1 and "segment unit 2" in problems[0] and "checksum" in problems[0]
    assert Engine(config(tmp_path)).survey("segment").units == {0: "complete", 1: "complete", 2: "stale", 3: "complete"}
    CALLS.clear()
    made = run(config(tmp_path))
    assert made["segment"] == ["cached", "cached", "done", "cached"]
    assert made["augment"] == made["encode"] == ["cached"] * 4, (
        "the bytes came back the same, so nothing below is stale"
    )
    assert made["train"] == ["cached"]
    assert image_bytes(tmp_path) == before


def test_a_damaged_part_met_while_reading_is_named_and_made_anew(tmp_path: Path) -> None:
    run(config(tmp_path))
    survey = Engine(config(tmp_path)).survey("segment")
    payload = tmp_path / survey.path / survey.markers[2].payload
    data = payload.read_bytes()
    payload.write_bytes(data[:-1] + b"x")
    report = Engine(config(tmp_path)).run_unit("augment", 2, force=True)
    assert report.state == "failed" and "segment unit 2" in report.message and "checksum" in report.message
    assert run(config(tmp_path))["segment"] == ["cached", "cached", "done", "cached"]
    assert payload.read_bytes() == data


def test_force_makes_again_and_equal_bytes_keep_what_is_below(tmp_path: Path) -> None:
    run(config(tmp_path))
    assert Engine(config(tmp_path)).run_unit("segment", 1, force=True).state == "done"
    assert all(found == {"complete"} for found in states(config(tmp_path)).values())


def test_a_forced_result_begins_at_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def run_with_a_checkpoint(self, data, workdir, checkpoints, progress):
        found.append(checkpoints.latest())
        (tmp_path / "state").mkdir(exist_ok=True)
        (tmp_path / "state" / "weights").write_text("half way")
        checkpoints.save(3, tmp_path / "state")
        if len(found) == 1:
            raise RuntimeError("killed")
        (workdir / "weights").write_text("whole")

    monkeypatch.setattr(Counter, "run", run_with_a_checkpoint)
    engine = Engine(config(tmp_path / "store"))
    for stage in MAPS:
        for unit in engine.units():
            engine.run_unit(stage, unit)
    assert engine.run_reduce("train").state == "failed"
    assert engine.run_reduce("train").state == "done"
    assert engine.run_reduce("train", force=True).state == "done"
    assert [checkpoint and checkpoint[0] for checkpoint in found] == [None, 3, None]


def test_an_edited_captions_file_flows_down_exactly_as_far_as_it_must(tmp_path: Path) -> None:
    lines = [f"A photo of a mug, on the left on a sandy beach number {i}" for i in range(10)]
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(lines))
    from_file = {"source": "file", "file": str(file), "count": 10}
    base = config(tmp_path / "store").model_dump(exclude_unset=True)
    base["caption"] = from_file
    configuration = type(config(tmp_path)).model_validate({**base, "train": {"model": "none"}})
    run(configuration)
    lines[8] = "A photo of a vase, on the right on a snowy hill"
    file.write_text("\n".join(lines))
    assert Engine(configuration).survey("caption").units == {0: "complete", 1: "stale"}
    made = run(configuration)
    for stage in MAPS:
        assert made[stage] == ["cached", "done"], stage
    assert made["train"] == ["done"]


def test_two_runs_at_once_on_one_store(tmp_path: Path) -> None:
    errors = []

    def work() -> None:
        try:
            run(config(tmp_path / "shared"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    run(config(tmp_path / "alone"))
    assert image_bytes(tmp_path / "shared") == image_bytes(tmp_path / "alone")


def test_a_result_that_another_process_has_made_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slower(Counter):
        def run(self, data, workdir, checkpoints, progress):
            if other:
                assert other.pop().run_reduce("train").state == "done"
            super().run(data, workdir, checkpoints, progress)
            (workdir / "log").write_text(f"{len(CALLS)} calls before")

    run(config(tmp_path, train__seed=1))
    monkeypatch.setitem(STAGES, "train", Slower)
    engine, other = Engine(config(tmp_path)), [Engine(config(tmp_path))]
    CALLS.clear()
    assert engine.run_reduce("train").state == "done" and CALLS == [("train", 0)] * 2
    first = engine.survey("train").result
    assert (tmp_path / first.path / "log").read_text() == "1 calls before"
    assert engine.run_reduce("train", force=True).state == "done"
    second = engine.survey("train").result
    assert second.path != first.path and not (tmp_path / first.path).exists()
    assert engine.verify("train") == []


def test_a_transient_fault_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [ConnectionError("reset by peer"), TimeoutError("slow")]
    real = Painter.process

    def flaky(self, samples):
        if faults:
            raise faults.pop()
        return real(self, samples)

    monkeypatch.setattr(Painter, "process", flaky)
    engine = Engine(config(tmp_path))
    engine.run_unit("caption", 0)
    report = engine.run_unit("synthesize", 0)
    assert report.state == "done" and report.rows == {"ok": 5, "rejected": 0, "failed": 0}


def test_a_full_disk_ends_the_run_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self, samples):
        raise OSError(28, "No space left on device")

    engine = Engine(config(tmp_path))
    engine.run_unit("caption", 0)
    monkeypatch.setattr(Painter, "process", full)
    with pytest.raises(StoreFull, match=r"^synthesize: .*No space left") as told:  # further units would meet it too
        engine.run_unit("synthesize", 0)
    assert "\n" not in str(told.value)
    assert engine.survey("caption").units[0] == "complete"


def test_nothing_that_varies_stands_in_a_part(tmp_path: Path) -> None:
    run(config(tmp_path))
    for name, data in image_bytes(tmp_path).items():
        assert str(tmp_path).encode() not in data, name
    stage = json.loads((tmp_path / Engine(config(tmp_path)).survey("segment").path / "stage.json").read_text())
    assert stage["stage"] == "segment" and "device" not in stage["config"]


def too_large(limit: int, calls: list[int]):
    """A painter whose device holds `limit` samples."""
    real = Painter.process

    def process(self, samples):
        calls.append(len(samples))
        if len(samples) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return real(self, samples)

    return process


def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Engine(config(tmp_path / "whole", unit_size=10))
    engine = Engine(config(tmp_path / "halved", unit_size=10))
    for each in (whole, engine):
        each.run_unit("caption", 0)
    whole.run_unit("synthesize", 0)
    calls: list[int] = []
    monkeypatch.setattr(Painter, "process", too_large(1, calls))
    assert engine.run_unit("synthesize", 0).rows == {"ok": 10, "rejected": 0, "failed": 0}
    assert calls == [4, 2, *[1] * 10], "slices of 4 are halved twice, and no later one is tried whole"
    made = {name: data for name, data in image_bytes(tmp_path / "halved").items() if name.startswith("synthesize")}
    assert made == {
        name: data for name, data in image_bytes(tmp_path / "whole").items() if name.startswith("synthesize")
    }
    (log,) = (tmp_path / "halved" / "synthesize").glob("*/log-00000.jsonl")
    assert json.loads(log.read_text().splitlines()[-1])["out_of_memory"] == [2, 1]


def test_a_batch_that_fails_once_keeps_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults, sizes = [RuntimeError("a device that hiccups")], []
    real = Painter.process

    def once(self, samples):
        sizes.append(len(samples))
        if faults:
            raise faults.pop()
        return real(self, samples)

    monkeypatch.setattr(Painter, "process", once)
    engine = Engine(config(tmp_path))
    engine.run_unit("caption", 0)
    assert engine.run_unit("synthesize", 0).rows["ok"] == 5
    assert sizes == [4, 4, 1], "the whole batch again, not one by one"
    (log,) = (tmp_path / "synthesize").glob("*/log-00000.jsonl")
    assert "one_by_one" not in json.loads(log.read_text())


def test_a_batch_that_fails_only_as_a_whole_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Painter.process

    def whole(self, samples):
        if len(samples) > 1:
            raise RuntimeError("no kernel for this batch")
        return real(self, samples)

    monkeypatch.setattr(Painter, "process", whole)
    engine = Engine(config(tmp_path))
    engine.run_unit("caption", 0)
    assert engine.run_unit("synthesize", 0).rows["ok"] == 5
    (log,) = (tmp_path / "synthesize").glob("*/log-00000.jsonl")
    assert json.loads(log.read_text())["one_by_one"] == ["RuntimeError: no kernel for this batch"]
    assert "a batch of 4 failed, runs one by one: RuntimeError: no kernel" in caplog.text


def test_one_sample_that_is_too_large_ends_the_unit_with_one_line(tmp_path: Path, monkeypatch) -> None:
    engine = Engine(config(tmp_path))
    engine.run_unit("caption", 0)
    monkeypatch.setattr(Painter, "process", too_large(0, []))
    report = engine.run_unit("synthesize", 0)
    assert report.state == "failed"
    assert report.message.startswith("synthesize unit 0: out of memory with a single sample; use smaller pictures")

    def setup(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Painter, "setup", setup)
    bootpig.stages.engine.loaded.release()
    report = engine.run_unit("synthesize", 0)
    assert report.message.startswith("synthesize unit 0: out of memory while loading the models; use smaller ones")
