"""Measures a second run over a finished data set of 400 units, as a separate process: all units are cached."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

STAGE_UNITS = 400


def rerun() -> dict[str, float | str]:
    """Seconds of `bootpig run … --until caption` over 400 complete units, compared with the run that made them."""
    with tempfile.TemporaryDirectory() as root:
        command = [
            sys.executable,
            "-c",
            "from bootpig.flows.cli.main import entry; entry()",
            "run",
            "configs/toy.yaml",
            "--until=caption",
            f"--set=root={root}",
            f"--set=caption.count={STAGE_UNITS * 10}",
            "--set=unit_size=10",
        ]
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
    made, found = seconds
    return {
        "ratio": round(found / made, 4),
        "value": round(found, 2),
        "baseline": round(made, 2),
        "unit": f"seconds for {STAGE_UNITS} cached units, the start of the server included; baseline: making them",
    }
