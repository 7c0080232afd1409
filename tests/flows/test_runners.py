"""Processes, Ray and Dask make the same bytes as threads, and leave nothing behind."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import socket
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bootpig.flows import runners
from bootpig.flows.loading import load_config
from bootpig.flows.runners import Place, Workers, runner_problems
from bootpig.flows.runs.records import list_runs
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.survey import make_stage
from bootpig.storage.root import Root
from tests.flows.processes import Command

TOY = Path(__file__).parents[2] / "configs" / "toy.yaml"
UNITS = 8


def arguments(root: Path, runner: str) -> list[str]:
    settings = {"root": root, "runner": runner, "workers": 2, "threads": 1, "caption.count": 2 * UNITS, "unit_size": 2}
    settings |= {"synthesize.steps": 1, "synthesize.batch_size": 2}
    return ["run", str(TOY), "--until", "synthesize", *(f"--set={name}={value}" for name, value in settings.items())]


def parts(root: Path) -> dict[str, bytes]:
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in sorted(root.rglob("part-*"))}


@pytest.fixture(scope="module")
def by_threads(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("threads")
    run = Command(arguments(folder / "store", "threads"), folder / "log", {"PREFECT_API_URL": prefect_api})
    assert run.wait(300) == 0, run.log.read_text()
    return parts(folder / "store")


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["processes", "ray", "dask"])
def test_killed_and_resumed_other_processes_make_the_same_bytes(
    prefect_api: str, by_threads: dict[str, bytes], tmp_path: Path, runner: str
) -> None:
    store, environment = tmp_path / "store", {"PREFECT_API_URL": prefect_api}
    first = Command(arguments(store, runner), tmp_path / "first", environment)
    first.wait_for(lambda: any(store.glob("caption/*/part-*.parquet")), 240)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    assert first.left() == [], "left behind by a killed run"

    second = Command(arguments(store, runner), tmp_path / "second", environment)
    assert second.wait(300) == 0, second.log.read_text()
    assert second.left() == [], "left behind by a run that ended well"
    assert parts(store) == by_threads and len(by_threads) == 4 * UNITS

    loads: dict[int, set[int]] = defaultdict(set)
    for log in store.glob("synthesize/*/log-*.jsonl"):
        record = json.loads(log.read_text().splitlines()[-1])
        loads[record["process"]].add(record["loads"])
    assert second.process.pid not in loads
    assert 1 <= len(loads) <= 2, "two workers, one of which may have been slow to start"
    assert all(len(counts) == 1 for counts in loads.values()), "each loads the models once"


def workers(run: Command) -> list[psutil.Process]:
    """The worker processes of a run."""
    found = []
    for child in psutil.Process(run.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    return found


@pytest.mark.slow
def test_a_killed_worker_process_costs_no_units(prefect_api: str, by_threads: dict[str, bytes], tmp_path: Path) -> None:
    store, environment = tmp_path / "store", {"PREFECT_API_URL": prefect_api}
    first = Command(arguments(store, "processes"), tmp_path / "first", environment)
    first.wait_for(lambda: any(store.glob("synthesize/*/part-*.parquet")), 240)
    workers(first)[0].kill()
    assert first.wait(300) == 0, first.log.read_text()
    said = first.log.read_text()
    assert "Traceback" not in said and "a worker process died" in said
    assert first.left() == []
    assert parts(store) == by_threads


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_the_workers_in_order(prefect_api: str, tmp_path: Path) -> None:
    """A terminal sends it to all processes of the run at once."""
    store = tmp_path / "store"
    slow = [*arguments(store, "processes"), "--set=synthesize.steps=50"]
    run = Command(slow, tmp_path / "log", {"PREFECT_API_URL": prefect_api})
    run.wait_for(lambda: "caption  " in run.log.read_text() and len(workers(run)) == 2, 240)
    for process in (psutil.Process(run.process.pid), *workers(run)):
        process.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    assert run.left(5) == []
    said = run.log.read_text()
    assert "Traceback" not in said and "Error" not in said, said
    (record,) = list_runs(Root(str(store)))
    assert record.state == "interrupted"


@pytest.mark.parametrize(
    ("stage", "fields", "units", "place"),
    [
        ("synthesize", {}, 9, Place("processes", 3)),
        ("segment", {"workers": 2}, 9, Place("processes", 2)),
        ("encode", {"workers": 1}, 9, Place("threads", 1)),
        ("synthesize", {}, 1, Place("threads", 1)),
        ("synthesize", {"synthesize.device": "cuda:1"}, 9, Place("threads", 1)),
        ("synthesize", {"synthesize.device": "cpu"}, 9, Place("threads", 1)),
        ("augment", {}, 9, Place("threads", 1)),
        ("augment", {"workers": 4}, 9, Place("threads", 4)),
        ("synthesize", {"runner": "threads"}, 9, Place("threads", 1)),
        ("augment", {"runner": "processes"}, 9, Place("processes", 3)),
        ("augment", {"runner": "processes", "workers": 8}, 1, Place("processes", 8)),
        ("caption", {"runner": "ray"}, 9, Place("ray", 3)),
        ("synthesize", {"root": "memory://x"}, 9, Place("threads", 1)),
    ],
)
def test_a_stage_that_can_use_several_devices_has_a_process_for_each(
    monkeypatch: pytest.MonkeyPatch, stage: str, fields: dict[str, object], units: int, place: Place
) -> None:
    config = configured(str(fields.pop("root", "./data")), **fields)
    three: dict[str, int | None] = {"gpu-0": 0, "gpu-1": 1, "gpu-2": 2}
    of = {"auto": three, "cuda": three, "cuda:1": {"gpu-1": 1}, "cpu": {}}
    monkeypatch.setattr(runners, "devices", of.__getitem__)
    assert Workers(config).place(make_stage(config, stage), units) == place
    monkeypatch.setattr(runners, "devices", lambda name: {})
    assert config.workers != "auto" or Workers(config).place(make_stage(config, stage), units).workers == 1


@pytest.fixture
def listener() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def configured(root: str, **fields: object) -> PipelineConfig:
    return load_config(TOY, [f"root={root}", *(f"{name}={json.dumps(value)}" for name, value in fields.items())])


@pytest.mark.parametrize(("runner", "package"), [("ray", "prefect_ray"), ("dask", "distributed")])
def test_a_missing_package_is_one_line_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runner: str, package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    (line,) = runner_problems(configured(str(tmp_path), runner=runner))
    assert line == f"runner: '{runner}' → its packages are not installed; pip install 'bootpig[{runner}]'"


def test_a_store_in_memory_needs_the_threads_runner() -> None:
    assert runner_problems(configured("memory://x", runner="threads")) == []
    (line,) = runner_problems(configured("memory://x", runner="processes"))
    assert line.startswith("root: 'memory://x' → other processes cannot read it")


def test_a_cluster_elsewhere_needs_a_store_and_an_api_that_it_reaches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listener: str
) -> None:
    host = socket.gethostname()
    monkeypatch.setattr(runners, "is_loopback", lambda name: name in ("127.0.0.1", "localhost"))
    monkeypatch.setattr(socket, "create_connection", lambda place, timeout: socket.socket())
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    config = configured(str(tmp_path), runner="dask", runner_address=f"tcp://{host}:8786")
    disk, api = runner_problems(config)
    assert disk.startswith(f"root: '{tmp_path}' → the workers of tcp://{host}:8786 cannot read a folder")
    assert api.startswith("PREFECT_API_URL: http://127.0.0.1:4200/api → ") and "loopback" in api
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example:4200/api")
    assert runner_problems(config.model_copy(update={"root": "s3://bucket/x"})) == []


def test_an_address_where_nothing_listens_is_a_problem(tmp_path: Path, listener: str) -> None:
    config = configured(str(tmp_path), runner="ray", runner_address=listener)
    assert runner_problems(config) == []
    with socket.create_server(("127.0.0.1", 0)) as server:
        gone = f"127.0.0.1:{server.getsockname()[1]}"
    (line,) = runner_problems(config.model_copy(update={"runner_address": gone}))
    assert line.startswith(f"runner_address: '{gone}' → no cluster answers there")
    (line,) = runner_problems(config.model_copy(update={"runner_address": "head"}))
    assert "must contain host and port" in line


def test_an_address_without_a_cluster_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="runner_address: 'head:6379' has no effect while runner is auto"):
        configured(str(tmp_path), runner_address="head:6379")


def test_the_runner_changes_nothing_that_is_hashed(tmp_path: Path) -> None:
    plain = configured(str(tmp_path))
    assert plain.hashed() == configured(str(tmp_path), runner="ray", runner_address="auto").hashed()
