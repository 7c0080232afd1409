"""Run records: saving, reading, comparing and promoting them."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest
import yaml

from bootpig.flows.runs.records import (
    LOST_AFTER,
    Process,
    StageRecord,
    alive,
    compare,
    is_alive,
    latest_run,
    list_runs,
    new_run,
    promote,
    read_config,
    read_run,
    run_of_flow,
)
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.storage.root import Root


@pytest.fixture
def root(config: PipelineConfig) -> Root:
    return Root(config.root)


def test_a_record_holds_config_and_units(root: Root, config: PipelineConfig) -> None:
    record = new_run(root, config)
    assert read_run(root, record.id) == record
    assert record.units == [0, 1, 2, 3]
    assert read_config(root, record) == config


def test_the_store_may_have_moved(root: Root, config: PipelineConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    record = new_run(root, config)
    moved = tmp_path_factory.mktemp("elsewhere") / "store"
    (root.local or moved).rename(moved)
    assert read_config(Root(str(moved)), record).root == str(moved)


def test_latest_moves_only_to_what_is_done(root: Root, config: PipelineConfig) -> None:
    record = new_run(root, config)
    with pytest.raises(InputError, match="no run"):
        latest_run(root)
    with pytest.raises(InputError, match="is running"):
        promote(root, record)
    record.state = "done"
    record.save(root)
    promote(root, record)
    assert read_run(root, "latest").id == record.id


def test_a_retried_flow_run_finds_its_record(root: Root, config: PipelineConfig) -> None:
    when = datetime(2026, 3, 1, 2, tzinfo=UTC)
    record = new_run(root, config, flow_run="0198-aaaa-bbbbcccc", scheduled=when)
    assert record.id.startswith("20260301-020000-toy-")
    assert run_of_flow(root, "0198-aaaa-bbbbcccc") == record
    assert run_of_flow(root, "0199-dddd-bbbbcccc") is None


def test_compare_names_what_differs(root: Root, config: PipelineConfig) -> None:
    a = new_run(root, config, scheduled=datetime(2026, 1, 1, tzinfo=UTC))
    b = new_run(root, config.model_copy(update={"seed": 9}), scheduled=datetime(2026, 1, 2, tzinfo=UTC))
    for record, value in ((a, 0.5), (b, 0.6)):
        metrics = {"methods": {"bootpig": {"dino": {"mean": value, "ci95": [0, 1]}}}}
        root.write(f"{record.folder}/metrics.json", json.dumps(metrics).encode())
    assert compare(root, a, b) == [("seed", "0", "9"), ("metrics bootpig.dino", "0.5000", "0.6000")]
    assert [record.id for record in list_runs(root)] == [a.id, b.id]


@pytest.mark.parametrize("name", ["../../etc", "nope", ""])
def test_no_such_run(root: Root, name: str) -> None:
    with pytest.raises(InputError, match="run: "):
        read_run(root, name)


def test_a_damaged_record_is_one_line(root: Root, config: PipelineConfig) -> None:
    record = new_run(root, config)
    root.write(f"{record.folder}/run.json", b"{half")
    with pytest.raises(InputError, match="not readable"):
        read_run(root, record.id)


def test_a_run_with_a_heartbeat_is_alive(root: Root, config: PipelineConfig) -> None:
    record = new_run(root, config)
    with alive(root, record):
        assert is_alive(root, record)
    long_ago = datetime.now(UTC) - 2 * LOST_AFTER
    root.write(f"{record.folder}/alive", long_ago.isoformat().encode())
    assert not is_alive(root, record)
    root.write(f"{record.folder}/alive", datetime.now(UTC).isoformat().encode())
    record.state = "done"
    assert not is_alive(root, record)


def test_a_run_whose_process_is_gone_is_known_at_once(root: Root, config: PipelineConfig) -> None:
    record = new_run(root, config)
    root.write(f"{record.folder}/alive", datetime.now(UTC).isoformat().encode())
    program = "from bootpig.flows.runs.records import Process; print(Process.current().model_dump_json()); input()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    record.process = Process.model_validate_json(child.stdout.readline())
    assert is_alive(root, record)
    child.kill()
    child.wait()
    assert not is_alive(root, record)


def test_a_process_on_another_host_is_judged_by_its_heartbeat(root: Root, config: PipelineConfig) -> None:
    record = new_run(root, config)
    root.write(f"{record.folder}/alive", datetime.now(UTC).isoformat().encode())
    here = Process.current()
    for gone, change in (
        (False, {}),
        (False, {"host": "another", "pid": 2**30}),
        (False, {"namespace": "pid:[1]", "pid": 2**30}),
        (True, {"boot": "an earlier one"}),
        (True, {"started": "1"}),  # another process has its number now
    ):
        record.process = here.model_copy(update=change)
        assert is_alive(root, record) != gone, change
    record.process = None  # of an earlier release
    assert is_alive(root, record)


def test_a_record_holds_every_setting(root: Root, config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    record = new_run(root, config)
    monkeypatch.setattr(PipelineConfig.model_fields["min_yield"], "default", 0.123)
    PipelineConfig.model_rebuild(force=True)
    try:
        assert PipelineConfig.model_validate(config.model_dump(exclude_unset=True)).min_yield == 0.123
        assert read_config(root, record) == config
    finally:
        monkeypatch.undo()
        PipelineConfig.model_rebuild(force=True)


def test_a_record_of_an_earlier_release_still_loads(root: Root, config: PipelineConfig) -> None:
    record = new_run(root, config)
    few = yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True))
    root.write(f"{record.folder}/config.yaml", few.encode())
    facts = json.loads(root.read(f"{record.folder}/run.json"))
    del facts["process"]
    root.write(f"{record.folder}/run.json", json.dumps(facts).encode())
    assert read_config(root, read_run(root, record.id)) == config


def test_compare_counts_subjects(root: Root, config: PipelineConfig) -> None:
    records = []
    for seed in (0, 9):
        engine = Engine(config.model_copy(update={"seed": seed}))
        record = new_run(root, engine.config)
        for unit in record.units:
            engine.run_unit("caption", unit)
        record.stages["caption"] = StageRecord(fingerprint=engine.survey("caption").fingerprint)
        records.append(record)
    subjects = {what: (a, b) for what, a, b in compare(root, *records) if what.startswith("subject ")}
    assert subjects and list(subjects) == sorted(subjects)
    for side in (0, 1):
        counts = [0 if pair[side] == "–" else int(pair[side]) for pair in subjects.values()]
        assert 0 < sum(counts) <= 40
