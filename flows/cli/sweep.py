"""`bootpig sweep`: runs the file of a sweep and shows its table, or says what it would take."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bootpig.flows.cli import display
from bootpig.flows.server import prefect_server
from bootpig.flows.sweep.file import load_sweep
from bootpig.stages.evaluate.measures.names import MEASURES
from bootpig.stages.evaluate.results import heading
from bootpig.stages.plain_text import one_line
from bootpig.stages.sweep.summary import OURS
from bootpig.storage.jsonio import parse_json


def sweep(asked: argparse.Namespace) -> int:
    """Run a sweep, or plan it with `--dry-run`. Everything is checked before Prefect starts.

    Raises:
        InputError: the file, a cell or a model cannot be used; one line per problem.
    """
    file = load_sweep(asked.file)
    if asked.dry_run:
        from bootpig.flows.sweep.plan import plan_sweep, sweep_plan_table

        facts = plan_sweep(file)
        _show(facts, [sweep_plan_table(facts)], asked.json)
        if not asked.json:
            for line in facts["missing"]:
                _console().print(f"missing: {line}", style="yellow", highlight=False, markup=False)
        return 0
    from bootpig.flows.sweep.prepared import prepare_sweep, prepared

    ready = prepare_sweep(file, asked.retry_failed)
    started = time.monotonic()
    with (
        display.shown_on(Console(stderr=asked.json)) as screen,
        prefect_server("bootpig.flows.sweep.flow") as address,
        prepared(ready),
    ):
        from bootpig.flows.sweep.flow import sweep as sweep_flow

        cells = len({run.of.cell.name for run in ready.runs})
        what = f"sweep {file.name!r}: {cells} cells, {len(ready.runs)} runs in {ready.root.url}"
        screen.line(f"{what}; Prefect: {address.removesuffix('/api')}", "dim")
        state = sweep_flow(file, asked.retry_failed, return_state=True)
        error = None if state.is_completed() or state.data is None else state.result(raise_on_failure=False)
    if isinstance(error, Exception):
        raise error
    folder = ready.record.folder
    facts = parse_json(ready.root.read(f"{folder}/results.json"))
    _show(facts, results_tables(facts), asked.json)
    if not asked.json:
        outcome = "done" if state.is_completed() else "failed"
        _console().print(
            f"{outcome} in {time.monotonic() - started:.0f} s; {ready.root.address(folder)}", soft_wrap=True
        )
        _console().print(f"report: {ready.root.address(folder, 'report.html')}", soft_wrap=True)
    if state.is_completed():
        return 0
    print(one_line(str(state.message)), file=sys.stderr)
    return 1


def results_tables(facts: dict[str, Any]) -> list[Table]:
    """The tables of a sweep, from its `results.json`: scores, differences to the baseline, and failed runs."""
    tables = [_table(facts, "BootPIG with the reference; [ ]: 95 %, bootstrap over seeds and subjects", _score, "")]
    if any(_difference(cell, measure) for cell in facts["cells"] for measure in facts["report"]):
        tables.append(_table(facts, "minus the baseline, for the same seed and subject", _difference, "+"))
    if any(cell["failed"] for cell in facts["cells"]):
        failed = Table("failed", "seed", "reason")
        for cell in facts["cells"]:
            for seed, reason in cell["failed"].items():
                failed.add_row(*(Text(one_line(text)) for text in (cell["cell"], seed, reason)))
        tables.append(failed)
    return tables


def _table(facts: dict[str, Any], caption: str, of: Callable[[dict[str, Any], str], Any], sign: str) -> Table:
    table = Table(caption=Text(caption), caption_justify="left")
    table.add_column("cell")
    table.add_column("runs", justify="right", no_wrap=True)
    for measure in facts["report"]:
        table.add_column(heading(MEASURES[measure]), justify="right", no_wrap=True)
    for cell in facts["cells"]:
        is_baseline = cell["baseline"] == cell["cell"]
        if sign and is_baseline:
            continue
        done = f"{cell['runs'] - len(cell['failed'])}/{cell['runs']}"
        values = [_shown(of(cell, measure), sign) for measure in facts["report"]]
        table.add_row(Text(one_line(cell["cell"])), done, *values, style="bold" if is_baseline else "")
    return table


def _score(cell: dict[str, Any], measure: str) -> Any:
    return cell["methods"].get(OURS, {}).get(measure)


def _difference(cell: dict[str, Any], measure: str) -> Any:
    return (_score(cell, measure) or {}).get("difference")


def _shown(value: dict[str, Any] | None, sign: str) -> str:
    if value is None:
        return "–"
    return f"{value['mean']:{sign}.3f} [{value['ci95'][0]:{sign}.3f}, {value['ci95'][1]:{sign}.3f}]"


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)


def _show(facts: Any, tables: Sequence[Table], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for table in tables:
        _console().print(table)
