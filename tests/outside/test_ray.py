"""A Ray head that runs on the machine, or has left its file behind, is nobody's business unless it is named."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootpig.flows.loading import load_config, shipped_configs
from bootpig.flows.runners import runner_problems

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
    pytest.mark.xdist_group("ray"),
]

PROGRAM = """
import sys
from bootpig.flows.loading import load_config, shipped_configs
from bootpig.flows.runners import Place, Workers
sets = ["runner=ray", "workers=1", f"root={sys.argv[1]}", *sys.argv[2:]]
with Workers(load_config(shipped_configs()["toy"], sets)) as workers:
    workers.task_runner(Place("ray", 1))
    import ray
    print(ray.get_runtime_context().gcs_address)
"""

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@pytest.fixture(scope="module", autouse=True)
def folder() -> Iterator[Path]:
    """Where Ray keeps its files in this module: apart from any other Ray on this machine. Sockets want a short path."""
    with (
        tempfile.TemporaryDirectory(prefix="bpr-", dir="/tmp", ignore_cleanup_errors=True) as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", name)
        patch.setenv("RAY_AUTH_MODE", "disabled")  # a token in the home folder is not this module's
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield Path(name)


def cluster(store: Path, *sets: str, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(store), *sets],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def head(folder: Path) -> Iterator[str]:
    """The address of a head on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*RAY, "start", "--head", "--block", "--port", str(port), "--num-cpus", "1"]
    command += ["--include-dashboard", "false"]
    # `ray stop` would end every Ray on this machine
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(folder.glob("**/ray_current_cluster")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait(60)


def test_a_run_starts_its_own_beside_it_or_joins_the_one_that_is_named(head: str, tmp_path: Path) -> None:
    port = head.rpartition(":")[2]
    assert not cluster(tmp_path).endswith(f":{port}"), "its own"
    assert cluster(tmp_path, f"runner_address={head}").endswith(f":{port}"), "named by the setting"
    assert cluster(tmp_path, RAY_ADDRESS=head).endswith(f":{port}"), "named by Ray's variable"
    assert cluster(tmp_path, RAY_ADDRESS="auto").endswith(f":{port}"), "whatever runs here"
    assert not cluster(tmp_path, RAY_ADDRESS="local").endswith(f":{port}"), "its own, in Ray's words"
    assert cluster(tmp_path, f"runner_address={head}", RAY_ADDRESS="local").endswith(f":{port}"), "the setting counts"


def test_a_dead_head_s_file_is_nobody_s_business(head: str, folder: Path, tmp_path: Path) -> None:
    (left,) = folder.glob("**/ray_current_cluster")
    known = left.read_text()
    left.write_text("127.0.0.1:9")
    try:
        assert cluster(tmp_path) not in ("", "127.0.0.1:9")
    finally:
        left.write_text(known)


ADDRESSES = dict.fromkeys(["", " ", "local", " local ", "auto"], "")
ADDRESSES |= dict.fromkeys(["127.0.0.1", "'127.0.0.1:9'", "head:port"], "must contain host and port")
ADDRESSES |= dict.fromkeys(["127.0.0.1:9", "ray://127.0.0.1:9"], "leave RAY_ADDRESS out")


@pytest.mark.parametrize("value", list(ADDRESSES))
def test_ray_s_variable_as_people_set_it(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    problems = runner_problems(load_config(shipped_configs()["toy"], ["runner=ray", f"root={tmp_path}"]))
    assert len(problems) == (ADDRESSES[value] != "")
    for problem in problems:
        assert problem.startswith(f"RAY_ADDRESS: {value!r} → ") and ADDRESSES[value] in problem
    dask = load_config(shipped_configs()["toy"], ["runner=dask", f"root={tmp_path}"])
    assert runner_problems(dask) == []


def test_a_variable_that_names_a_cluster_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    config = load_config(shipped_configs()["toy"], ["runner=ray", f"root={tmp_path}"])
    (problem,) = runner_problems(config)
    assert problem.startswith("RAY_ADDRESS: '127.0.0.1:9' → no cluster answers there") and "\n" not in problem
