"""A Prefect server with PostgreSQL, as recommended for several machines."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bootpig.flows.demo_server import free_port
from tests.flows.live import running

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Postgres:
    binaries: Path
    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://bootpig@127.0.0.1:{self.port}/postgres"

    def query(self, sql: str) -> list[str]:
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "bootpig", "postgres"]
        done = subprocess.run([self.binaries / "psql", "-At", *where, "-c", sql], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


def binaries() -> Path | None:
    """The folder of `initdb` and `postgres`, which Debian keeps off the path."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb")
    return versions[-1].parent if versions else Path(found).resolve().parent if found else None


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """PostgreSQL on loopback, in a temporary folder."""
    programs = binaries()
    if programs is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    # not pytest's own folder, which other users may not enter
    folder = Path(tempfile.mkdtemp(prefix="bootpig-postgres-"))
    as_user: list[str] = []
    if os.geteuid() == 0:  # as which it refuses to run
        user = pwd.getpwnam("nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    data = folder / "data"
    port = free_port()
    make = [programs / "initdb", "-D", data, "-U", "bootpig", "-A", "trust", "-E", "UTF8", "--no-sync"]
    made = subprocess.run([*as_user, *make], cwd=folder, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    serve = [programs / "postgres", "-D", data, "-k", folder, "-h", "127.0.0.1", "-p", str(port), "-F"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*as_user, *serve], cwd=folder, stdout=log, stderr=log)
    try:
        ready = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        deadline = time.monotonic() + 60
        while subprocess.run(ready, check=False).returncode != 0:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield Postgres(programs, folder, port)
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def test_a_run_is_recorded_there(postgres: Postgres, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    store = ["--set", f"root={tmp_path / 'store'}", "--set", "caption.count=20", "--set", "unit_size=10"]
    run = ["-m", "bootpig", "run", "configs/toy.yaml", "--until", "caption", *store]
    with running(home, PREFECT_SERVER_DATABASE_CONNECTION_URL=postgres.url) as live:
        assert "2 made" in live.python(*run)
        assert "2 cached" in live.python(*run)
        deadline = time.monotonic() + 30  # task runs are recorded a little later
        while (tasks := postgres.query("select state_name from task_run where name like 'unit %'")).count("Cached") < 2:
            assert time.monotonic() < deadline, tasks
            time.sleep(0.3)
    flows = postgres.query("select flow.name, state_name from flow_run join flow on flow.id = flow_id")
    assert sorted(flows) == ["bootstrap|Completed"] * 2 + ["caption|Completed"] * 2
