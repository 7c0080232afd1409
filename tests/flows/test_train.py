"""`bootpig train` under torchrun: two processes with a store on S3 train the same model as one on a disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bootpig.flows.cli.main import main
from bootpig.flows.loading import dump_config, load_config
from bootpig.flows.runs.records import list_runs
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.survey import make_stage
from bootpig.stages.registry import STAGES
from bootpig.stages.train import dataset
from bootpig.storage.folders import fetch_folder, read_manifest
from bootpig.storage.parts import Parts
from bootpig.storage.root import Root
from tests.servers.s3 import SECRET, Faults, s3_bucket
from tests.stages.train.training_data import save_base, write_units

PROJECT = Path(__file__).parents[2]
COUNTS = (5, 4, 3)

TELLING = """
import json, os, sys
from pathlib import Path
from bootpig.stages.train import dataset
from bootpig.flows.cli.main import entry

batch, folder = dataset.ShardLoader.batch, Path(sys.argv[1])

def told(self, step):
    made = batch(self, step)
    with open(folder / f"ids-{os.environ['WORLD_SIZE']}-{os.environ['RANK']}", "a") as stream:
        print(json.dumps([step, made.ids]), file=stream)
    return made

dataset.ShardLoader.batch = told
sys.argv = ["bootpig", *sys.argv[2:]]
entry()
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[Faults]:
    with s3_bucket() as faults:
        yield faults


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def recipe(settings: list[str], base: Path) -> list[str]:
    fields = {"caption.count": 15, "unit_size": 5, "encode.model": base, "train.model": base, "train.steps": 6}
    fields |= {"train.global_batch_size": 4, "train.per_device_batch_size": 1, "train.learning_rate_reference": 1e-3}
    fields |= {"train.learning_rate_base": 1e-3, "train.warmup_steps": 0, "train.mixed_precision": "'no'"}
    fields |= {"train.checkpoint_every": 2, "train.log_every": 2, "train.sample_every": 0, "train.drop_reference": 0.5}
    return [*settings, *(f"{name}={value}" for name, value in fields.items())]


def encoded(config: PipelineConfig, counts: tuple[int, ...], scratch: Path) -> Root:
    """A store with complete map stages; only the data that train reads is real."""
    engine = Engine(config)
    shards = write_units(scratch, counts)
    above: dict[int, str] = {}
    for name in engine.graph.maps():
        stage = make_stage(config, name)
        parts = Parts(engine.root, name, engine.survey(name).fingerprint)
        for unit, count in enumerate(counts):
            rows = [{"id": f"{unit:03d}-{i:03d}", "unit": unit, "status": "ok", "reason": ""} for i in range(count)]
            before = above.get(unit) or stage.source_digest(unit, config.indices(unit))
            above[unit] = parts.commit(unit, rows, STAGES[name].columns, shards.shard(unit), before).digest
    return engine.root


def told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `TELLING` does in other processes, in this one."""
    batch = dataset.ShardLoader.batch

    def telling(self: dataset.ShardLoader, step: int) -> Any:
        made = batch(self, step)
        with open(folder / "ids-1-0", "a") as stream:
            print(json.dumps([step, made.ids]), file=stream)
        return made

    monkeypatch.setattr(dataset.ShardLoader, "batch", telling)
    monkeypatch.setenv("BOOTPIG_CACHE", str(folder / "cache"))


def torchrun(ranks: int, folder: Path, config: PipelineConfig) -> str:
    """What `bootpig train` in so many processes says."""
    (folder / "program.py").write_text(TELLING)
    file = folder / f"config-{ranks}.yaml"
    file.write_text(dump_config(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*command, str(folder / "program.py"), str(folder), "train", str(file)],
        env={**os.environ, "PYTHONPATH": str(PROJECT), "BOOTPIG_CACHE": str(folder / "cache")},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def visits(folder: Path, ranks: int) -> list[list[list[str]]]:
    """Sample ids by step and rank."""
    told = []
    for rank in range(ranks):
        lines = [json.loads(line) for line in (folder / f"ids-{ranks}-{rank}").read_text().splitlines()]
        told.append([ids for _, ids in sorted(lines)])
    return [list(step) for step in zip(*told, strict=True)]


@pytest.mark.slow
def test_two_processes_over_s3_train_as_one_on_a_disk(
    recipe: list[str], tmp_path: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    toy = PROJECT / "configs" / "toy.yaml"
    alone = load_config(toy, recipe)
    together = alone.model_copy(update={"root": "s3://data/together"})
    models = []
    for ranks, config in ((1, alone), (2, together)):
        root = encoded(config, COUNTS, tmp_path / f"units-{ranks}")
        if ranks == 1:
            told(tmp_path, monkeypatch)
            (tmp_path / "alone.yaml").write_text(dump_config(config))
            assert main(["train", str(tmp_path / "alone.yaml")]) == 0
            said = capfd.readouterr().out
        else:
            s3.rate = 0.1
            said = torchrun(ranks, tmp_path, config)
            s3.rate = 0.0
        assert said.count("train finished in") == 1 and SECRET not in said
        survey = Engine(config).survey("train")
        assert survey.result is not None
        (record,) = list_runs(root)  # so that gc spares what a training without Prefect uses
        assert (record.state, record.uses["train"]) == ("done", [survey.fingerprint])
        assert record.uses["encode"] == [Engine(config).survey("encode").fingerprint]
        assert root.folders(survey.path) == ["checkpoint-00002", "checkpoint-00004", "result"]
        folder = fetch_folder(root, survey.result, tmp_path / f"model-{ranks}")
        models.append({path.name: load_file(path) for path in (folder / "model").rglob("*.safetensors")})
    one, two = models
    assert one.keys() == two.keys() != set()
    for name, tensors in one.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, two[name][key], rtol=0, atol=1e-5)
    assert any(call.fault for call in s3.calls)
    assert len(list((tmp_path / "cache").iterdir())) == len(COUNTS)

    # two passes over the twelve samples: each is seen once in either, by one of the two
    steps = visits(tmp_path, 2)
    assert [sorted([*first, *second]) for first, second in steps] == [sorted(only) for (only,) in visits(tmp_path, 1)]
    for epoch in (steps[:3], steps[3:]):
        seen = [name for ranks in epoch for ids in ranks for name in ids]
        assert len(seen) == len(set(seen)) == sum(COUNTS)


@pytest.mark.slow
def test_two_that_train_the_same_at_once_leave_one_whole_model(recipe: list[str], tmp_path: Path) -> None:
    config = load_config(PROJECT / "configs" / "toy.yaml", recipe)
    root = encoded(config, COUNTS, tmp_path / "units")
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    command = [sys.executable, "-c", "from bootpig.flows.cli.main import entry; entry()", "train", str(file)]
    both = [subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    engine = Engine(config)
    result = engine.survey("train").result
    assert result is not None and engine.verify("train") == []
    assert root.address(result.path, "model") in "".join(said)
    assert read_manifest(root, f"{engine.survey('train').path}/checkpoint-00004") is not None
