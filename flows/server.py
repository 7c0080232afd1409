"""The Prefect server behind a run: the user's own where one is configured, else a child that lives as long as it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import http.client
import importlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import IO
from uuid import UUID

from bootpig.storage.root import masked

STARTUP_SECONDS = 180.0
"""A first start creates the data base: some twenty seconds of two busy cores."""

_PR_SET_PDEATHSIG = 1

_own = False
"""Whether the API is a child of this process, which ends with it."""


class ServerError(RuntimeError):
    """There is no server to work with. One line."""


def configured_api() -> str | None:
    """The API address that Prefect would use, read without importing it: the environment, then the active profile."""
    if address := os.environ.get("PREFECT_API_URL"):
        return address
    path = Path(os.environ.get("PREFECT_PROFILES_PATH") or _home() / "profiles.toml")
    try:
        profiles = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError):
        return None
    name = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    return profiles.get("profiles", {}).get(name, {}).get("PREFECT_API_URL")


@contextlib.contextmanager
def prefect_server(preload: str = "prefect.main") -> Iterator[str]:
    """Make an API ready and export it as PREFECT_API_URL. Enter it before Prefect is first imported.

    Without a configured API a real server is started on a free loopback port. It keeps its data base in
    PREFECT_HOME, under a name that holds Prefect's version: another version's server never migrates it. The kernel
    ends it with this process, however that dies; otherwise it ends with the context.

    Args:
        preload: a module that imports Prefect; it is loaded while the server starts.

    Yields:
        The API's address.

    Raises:
        ServerError: the child ended or did not answer in `STARTUP_SECONDS`; nothing answers at the configured address.
    """
    global _own
    # warnings go to the API, where the UI shows them; the command line has its own display
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # Prefect's client would report its use, and say so in the middle of ours
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if address := configured_api():
        require_answer(address)
        # as often as the automation expects it that marks silent runs (`bootpig.flows.automations`)
        os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
        os.environ["PREFECT_API_URL"] = address
        yield address
        return
    with tempfile.TemporaryFile() as log, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        os.environ["PREFECT_API_URL"] = address
        with _first_start_lock():
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
            # nobody listens to heartbeats here, and the end of each flow would wait for the thread that sends them
            with temporary_settings({"flows.heartbeat_frequency": None}):
                yield address
        finally:
            _send_logs()
            _own = False
            del os.environ["PREFECT_API_URL"]
            _stop(child)


def require_answer(address: str) -> None:
    """See that something answers at the API's address, whatever it says: a server may ask for a key.

    Raises:
        ServerError: nothing does.
    """
    try:
        urllib.request.urlopen(f"{address}/health", timeout=30).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):  # Prefect's client has settings of its own for that
            return
        raise ServerError(
            f"PREFECT_API_URL: {masked(address)!r} → no Prefect server answers there ({reason}); start it (prefect "
            "server start), or unset the address and a run brings its own server along"
        ) from None


def is_own() -> bool:
    """Whether the API is a child of this process."""
    return _own


def wait_recorded(task_run: UUID | None, seconds: float = 15.0) -> None:
    """Return when our own server shows this task run as ended, and so, it works in order, all before it.

    Task runs reach a server as events, after the fact; one that ends sooner forgets the last of them.
    """
    deadline = time.monotonic() + seconds
    while _own and task_run is not None and time.monotonic() < deadline:
        address = f"{os.environ['PREFECT_API_URL']}/task_runs/{task_run}"
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            if json.load(answer)["end_time"] is not None:
                return
        time.sleep(0.1)


def _home() -> Path:
    return Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect").expanduser()


def _start(listener: socket.socket, address: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{_home()}/bootpig-{version('prefect')}.db",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_API_URL": address,
        # nothing listens to a server that lives as long as a run
        "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
        # in batches: one by one it records some thirty task runs a second; whole seconds, as the recorder cuts off
        # fractions and half a second would be a busy loop
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "PREFECT__SERVER_FINAL": "1",
    } | {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    # uvicorn itself, not `prefect server start`: that would be a parent of the server, and die alone
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
        # Ctrl-C goes to a whole process group: the server must outlive the flow that records its own end
        process_group=0,
        preexec_fn=lambda: die_with(parent),
    )


def die_with(parent: int) -> None:
    """In a child, before exec: ask the kernel for SIGKILL at the parent's death (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _first_start_lock() -> Iterator[None]:
    """One start at a time on a home: two first starts would both create the data base's tables."""
    _home().mkdir(parents=True, exist_ok=True)
    with open(_home() / "bootpig-start.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _wait(child: subprocess.Popen[bytes], address: str, log: IO[bytes]) -> None:
    """Return when the server answers. Its socket listens from the start, so a request simply waits for it."""
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise ServerError(f"the Prefect server ended with {child.returncode}: {_last_line(log)}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=3) as answer:
            if answer.status == 200:
                return
    raise ServerError(f"the Prefect server did not answer within {STARTUP_SECONDS:.0f} s: {_last_line(log)}")


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _send_logs() -> None:
    """Else Prefect sends its last lines as the process ends, to a server that is gone, and complains on stderr."""
    from prefect.logging.handlers import APILogHandler

    APILogHandler().flush()


def _stop(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM lets it write the last events; SIGKILL where that takes too long."""
    child.terminate()
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
