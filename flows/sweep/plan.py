"""`bootpig sweep --dry-run`: what each run of a sweep has in the store and what it would take. Changes nothing."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from bootpig.flows.rounds import with_trained_models
from bootpig.flows.runs.plan import plan
from bootpig.flows.sweep.cells import CellRun, expand, sweep_digest
from bootpig.flows.sweep.file import SweepFile
from bootpig.flows.sweep.records import SweepRecord
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.survey import graph_of, identity_of, make_stage
from bootpig.stages.plain_text import one_line
from bootpig.stages.view.stage import NO_FIRST_ROUND
from bootpig.storage.fingerprint import digest
from bootpig.storage.root import Root

COSTS = ("gpu_hours", "cost_usd", "bytes")


def plan_sweep(sweep: SweepFile) -> dict[str, Any]:
    """What each run would make: units that are cached, shared with an earlier run of the sweep, or due, and their cost.

    Raises:
        InputError: the sweep is not valid.
        StoreError: the root cannot be opened.
    """
    runs = expand(sweep)
    root = Root(runs[0].config.root)
    planned: dict[str, int] = {}
    """Stage and identity → units that earlier runs of the sweep make."""
    rows = [_run(run, planned) for run in runs]
    seconds = [row["seconds"] for row in rows]
    return {
        "name": sweep.name,
        "folder": root.address(SweepRecord(name=sweep.name, digest=sweep_digest(runs)).folder),
        "runs": rows,
        "total": {key: sum(row[key] for row in rows) for key in COSTS}
        | {"seconds": None if None in seconds else round(sum(seconds), 1)},
        "missing": list(dict.fromkeys(line for row in rows for line in row.pop("missing"))),
    }


def _run(run: CellRun, planned: dict[str, int]) -> dict[str, Any]:
    facts = plan(run.config)
    keys = _identities(run.config)
    stages: dict[str, Any] = {}
    total: dict[str, Any] = dict.fromkeys(COSTS, 0.0)
    seconds: float | None = 0.0
    for name, stage in facts["stages"].items():
        units = dict(stage["units"])
        key = keys.get(name)
        before = 0 if key is None else planned.get(key, 0)
        shared = min(units["due"], before)
        if key is not None:
            planned[key] = max(before, units["due"])
        share = (units["due"] - shared) / units["due"] if units["due"] else 0.0
        units |= {"due": units["due"] - shared, "shared": shared}
        for cost in COSTS:
            total[cost] += stage[cost] * share
        if units["due"]:
            pace = stage["seconds"]
            seconds = None if seconds is None or pace is None else seconds + pace * share
        stages[name] = units
    return {
        "cell": run.cell.name,
        "seed": run.seed,
        "stages": stages,
        **total,
        "bytes": round(total["bytes"]),
        "seconds": None if seconds is None else round(seconds, 1),
        # a run whose first round is missing makes that first
        "missing": [line for line in facts["missing"] if not line.startswith(NO_FIRST_ROUND)],
    }


def _identities(config: PipelineConfig) -> dict[str, str]:
    """Stage → digest of what determines its output. Without a stage whose model is missing, and those that read it."""
    config = with_trained_models(config)
    graph = graph_of(config)
    keys: dict[str, str] = {}
    for name in graph.stages:
        above = graph.upstream[name]
        if not all(upstream in keys for upstream in above):
            continue
        try:
            identity = identity_of(make_stage(config, name), config, {upstream: keys[upstream] for upstream in above})
        except (ValueError, OSError):
            continue
        # a reduce stage reads all units, so their number makes another result
        size = None if graph.is_map(name) else len(config.unit_numbers())
        keys[name] = f"{name}/{digest([identity, size])}"
    return keys


def sweep_plan_table(facts: dict[str, Any]) -> Table:
    """The plan as a table: one row per run."""
    table = Table(
        "cell", "seed", "cached", "shared", "to make", "seconds", "GPU-hours", "USD", "GB", title=Text(facts["folder"])
    )
    for run in facts["runs"]:
        units = run["stages"].values()
        due = [f"{name} {stage['due']}" for name, stage in run["stages"].items() if stage["due"]]
        table.add_row(
            Text(one_line(run["cell"])),
            run["seed"] or "–",
            str(sum(stage["cached"] for stage in units)),
            str(sum(stage["shared"] for stage in units)),
            ", ".join(due) or "nothing",
            *_costs(run),
        )
    table.add_row("total", "", "", "", "", *_costs(facts["total"]))
    return table


def _costs(facts: dict[str, Any]) -> tuple[str, ...]:
    seconds = "–" if facts["seconds"] is None else f"{facts['seconds']:.0f}"
    return seconds, f"{facts['gpu_hours']:.3g}", f"{facts['cost_usd']:.2f}", f"{facts['bytes'] / 1e9:.3g}"
