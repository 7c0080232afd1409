"""Provides the Prefect server for a run: the configured one, or else a child process that ends with the run."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import IO
from uuid import UUID

from bootpig.flows.api import ServerError, configured_api, prefect_home, require_answer
from bootpig.flows.proxies import open_url, spare_loopback
from bootpig.storage.refusals import NO_LOCKS

STARTUP_SECONDS = 180.0

CLIENT_RETRIES = "8"
"""Of a request to our own server, after 2, 4, 8, … 256 s: a database that takes no write for minutes, as under heavy
load, does not end a run. Prefect's own 5 bridge one minute."""
"""The first start creates the database, which takes about twenty seconds on two busy cores."""

_PR_SET_PDEATHSIG = 1

_own = False
"""Whether the API is a child of this process."""


@contextlib.contextmanager
def prefect_server(preload: str = "prefect.main") -> Iterator[str]:
    """Make sure that an API is available, and export its address as PREFECT_API_URL. Enter before importing Prefect.

    If no API is configured, a server is started on a free loopback port. Its database is in PREFECT_HOME, in a file
    named after Prefect's version, so that a server of another version never migrates it. The server is stopped at the
    end of the context; if this process dies for any reason, the kernel kills the server.

    Args:
        preload: a module that imports Prefect. It is imported while the server starts.

    Yields:
        The API's address.

    Raises:
        ServerError: the child ended or did not answer within `STARTUP_SECONDS`, or the configured server does not
            answer.
    """
    global _own
    # warnings go to the API and show up in the UI; the command line has its own display
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # Prefect's client would send telemetry, and print a notice about it into our output
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if address := configured_api():
        spare_loopback(address)
        require_answer(address)
        # the rate that the automation for silent runs expects (`bootpig.flows.automations`)
        os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
        os.environ["PREFECT_API_URL"] = address
        yield address
        return
    with tempfile.TemporaryFile() as log, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        os.environ["PREFECT_API_URL"] = address
        os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", CLIENT_RETRIES)
        with _first_start_lock():
            _await_database()
            child = _start(listener, address, log)
            try:
                importlib.import_module(preload)  # takes seconds, and so does the server's start
                _wait(child, address, log)
            except BaseException:
                _stop(child)
                raise
        _own = True
        from prefect.settings import temporary_settings

        try:
            # nothing uses heartbeats here, and the end of each flow would wait for the thread that sends them
            with temporary_settings({"flows.heartbeat_frequency": None}):
                yield address
        finally:
            _send_logs()
            _own = False
            del os.environ["PREFECT_API_URL"]
            _stop(child)


def is_own() -> bool:
    """Whether the API is a child of this process."""
    return _own


def wait_recorded(task_run: UUID | None, seconds: float = 15.0) -> None:
    """Wait until our own server has recorded the end of this task run, and so, in order, of all earlier ones.

    Task runs reach the server as events with a delay. A server that stops too early loses the last of them.
    """
    deadline = time.monotonic() + seconds
    while _own and task_run is not None and time.monotonic() < deadline:
        address = f"{os.environ['PREFECT_API_URL']}/task_runs/{task_run}"
        with contextlib.suppress(OSError), open_url(address, timeout=5) as answer:
            if json.load(answer)["end_time"] is not None:
                return
        time.sleep(0.1)


def _database() -> Path:
    return prefect_home() / f"bootpig-{version('prefect')}.db"


def _await_database() -> None:
    """Wait until the database can be written: a server that starts meanwhile ends after a minute, without a word.

    A write lock is held for as long as minutes by the servers of other runs on the same PREFECT_HOME, as when one of
    them removes old events.

    Raises:
        ServerError: it stays locked for `STARTUP_SECONDS`.
    """
    if not _database().exists() or "PREFECT_SERVER_DATABASE_CONNECTION_URL" in os.environ:
        return
    with contextlib.closing(sqlite3.connect(_database(), timeout=STARTUP_SECONDS, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            raise ServerError(
                f"PREFECT_HOME: {str(prefect_home())!r} → {_database().name} cannot be written ({error}); end the "
                "process that locks it, or give another PREFECT_HOME"
            ) from None
        except sqlite3.DatabaseError as error:
            raise ServerError(
                f"PREFECT_HOME: {str(prefect_home())!r} → {_database().name} is damaged ({error}); remove it, it holds "
                "only the history of runs that the Prefect UI shows"
            ) from None


def _start(listener: socket.socket, address: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{_database()}",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_API_URL": address,
        # no automation runs on a server that ends with the run
        "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
        # in batches: one by one it records only about thirty task runs per second. Whole seconds: the recorder cuts
        # off fractions, so half a second would become a busy loop
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "PREFECT__SERVER_FINAL": "1",
    } | {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    # run uvicorn directly: `prefect server start` would be a parent process, and killing it would leave the server
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    command += ["--fd", str(listener.fileno()), "--log-level", "critical", "--timeout-graceful-shutdown", "5"]
    parent = os.getpid()
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=[listener.fileno()],
        # Ctrl-C reaches the whole process group, but the server must outlive the flow, which records its own end
        process_group=0,
        preexec_fn=lambda: die_with(parent),
    )


def die_with(parent: int) -> None:
    """In a child, before exec: ask the kernel to send SIGKILL when the parent dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _first_start_lock() -> Iterator[None]:
    """Allow one start at a time per PREFECT_HOME: two first starts would both create the database's tables."""
    try:
        prefect_home().mkdir(parents=True, exist_ok=True)
        lock = open(prefect_home() / "bootpig-start.lock", "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise ServerError(
            f"PREFECT_HOME: {str(prefect_home())!r} → {error.strerror}; set PREFECT_HOME to a writable folder"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise ServerError(
                f"PREFECT_HOME: {str(prefect_home())!r} → this file system has no file locks ({error.strerror}), which "
                "the database needs; set PREFECT_HOME to a folder on a local disk"
            ) from None
        yield


def _wait(child: subprocess.Popen[bytes], address: str, log: IO[bytes]) -> None:
    """Wait until the server answers. Its socket listens from the start, so a request just blocks until then."""
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise ServerError(f"the Prefect server ended with exit code {child.returncode}: {_last_line(log)}")
        with contextlib.suppress(OSError), open_url(f"{address}/health", timeout=3) as answer:
            if answer.status == 200:
                return
    raise ServerError(f"the Prefect server did not answer within {STARTUP_SECONDS:.0f} s: {_last_line(log)}")


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


def _send_logs() -> None:
    """Flush the logs. Otherwise Prefect sends the last lines at exit, when the server is gone, and prints errors."""
    from prefect.logging.handlers import APILogHandler

    APILogHandler().flush()


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM, so that the server can write the last events, and SIGKILL if that takes too long."""
    child.terminate()
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
