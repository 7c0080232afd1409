"""gc keeps what a sweep is made of, until the sweep's folder is removed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bootpig.flows.runs.gc import collect, garbage
from bootpig.flows.runs.records import list_runs, new_run, promote
from bootpig.flows.sweep.records import SweepRecord, SweepRunRecord
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.storage.root import Root


def test_runs_of_a_sweep_are_kept_with_what_they_use(config: PipelineConfig) -> None:
    root = Root(config.root)
    records = []
    for number in range(3):
        record = new_run(root, config)
        record.started, record.state = datetime.now(UTC) - timedelta(days=9 - number), "done"
        record.use("encode", f"{number:016x}")
        root.write(f"encode/{number:016x}/part-00000.parquet", b"x")
        record.save(root)
        records.append(record)
    promote(root, records[2])
    record = SweepRecord(name="s", digest="0" * 16, runs=[SweepRunRecord(cell="one", run=records[0].id, state="done")])
    record.save(root)
    found = garbage(root, keep=1)
    assert [run.id for run in found.runs] == [records[1].id]
    record.runs.append(SweepRunRecord(cell="two", run=records[1].id, state="done"))
    record.save(root)  # a sweep that took it up meanwhile
    collect(root, found)
    assert len(list_runs(root)) == 3 and len(root.folders("encode")) == 3

    root.write(f"{record.folder}/sweep.json", b"{")
    with pytest.raises(InputError, match=r"its sweep\.json is not readable"):
        garbage(root, keep=1)
    root.remove(record.folder, recursive=True)
    collect(root, garbage(root, keep=1))
    assert [run.id for run in list_runs(root)] == [records[2].id]
