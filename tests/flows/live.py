"""A real server with deployments and a worker, as started by `make demo-server`, and helpers to use them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from bootpig.flows import demo_server
from bootpig.flows.loading import load_config
from bootpig.stages.config import PipelineConfig

PROJECT = Path(__file__).parents[2]
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Live:
    """A running server. Its worker can be killed and restarted."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
        port = demo_server.free_port()
        self.ui = f"http://127.0.0.1:{port}"
        self.environment = kept | {
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": f"{self.ui}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
            # at two at night it would start the nightly version of the whole toy world, and it did
            "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
            **environment,
        }
        self._stack = contextlib.ExitStack()
        self._worker = contextlib.ExitStack()
        self.log = self._stack.enter_context((home / "live.log").open("ab"))
        self._stack.enter_context(demo_server.server(self.environment, port, self.log))

    def deploy(self) -> None:
        demo_server.deploy(self.environment)

    def start_worker(self) -> None:
        self._worker.close()
        quick = {"PREFECT_WORKER_QUERY_SECONDS": "1"}
        process = self._worker.enter_context(demo_server.worker(self.environment | quick, self.log))
        self.worker = psutil.Process(process.pid)

    def close(self) -> None:
        self._worker.close()
        self._stack.close()

    def api(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.ui}/api/{path}", data, {"content-type": "application/json"})
        request.method = method
        for _ in range(20):
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except urllib.error.HTTPError as error:
                if error.code != 503:  # SQLite is busy: come again, as Prefect's client does
                    raise
            except TimeoutError:
                if method != "GET":
                    raise
            time.sleep(0.5)
        raise AssertionError(f"{method} {path}: the server is busy for good")

    def prefect(self, *arguments: str) -> str:
        return self.python("-m", "prefect", "--no-prompt", *arguments)

    def python(self, *arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=PROJECT, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def deployment(self, name: str) -> dict[str, Any]:
        (found,) = self.api("POST", "deployments/filter", {"deployments": {"name": {"any_": [name]}}})
        return found

    def trigger(self, name: str, **parameters: Any) -> str:
        """Create a run that starts now, as the UI does. Returns the flow run's id."""
        return self.schedule(name, datetime.now(UTC).isoformat(), **parameters)

    def run_by_command(self, name: str, **parameters: Any) -> str:
        """`prefect deployment run`, which takes seconds more. Returns the flow run's id."""
        flow = name.replace("_", "-")
        said = self.prefect("deployment", "run", f"{flow}/{name}", "--params", json.dumps(parameters))
        return said.partition("UUID: ")[2].split()[0]

    def schedule(self, name: str, when: str, **parameters: Any) -> str:
        """Create a run like the scheduler does, scheduled for `when`."""
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": when}}
        body = {"parameters": parameters, "state": state}
        made = self.api("POST", f"deployments/{self.deployment(name)['id']}/create_flow_run", body)
        return str(made["id"])

    def flow_run(self, flow_run: str) -> dict[str, Any]:
        return self.api("GET", f"flow_runs/{flow_run}")

    def wait(
        self, flow_run: str, until: Callable[[str], bool] = lambda kind: kind in FINAL, seconds: float = 240
    ) -> Any:
        """Wait until the state has the wanted type, and return it."""
        deadline = time.monotonic() + seconds
        while True:
            state = self.flow_run(flow_run)["state"] or {"type": "NONE"}
            if until(state["type"]):
                return state
            assert time.monotonic() < deadline, f"still {state}; {self.tail()}"
            time.sleep(0.3)

    def subflows(self, flow_run: str) -> dict[str, dict[str, Any]]:
        """Flow name → the newest subflow run."""
        body = {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run]}}, "sort": "START_TIME_ASC"}
        names = {flow["id"]: flow["name"] for flow in self.api("POST", "flows/filter", {"limit": 200})}
        return {names[run["flow_id"]]: run for run in self.api("POST", "flow_runs/filter", body)}

    def tasks(self, flow_run: str, ended: int) -> dict[str, str]:
        """Task run name → state name, once `expected` of them have ended."""
        body = {"flow_runs": {"id": {"any_": [flow_run]}}}
        deadline = time.monotonic() + 30
        while True:
            runs = self.api("POST", "task_runs/filter", body)
            states = {run["name"]: run["state_name"] for run in runs if run["end_time"] is not None}
            if len(states) >= ended or time.monotonic() > deadline:
                return states
            time.sleep(0.3)

    def artifacts(self, flow_run: str) -> dict[str, dict[str, Any]]:
        """Key → artifact, of one flow run."""
        found = self.api("POST", "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run]}}})
        return {artifact["key"]: artifact for artifact in found}

    def logs(self, flow_run: str) -> list[str]:
        """The log messages of a flow run itself."""
        found = self.api("POST", "logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run]}}, "limit": 200})
        return [entry["message"] for entry in found]

    def processes(self, flow_run: str) -> list[psutil.Process]:
        """The processes of a flow run, including all descendants."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                mine = process.environ().get("PREFECT__FLOW_RUN_ID", "").replace("-", "") == flow_run.replace("-", "")
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def tail(self) -> str:
        return (self.home / "live.log").read_text(errors="replace")[-4000:]


def tiny(root: Path, **changes: Any) -> PipelineConfig:
    """The toy pipeline with two units of eight: runs every stage in a few seconds."""
    small: dict[str, Any] = {
        "root": root,
        "threads": 1,
        "caption.count": 16,
        "unit_size": 8,
        "synthesize.steps": 2,
        "synthesize.batch_size": 8,
        "segment.min_score": 0.0,
        "segment.min_sam_iou": 0.0,
        "segment.detection_threshold": 0.0,
        "select.min_caption_score": "null",
        "select.min_sharpness": "null",
        "select.min_outline": "null",
        "select.max_detections": "null",
        "min_yield": 0.0,
        "train.steps": 4,
        "train.warmup_steps": 0,
        "train.global_batch_size": 2,
        "train.checkpoint_every": 2,
        "train.sample_every": 0,
        "evaluate.steps": 2,
    }
    small |= changes
    return load_config(PROJECT / "configs" / "toy.yaml", [f"{name}={value}" for name, value in small.items()])


def as_parameters(config: PipelineConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_unset=True)


@contextlib.contextmanager
def running(home: Path, **environment: str) -> Iterator[Live]:
    live = Live(home, **environment)
    try:
        yield live
    finally:
        live.close()
