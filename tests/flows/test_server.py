"""The temporary server of a run: where the address comes from, and that no process outlives its parent."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bootpig.flows import server
from bootpig.flows.server import configured_api

PROJECT = Path(__file__).parents[2]

HOLD = """
import signal, sys, time
sys.path.insert(0, {project!r})
from bootpig.flows.server import prefect_server
with prefect_server() as address:
    from prefect.settings import get_current_settings
    print(address, get_current_settings().flows.heartbeat_frequency, flush=True)
    time.sleep(600)
"""


def test_the_address_comes_from_the_environment_or_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_PROFILE", raising=False)
    monkeypatch.delenv("PREFECT_PROFILES_PATH", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    assert configured_api() is None
    (tmp_path / "profiles.toml").write_text(
        'active = "a"\n[profiles.a]\nPREFECT_API_URL = "http://a/api"\n[profiles.b]\n'
    )
    assert configured_api() == "http://a/api"
    monkeypatch.setenv("PREFECT_PROFILE", "b")
    assert configured_api() is None
    monkeypatch.setenv("PREFECT_API_URL", "http://env/api")
    assert configured_api() == "http://env/api"
    (tmp_path / "profiles.toml").write_text("not toml [")
    monkeypatch.delenv("PREFECT_API_URL")
    assert configured_api() is None


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment with a fresh home, without variables set by other tests' servers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    return kept | {"PREFECT_HOME": str(tmp_path / "home")}


@pytest.mark.slow
def test_a_killed_parent_takes_its_server_along(environment: dict[str, str]) -> None:
    program = HOLD.format(project=str(PROJECT))
    holder = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    address, heartbeats = holder.stdout.readline().split()
    assert address.startswith("http://127.0.0.1:")
    assert heartbeats == "None"  # else the end of each flow waits up to a second for their thread
    (server,) = psutil.Process(holder.pid).children()
    assert "uvicorn" in server.cmdline()
    holder.kill()
    holder.wait()
    psutil.wait_procs([server], timeout=10)
    assert not server.is_running()


@pytest.mark.slow
def test_a_server_that_cannot_start_is_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = "sqlite+aiosqlite:////nowhere/at/all.db"
    command = [sys.executable, "-c", "from bootpig.flows.cli.main import entry; entry()", "run", "configs/toy.yaml"]
    command += [
        "--until",
        "caption",
        f"--set=root={tmp_path / 'store'}",
        "--set=caption.count=10",
        "--set=unit_size=10",
    ]
    done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("the Prefect server ended with")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_with_its_code(number: int, code: int, environment: dict[str, str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-c", "from bootpig.flows.cli.main import entry; entry()", "run", "configs/toy.yaml"]
    command += ["--until", "caption", f"--set=root={store}", "--set=caption.count=2000000", "--set=unit_size=1000"]
    run = subprocess.Popen(
        command,
        env=environment,
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job ignores Ctrl-C, and hands that down
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while not list(store.glob("caption/*/part-*.parquet")) and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.1)
    children = psutil.Process(run.pid).children(recursive=True)
    assert children
    run.send_signal(number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == code
    assert errors == "interrupted; complete units are kept, run again to continue\n"
    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() for child in children)
    assert '"interrupted"' in next(store.glob("runs/*/run.json")).read_text()


LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""


@contextlib.contextmanager
def locked(database: Path, seconds: float) -> Iterator[None]:
    command = [sys.executable, "-c", LOCK, str(database), str(seconds)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
    yield
    holder.kill()
    holder.wait()


def test_a_locked_database_is_waited_for_and_then_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    database = server._database()
    sqlite3.connect(database).close()
    with locked(database, 1.0):
        server._await_database()
    monkeypatch.setattr(server, "STARTUP_SECONDS", 0.2)
    with locked(database, 60.0), pytest.raises(server.ServerError, match=r"^PREFECT_HOME: .* cannot be written"):
        server._await_database()
    database.write_bytes(b"no data base" * 100)
    with pytest.raises(server.ServerError, match="is damaged"):
        server._await_database()


@pytest.mark.slow
def test_the_address_of_the_pages_is_not_that_of_the_api(prefect_api: str) -> None:
    server.require_answer(prefect_api)
    for address in (prefect_api.removesuffix("/api"), prefect_api.removesuffix("/api") + "/"):
        with pytest.raises(server.ServerError, match=r"^PREFECT_API_URL: .* give that of its API, .*:\d+/api$"):
            server.require_answer(address)
