"""The device lock between processes: who waits, and what a killed owner leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bootpig.stages.engine.device_lock import device_key, exclusive
from bootpig.stages.engine.engine import WAITS, Engine
from bootpig.stages.registry import STAGES
from tests.stages.doubles import config, doubles  # noqa: F401

PROJECT = Path(__file__).parents[3]

HOLD = """
import os, sys, time
sys.path.insert(0, {project!r})
from bootpig.stages.engine.device_lock import exclusive
with exclusive({key!r}):
    if os.fork() == 0:  # as a loader's process: it outlives its parent
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold() -> Callable[[str], subprocess.Popen[str]]:
    """Starts a process, and a child of it, that has a device."""
    started = []

    def start(key: str) -> subprocess.Popen[str]:
        program = HOLD.format(project=str(PROJECT), key=key)
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_cpu_is_for_all() -> None:
    assert device_key("cpu") is None
    with exclusive(None), exclusive(None):
        pass


def test_a_killed_owner_frees_it_at_once(hold: Callable[[str], subprocess.Popen[str]]) -> None:
    owner = hold("pretend:0")
    waited = []

    def waits() -> None:
        waited.append(1)
        assert len(waited) < 100, "its forked child, which lives on, keeps the lock"
        if len(waited) == 3:
            os.kill(owner.pid, signal.SIGKILL)

    with exclusive("pretend:0", waits):
        pass
    assert len(waited) >= 3
    with exclusive("pretend:1"):  # another device never waited
        pass


def test_a_wait_can_be_ended(hold: Callable[[str], subprocess.Popen[str]]) -> None:
    hold("pretend:2")

    def waits() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError), exclusive("pretend:2", waits):
        pass


@pytest.mark.usefixtures("doubles")
def test_a_unit_waits_for_its_device(
    hold: Callable[[str], subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STAGES["synthesize"], "device", lambda self: "pretend:3")
    engine = Engine(config(tmp_path))
    assert engine.run_unit("caption", 0).state == "done"
    owner = hold("pretend:3")
    said = []

    def progress(done: int, total: int, text: str) -> None:
        said.append(text)
        if text == WAITS:
            os.kill(owner.pid, signal.SIGKILL)

    assert engine.run_unit("synthesize", 0, progress=progress).state == "done"
    assert said[0] == WAITS
    assert said[-1] == ""
