"""`make demo-server`: starts a local Prefect server with a worker, the deployments and one run."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from bootpig.flows.api import ServerError
from bootpig.flows.cli.output import settle_output
from bootpig.flows.loading import load_config, shipped_configs
from bootpig.flows.parameters import by_value_or_reference
from bootpig.flows.proxies import check_proxies, open_url, spare_loopback
from bootpig.flows.server import die_with
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError

PROJECT = Path(__file__).resolve().parents[1]
STARTUP_SECONDS = 180.0
POLL_SECONDS = 2.0
"""How often the worker polls for work."""

CLICKS = """
{ui}
  Runs         'bootstrap toy': its stages as subflows, each unit a task; Artifacts: yields, pictures, metrics
  Deployments  bootstrap, run_stage, regenerate, sweep: Run › Custom run shows every setting as a form
  Automations  the one that marks killed runs as Crashed
Run it again and every unit is Cached. Ctrl-C stops everything; the data in {home} and in the store is kept.
"""


@contextlib.contextmanager
def child(command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m …` in the project folder. It ends with the context, or when this process dies for any reason."""
    parent = os.getpid()

    def begin() -> None:
        # a background job of a shell ignores SIGINT, which the worker needs to stop itself
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        die_with(parent)

    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=PROJECT,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # Ctrl-C must reach this process only, which then stops its children in order
        process_group=0,
        preexec_fn=begin,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=45)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def server(environment: Mapping[str, str], port: int, log: IO[bytes]) -> Iterator[str]:
    """Start a Prefect server on loopback. Yields the API's address once it answers.

    Raises:
        ServerError: the server ended, or did not answer within `STARTUP_SECONDS`.
    """
    address = f"http://127.0.0.1:{port}/api"
    with child(["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)], environment, log) as process:
        deadline = time.monotonic() + STARTUP_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServerError(f"the Prefect server ended with exit code {process.returncode}; see {log.name}")
            with contextlib.suppress(OSError), open_url(f"{address}/health", timeout=3):
                break
            time.sleep(0.2)
        else:
            raise ServerError(f"the Prefect server did not answer within {STARTUP_SECONDS:.0f} s; see {log.name}")
        yield address


@contextlib.contextmanager
def worker(environment: Mapping[str, str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a worker for the pool `bootpig`."""
    command = ["prefect", "worker", "start", "--pool", "bootpig"]
    quick = {"PREFECT_WORKER_QUERY_SECONDS": str(POLL_SECONDS)}
    with child(command, quick | dict(environment), log) as process:
        yield process


def free_port(wanted: int = 0) -> int:
    """The port `wanted` if it is free, else any free port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def deploy(environment: Mapping[str, str]) -> None:
    """Create the work pool and the automations, then run `prefect deploy --all`.

    Raises:
        ServerError: one of the two commands failed.
    """
    for command in (["bootpig", "setup-server"], ["prefect", "--no-prompt", "deploy", "--all"]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=PROJECT, env=dict(environment), capture_output=True, text=True
        )
        if done.returncode != 0:
            raise ServerError(f"{' '.join(command)}: {(done.stdout + done.stderr).strip()}")


def parameters(config: PipelineConfig) -> str:
    """The parameters of the run as JSON: by value as far as they were set, or by reference if they are large."""
    passed = by_value_or_reference(config, None, load_config(shipped_configs()["toy"]))
    values = {name: value.model_dump(mode="json", exclude_unset=name == "config") for name, value in passed.items()}
    return json.dumps(values)


def main(arguments: Sequence[str] | None = None) -> int:
    settle_output()
    parser = argparse.ArgumentParser(description="Start a Prefect server, a worker, the deployments and one run.")
    parser.add_argument("config", nargs="?", default="configs/toy.yaml", metavar="CONFIG")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a setting")
    parser.add_argument("--home", default="data/prefect", help="folder of the server's database (data/prefect)")
    parser.add_argument("--port", type=int, default=4200, help="port of the UI; any free port if it is taken (4200)")
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    try:
        check_proxies()
        spare_loopback()
        config = load_config(asked.config, asked.set)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    home = Path(asked.home).resolve()
    home.mkdir(parents=True, exist_ok=True)
    port = free_port(asked.port)
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(home / "demo.log", "ab"))
        try:
            print("server, deployments, worker …", flush=True)
            stack.enter_context(server(environment, port, log))
            deploy(environment)
            working = stack.enter_context(worker(environment, log))
            # by stdin: an argument of a command has 128 KiB at most
            run = ["prefect", "deployment", "run", "bootstrap/bootstrap", "--params", "-"]
            done = subprocess.run(
                [sys.executable, "-m", *run],
                env=environment,
                input=parameters(config),
                capture_output=True,
                text=True,
            )
            if done.returncode != 0:
                raise ServerError(f"the server did not accept the run: {(done.stdout + done.stderr).strip()}")
            print(CLICKS.format(ui=f"http://127.0.0.1:{port}", home=home), flush=True)
            working.wait()
            raise ServerError(f"the worker ended with exit code {working.returncode}; see {log.name}")
        except ServerError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
