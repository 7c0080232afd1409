"""How a process ends that was asked to stop while a thread of it does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
