"""`make demo-server` starts, its run finishes, and Ctrl-C stops everything."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from bootpig.flows.demo_server import CLICKS
from tests.flows.live import PROJECT

pytestmark = pytest.mark.slow


def test_it_starts_and_stops(tmp_path: Path) -> None:
    # nothing scores as much, so the run ends before train
    small = {"caption.count": 8, "unit_size": 8, "synthesize.steps": 1, "segment.min_score": 1.0, "threads": 1}
    small |= {"root": tmp_path / "store"}
    command = [sys.executable, "-m", "bootpig.flows.demo_server", "--home", str(tmp_path / "home"), "--port", "0"]
    command += [f"--set={name}={value}" for name, value in small.items()]
    demo = subprocess.Popen(
        command,
        cwd=PROJECT,
        # After one of Prefect's triggers had met "database is locked" in SQLite, on a busy machine, nothing could be
        # written for two minutes (seen once, 3.8.8). What triggers are for is tested in test_live.py.
        env={**os.environ, "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job ignores Ctrl-C, and hands that down
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert demo.stdout is not None
        said = ""
        while line := demo.stdout.readline():
            said += line
            if "Ctrl-C" in line:
                break
        address = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert address is not None, said + demo.communicate()[1]
        assert all(line in said for line in CLICKS.splitlines()[2:5])
        children = psutil.Process(demo.pid).children(recursive=True)
        assert len(children) >= 2
        request = urllib.request.Request(
            f"{address[0]}/api/flow_runs/filter", b"{}", {"content-type": "application/json"}
        )
        deadline = time.monotonic() + 120
        states: dict[str, str] = {}
        while True:
            # SQLite may be busy for a moment
            with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request) as answer:
                states = {run["name"]: run["state"]["message"] or "" for run in json.load(answer)}
            if "train, evaluate: not started; there is no scored sample" in states.get("bootstrap toy", ""):
                break
            assert time.monotonic() < deadline, states
            time.sleep(0.5)
        assert any((tmp_path / "store").glob("caption/*/part-00000.parquet"))
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=60) == 130
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == []
    finally:
        demo.kill()
        demo.wait()
