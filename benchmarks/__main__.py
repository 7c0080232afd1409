"""`python -m benchmarks [NAME …]`: runs the benchmarks, prints a table and writes `benchmarks/results.json`.

Two are separate: `python -m benchmarks gpu` needs a CUDA device and writes `benchmarks/gpu.json`, and `memory` computes
the peak memory of training and writes `stages/train/memory.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import cached, duplicates, inference, loader, loading, overhead, picture, tar, train_step

Measurement = dict[str, float | str]

BENCHMARKS: dict[str, tuple[Callable[[], Measurement], str]] = {
    "synthesize_overhead": (overhead.synthesize, "≤ 1.03"),
    "segment_overhead": (overhead.segment, "≤ 1.03"),
    "cached_rerun": (cached.rerun, "≤ 10 s"),
    "weights_scan": (loading.scan, "≤ 0.02"),
    "loader": (loader.measure, "≥ 0.95"),
    "near_duplicates": (duplicates.measure, "≥ 3"),
    "tar_write": (tar.write, "≥ 1.3"),
    "tar_read": (tar.read, "≥ 1"),
    "inference_one_reference": (inference.one_reference, "≥ 1.1"),
    "inference_four_references": (inference.four_references, "≥ 1.2"),
    "inference_subject_batch": (inference.subject_batch, "≥ 1.4"),
    "picture_one_reference": (picture.one_reference, "≥ 1.4"),
    "picture_four_references": (picture.four_references, "≥ 2.2"),
    "picture_subject_batch": (picture.subject_batch, "≥ 1.55"),
    "train_step": (train_step.measure, "≥ 1.4"),
}
"""Name → function that measures it, and its goal."""

RESULTS = Path(__file__).parent / "results.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[*BENCHMARKS, "gpu", "memory", []], help="default: all but gpu and memory"
    )
    names = parser.parse_args().names or list(BENCHMARKS)
    if names == ["gpu"]:
        from benchmarks import gpu

        gpu.run()
        return
    if names == ["memory"]:
        from benchmarks import memory

        memory.run()
        return
    results: dict[str, Measurement] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    console = Console()
    table = Table("benchmark", "ratio", "value", "baseline", "goal")
    for name in names:
        measure, goal = BENCHMARKS[name]
        with console.status(f"{name} ({names.index(name) + 1} of {len(names)})"):
            results[name] = measure()
        table.add_row(name, *(f"{results[name][key]:.4g}" for key in ("ratio", "value", "baseline")), goal)
        RESULTS.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
    console.print(table)
    for name in names:
        console.print(f"{name}: {results[name]['unit']}", style="dim", highlight=False)


if __name__ == "__main__":
    main()
