"""A finished data set of small stages, as a store with a run's record."""

from __future__ import annotations

from pathlib import Path

from bootpig.flows.runs.records import RunRecord, StageRecord, new_run
from bootpig.stages.engine.engine import Engine
from bootpig.stages.export.records import DataSet
from bootpig.stages.export.run import Options, export, open_target
from bootpig.stages.export.splits import Splits
from bootpig.stages.export.target import Target
from tests.stages.doubles import config

SHARD_BYTES = 60_000
OPTIONS = {
    name: Options(name, Splits((("validation", 0.3),)), SHARD_BYTES) for name in ("parquet", "webdataset", "folder")
}


def finished(root: Path, count: int = 30, unit_size: int = 10) -> tuple[Engine, RunRecord]:
    """Make the map stages with the doubles, and a record of the run."""
    engine = Engine(config(root, caption__count=count, unit_size=unit_size))
    for stage in engine.graph.maps():
        for unit in engine.units():
            assert engine.run_unit(stage, unit).state == "done"
    record = new_run(engine.root, engine.config)
    for name, survey in engine.survey_all(engine.graph.maps()).items():
        record.stages[name] = StageRecord(fingerprint=survey.fingerprint)
    record.state = "done"
    record.save(engine.root)
    return engine, record


def data_set(engine: Engine, record: RunRecord) -> DataSet:
    fingerprints = {name: done.fingerprint for name, done in record.stages.items()}
    return DataSet(engine.root, engine.config, record.id, record.units, fingerprints)


def exported(data: DataSet, url: str | Path, format: str) -> Target:
    target = open_target(data, str(url), OPTIONS[format])
    export(data, target, OPTIONS[format], lambda done, total, text: None)
    return target


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
