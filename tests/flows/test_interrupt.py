"""How a process ends that was asked to stop while a thread of it does not."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil
import pytest

from bootpig.flows import interrupt

PROGRAM = """
import sys, threading, time
from bootpig.flows import interrupt
from bootpig.stages.engine.contract import InputError

interrupt.GRACE_SECONDS = 0.5
interrupt.exits_process = True
interrupt.stop({error})
time.sleep(2)  # as a unit that ends its slice
sys.exit(2)
"""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("InputError('caption.count: 0')", 2),
        ("RuntimeError('a fault of ours')", 2),
        ("KeyboardInterrupt()", 130),
        ("SystemExit(143)", 143),
        ("interrupt.Stopped()", 143),
    ],
)
def test_only_a_signal_ends_the_process_by_force(error: str, code: int) -> None:
    program = PROGRAM.format(error=error)
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], timeout=60, check=False)
    assert done.returncode == code


def make(slices: int, begun: str) -> str:
    """A unit in a worker process. It tells its process in the file `begun`."""
    progress = interrupt.stoppable(lambda done, total, text: None)
    with interrupt.working():
        Path(begun).write_text(str(os.getpid()))
        try:
            for done in range(slices):
                time.sleep(0.05)
                progress(done, slices, "")
        except interrupt.Stopped:
            return "stopped"
    return "done"


@pytest.fixture
def pool() -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, initializer=interrupt.begin_worker) as pool:
        yield pool
    interrupt.reset()


def test_a_worker_process_ends_at_a_slice_and_ctrl_c_does_not_reach_it(
    pool: ProcessPoolExecutor, tmp_path: Path
) -> None:
    file = tmp_path / "begun"
    with interrupt.keeping_ctrl_c():
        idle = pool.submit(make, 0, str(tmp_path / "idle"))
        unit = pool.submit(make, 10_000, str(file))
    assert idle.result(240) == "done"
    while not file.exists() or not file.read_text():
        time.sleep(0.02)
    workers = multiprocessing.active_children()
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
    time.sleep(0.3)
    assert all(worker.is_alive() for worker in workers) and not unit.done()
    begun = time.monotonic()
    interrupt.stop(RuntimeError("as of another unit"), workers)
    with contextlib.suppress(BrokenProcessPool):  # the idle process may be gone first
        assert unit.result(30) == "stopped"
    # the executor's own thread reaps them too, so multiprocessing may never learn that one has ended
    while any(psutil.pid_exists(worker.pid) for worker in workers if worker.pid):
        time.sleep(0.02)
    assert time.monotonic() - begun < interrupt.WORKER_SECONDS
