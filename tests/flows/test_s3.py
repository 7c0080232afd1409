"""Complete runs on an S3 store where a tenth of the calls fail or are slow, compared with runs on a disk."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from bootpig.flows.cli.main import main
from bootpig.flows.loading import dump_config
from bootpig.flows.runs.records import StageRecord, list_runs, new_run
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.checkpoints import StoredCheckpoints
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.live import copied
from bootpig.stages.engine.survey import StageSurvey
from bootpig.stages.train.config import TrainConfig
from bootpig.stages.train.curves import newest, read_log
from bootpig.stages.train.stage import Train
from bootpig.storage.folders import publish_folder
from bootpig.storage.root import Root
from tests.flows.runs.test_gc import mark, version
from tests.servers.s3 import SECRET, Faults, s3_bucket
from tests.stages.doubles import config, doubles
from tests.stages.train.training_data import save_base, write_units

__all__ = ["doubles"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def s3() -> Iterator[Faults]:
    with s3_bucket() as faults:
        yield faults


def stored(url: str) -> dict[str, bytes]:
    """Path → content of every file in a store."""
    fs, path = fsspec.url_to_fs(url)
    return {name.removeprefix(path).lstrip("/"): fs.cat_file(name) for name in fs.find(path)}


def of_identity(files: dict[str, bytes]) -> dict[str, bytes]:
    """Everything that must be the same in equal runs: the parts and the results of the doubles."""
    return {name: data for name, data in files.items() if "/part-" in name or "/result/" in name}


def prefect_files() -> list[Path]:
    """The database files of the test server."""
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    file = Path(str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition(":///")[2])
    return sorted(file.parent.glob(f"{file.name}*"))


@pytest.mark.usefixtures("doubles")
def test_a_run_on_a_faulty_store_equals_a_run_on_a_disk(
    prefect_api: str, s3: Faults, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from bootpig.flows.pipeline import bootstrap

    on_disk = config(tmp_path / "store", workers=2, caption__count=10)
    on_s3 = PipelineConfig.model_validate({**on_disk.model_dump(exclude_unset=True), "root": "s3://data/run"})
    assert bootstrap(on_disk, return_state=True).is_completed()
    s3.rate = 0.1
    assert bootstrap(on_s3, return_state=True).is_completed()
    assert sum(bool(call.fault) for call in s3.calls) > 10
    s3.rate = 0.0
    files = stored(on_s3.root)
    assert of_identity(files) == of_identity(stored(on_disk.root)) != {}
    (record,) = list_runs(Root(on_s3.root))
    assert record.state == "done" and f"runs/{record.id}/report.html" in files

    s3.calls = []
    assert all(set(survey.units.values()) == {"complete"} for survey in Engine(on_s3).survey_all().values())
    assert sum(call.lists for call in s3.calls) == 7, "one listing a stage"
    units, stages, results = 2, 5, 2
    assert len(s3.calls) == 7 + units * stages + results, "each marker and each manifest once"

    yml = tmp_path / "run.yaml"
    yml.write_text(dump_config(on_s3))
    for command in (["status", str(yml)], ["verify", str(yml)], ["runs", "--root", on_s3.root]):
        assert main(command) == 0
    out = capfd.readouterr()
    assert record.id in out.out and "s3://data/run" in out.out
    shown = (out.out + out.err).encode()
    database = b"".join(file.read_bytes() for file in prefect_files())
    for place, data in {**files, "output": shown, "Prefect": database}.items():
        assert SECRET.encode() not in data, place
    assert database


def test_gc_on_a_faulty_store_removes_exactly_the_garbage(
    s3: Faults, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = config(tmp_path).model_copy(update={"root": "s3://data/versions"})
    root = Root(small.root)
    goes = version(root, small, 5, 1, 2)
    for number in range(20):
        root.write(f"encode/{mark(1)}/checkpoint-{number:05d}/weights", b"w")
    kept = [version(root, small, 3, 2, 3), version(root, small, 2, 4)]
    working = version(root, small, 4, 5, promoted=False)
    working.state = "running"
    working.save(root)
    root.write(f"{working.folder}/alive", datetime.now(UTC).isoformat().encode())
    before = stored(small.root)
    gone = (f"encode/{mark(1)}/", f"{goes.folder}/")
    s3.rate, s3.calls = 0.1, []
    assert main(["gc", "--root", small.root, "--keep", "2"]) == 0
    assert main(["gc", "--root", small.root, "--keep", "2"]) == 0
    s3.rate = 0.0
    assert any(call.fault for call in s3.calls)
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("removed")]
    assert ["1 runs, 1 folders" in said[0], "0 runs, 0 folders" in said[1]] == [True, True]
    assert stored(small.root) == {name: data for name, data in before.items() if not name.startswith(gone)}
    assert {record.id for record in list_runs(root)} == {working.id, *(record.id for record in kept)}


@pytest.mark.usefixtures("doubles")
def test_what_is_wrong_with_the_store_is_one_line_and_exit_2(
    s3: Faults, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    yml = tmp_path / "run.yaml"
    yml.write_text(dump_config(config(tmp_path).model_copy(update={"root": "s3://nowhere/run"})))
    for command in ("run", "status"):
        assert main([command, str(yml)]) == 2
        assert capfd.readouterr().err == (
            "root: 's3://nowhere/run' → there is no such bucket; create it or correct the name\n"
        )
    assert main(["runs", "--root", "s3://me:hunter2@data/run"]) == 2
    assert "hunter2" not in capfd.readouterr().err


def test_training_goes_on_from_a_checkpoint_on_s3_and_is_used_from_there(s3: Faults, tmp_path: Path) -> None:
    recipe = TrainConfig(
        model=str(save_base(tmp_path / "base")),
        steps=6,
        global_batch_size=4,
        per_device_batch_size=4,
        learning_rate_reference=1e-3,
        learning_rate_base=1e-3,
        checkpoint_every=2,
        log_every=1,
        mixed_precision="no",
    )
    data = write_units(tmp_path / "units", (5, 4))

    class Lost(BaseException):
        """Simulates a lost machine: no cleanup code runs."""

    def train(root: Root, name: str, lost_at: int | None = None) -> dict[str, dict[str, torch.Tensor]]:
        def progress(done: int, total: int, text: str) -> None:
            seen.append(done)
            if done == lost_at:
                raise Lost

        for folder in ("result", "scratch"):
            (tmp_path / name / folder).mkdir(parents=True)
        checkpoints = StoredCheckpoints(root, "train/f00d", tmp_path / name / "scratch")
        result = tmp_path / name / "result"
        with copied(root, "train/f00d", result / "log.jsonl"):
            Train(recipe, 0).run(data, result, checkpoints, progress)
        return {file.name: load_file(file) for file in (tmp_path / name / "result" / "model").rglob("*.safetensors")}

    seen: list[int] = []
    whole = train(Root(str(tmp_path / "disk")), "whole")
    s3.rate = 0.1
    ill = Root("s3://data/trained")
    with pytest.raises(Lost):
        train(ill, "lost", lost_at=5)
    running = StageSurvey("train", "f00d", "train/f00d", {}, {0: "pending"})
    assert newest(read_log(ill, running, 2000))["step"] == 5, "what is newer than the checkpoint is in the store too"
    seen.clear()
    resumed = train(ill, "resumed")
    assert read_log(ill, running) == []
    s3.rate = 0.0
    assert seen[0] == 4 and seen[-1] == 6
    assert resumed.keys() == whole.keys() != set()
    assert all(torch.equal(resumed[name][key], tensor) for name in whole for key, tensor in whole[name].items())
    assert ill.folders("train/f00d") == ["checkpoint-00002", "checkpoint-00004"]

    publish_folder(ill, "train/f00d/result", tmp_path / "resumed" / "result")
    record = new_run(ill, config(Path("anywhere")))
    record.stages["train"] = StageRecord(fingerprint="f00d")
    record.save(ill)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "ref.png")
    asked = ["generate", record.id, "--root", ill.url, "--ref", str(tmp_path / "ref.png"), "--steps", "2"]
    asked += ["--prompt", "A photo of a mug, on the table", "--out", str(tmp_path / "out.png")]
    assert main(asked) == 0
    assert Image.open(tmp_path / "out.png").size[0] > 0
