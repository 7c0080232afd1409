"""gc: what is removed and, above all, what is kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bootpig.flows.cli.main import main
from bootpig.flows.runs.gc import collect, garbage
from bootpig.flows.runs.records import RunRecord, list_runs, new_run, promote
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.storage.root import Root

NOW = datetime.now(UTC)


@pytest.fixture
def root(config: PipelineConfig) -> Root:
    return Root(config.root)


def mark(number: int) -> str:
    return f"{number:016x}"


def version(root: Root, config: PipelineConfig, day: int, *fingerprints: int, promoted: bool = True) -> RunRecord:
    """A run from `day` days ago that wrote one file to each `encode/<fingerprint>`, and a result."""
    record = new_run(root, config, scheduled=NOW - timedelta(days=day))
    record.started = NOW - timedelta(days=day)
    record.state = "done"
    for number in fingerprints:
        record.use("encode", mark(number))
        root.write(f"encode/{mark(number)}/part-00000.parquet", b"x" * 10)
        root.write(f"encode/{mark(number)}/result/manifest.json", b"{}")
    record.save(root)
    if promoted:
        promote(root, record)
    return record


def there(root: Root) -> set[int]:
    return {int(name, 16) for name in root.folders("encode")}


def test_the_last_versions_are_kept_with_everything_they_use(root: Root, config: PipelineConfig) -> None:
    old = version(root, config, 5, 1, 2)
    failed_then = version(root, config, 4, 3, promoted=False)
    kept = [version(root, config, 3, 2, 4), version(root, config, 2, 5)]
    failed_since = version(root, config, 1, 6, promoted=False)
    found = garbage(root, keep=2)
    assert [record.id for record in found.runs] == [old.id, failed_then.id]
    assert found.folders == [f"encode/{mark(1)}", f"encode/{mark(3)}"]
    assert there(root) == {1, 2, 3, 4, 5, 6}  # looking removes nothing
    collect(root, found)
    assert there(root) == {2, 4, 5, 6}
    assert {record.id for record in list_runs(root)} == {*(record.id for record in kept), failed_since.id}
    assert garbage(root, keep=2).folders == []


def test_promoting_an_older_version_makes_it_the_last(root: Root, config: PipelineConfig) -> None:
    first, second, third = (version(root, config, 3 - day, day) for day in range(3))
    promote(root, first)
    found = garbage(root, keep=2)
    assert [record.id for record in found.kept] == [first.id, third.id]
    assert [record.id for record in found.runs] == [second.id]


def test_fewer_versions_than_asked_for_remove_nothing(root: Root, config: PipelineConfig) -> None:
    assert garbage(root).kept == []
    version(root, config, 9, 1, promoted=False)
    version(root, config, 3, 2)
    assert garbage(root, keep=2).runs == []
    assert garbage(root, keep=2).folders == []


def test_live_runs_and_folders_named_in_settings_are_kept(root: Root, config: PipelineConfig) -> None:
    working = version(root, config, 9, 1)
    working.state = "running"
    working.save(root)
    root.write(f"{working.folder}/alive", datetime.now(UTC).isoformat().encode())
    killed = version(root, config, 8, 2, promoted=False)
    killed.state = "running"
    killed.save(root)
    named = version(root, config, 7, 3)
    last = version(root, config, 1, 4)
    text = root.read(f"{last.folder}/config.yaml") + f"# train.init_from: …/encode/{mark(3)}/result/model".encode()
    root.write(f"{last.folder}/config.yaml", text)
    found = garbage(root, keep=1)
    assert {record.id for record in found.runs} == {killed.id, named.id}
    assert found.folders == [f"encode/{mark(2)}"]


def test_what_a_newly_started_run_needs_is_kept(root: Root, config: PipelineConfig) -> None:
    repaired, old = version(root, config, 9, 1), version(root, config, 8, 2, 3)
    version(root, config, 1, 4)
    found = garbage(root, keep=1)
    assert [record.id for record in found.runs] == [repaired.id, old.id]
    begun = new_run(root, config)
    begun.use("encode", mark(2))
    begun.save(root)
    repaired.state = "running"
    repaired.save(root)
    root.write(f"{repaired.folder}/alive", datetime.now(UTC).isoformat().encode())
    collect(root, found)
    assert there(root) == {1, 2, 4}
    assert old.id not in {record.id for record in list_runs(root)} >= {repaired.id, begun.id}


def test_a_record_cannot_name_other_folders(root: Root, config: PipelineConfig, tmp_path: Path) -> None:
    old = version(root, config, 5)
    old.uses = {"encode": ["../../precious"], "../..": [mark(1)]}
    old.save(root)
    (tmp_path / "precious").mkdir()
    version(root, config, 1)
    assert garbage(root, keep=1).folders == []


def test_an_unreadable_record_stops_it(root: Root, config: PipelineConfig) -> None:
    record = version(root, config, 5, 1)
    version(root, config, 1, 2)
    root.write(f"{record.folder}/run.json", b"{half")
    with pytest.raises(InputError, match="not readable"):
        garbage(root, keep=1)


def test_the_command(root: Root, config: PipelineConfig, capsys: pytest.CaptureFixture[str]) -> None:
    version(root, config, 5, 1)
    version(root, config, 1, 2)
    assert main(["gc", "--root", config.root, "--keep", "0"]) == 2
    assert capsys.readouterr().err.startswith("keep: 0 → must be 1 or more")
    assert main(["gc", "--root", config.root, "--keep", "1", "--dry-run"]) == 0
    assert "would remove: 1 runs, 1 folders" in capsys.readouterr().out
    assert there(root) == {1, 2}
    assert main(["gc", "--root", config.root, "--keep", "1"]) == 0
    assert "removed: 1 runs, 1 folders" in capsys.readouterr().out
    assert there(root) == {2}


def test_replaced_payloads_are_removed(root: Root, config: PipelineConfig, capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(config)
    record = version(root, config, 1)
    for unit in record.units:
        engine.run_unit("caption", unit)
    folder = engine.survey("caption").path
    made = set(root.names(folder))
    root.write(f"{folder}/part-00000-01234567.tar", b"x" * 2_000_000)
    working = new_run(root, config)
    root.write(f"{working.folder}/alive", datetime.now(UTC).isoformat().encode())
    assert main(["gc", "--root", config.root]) == 0
    assert "part-00000-01234567.tar" in root.names(folder), "a run is at work"
    working.state = "done"
    working.save(root)
    for options, left in ((["--dry-run"], {"part-00000-01234567.tar"}), ([], set())):
        assert main(["gc", "--root", config.root, *options]) == 0
        assert "1 payloads replaced by newer ones  2.0 MB" in capsys.readouterr().out
        assert set(root.names(folder)) == made | left
