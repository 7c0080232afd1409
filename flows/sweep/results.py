"""Writes the results of a sweep to the store: `sweep.parquet`, `results.json` and `report.html`. Draws nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pyarrow.parquet as pq
import yaml

from bootpig.flows.sweep.cells import measured_by
from bootpig.flows.sweep.prepared import PreparedSweep
from bootpig.stages.report.sweep import SHEET_CELLS, SweepPage, build_sweep, read_sweep_sheet
from bootpig.stages.sweep.scores import RunScores, read_run_scores, scores_table
from bootpig.stages.sweep.summary import summarise

RESULTS = "results.json"


def write_results(ready: PreparedSweep) -> SweepPage:
    """Read the scores of all runs, write the files, and return the content of the page.

    A run whose scores cannot be read counts as failed, and its record says so.
    """
    runs: list[RunScores] = []
    for record in ready.record.runs:
        if record.evaluated is None:
            runs.append(RunScores(record.cell, record.seed, record.reason or "it did not end"))
            continue
        read = read_run_scores(ready.root, record.cell, record.seed, record.evaluated)
        if read.reason:
            record.state, record.reason = "failed", read.reason
        runs.append(read)
    cells = {run.of.cell.name: run.of.cell for run in ready.runs}
    summaries = summarise([(cell.name, cell.settings, cell.baseline) for cell in cells.values()], runs)
    firsts = _firsts(runs)
    measures = ready.sweep.report or measured_by(run.of for run in ready.runs)
    page = SweepPage(
        name=ready.sweep.name,
        note=_note(ready),
        measures=measures,
        cells=summaries,
        shown=[run.cell for run in firsts],
        sheet=read_sweep_sheet(ready.root, firsts),
        sweep=yaml.safe_dump(ready.record.sweep, sort_keys=False, allow_unicode=True),
    )
    folder = ready.record.folder
    buffer = io.BytesIO()
    pq.write_table(scores_table(runs), buffer, compression="zstd")
    ready.root.write(f"{folder}/sweep.parquet", buffer.getvalue())
    facts = {
        "name": ready.sweep.name,
        "folder": ready.root.address(folder),
        "report": list(measures),
        "cells": [summary.facts() for summary in summaries],
        "runs": [record.model_dump() for record in ready.record.runs],
    }
    ready.root.write(f"{folder}/{RESULTS}", json.dumps(facts, indent=2, ensure_ascii=False).encode())
    ready.root.write(f"{folder}/report.html", build_sweep(page).encode())
    ready.record.save(ready.root)
    return page


def _firsts(runs: Sequence[RunScores]) -> list[RunScores]:
    """The first run of each cell that did not fail, for as many cells as fit on a sheet."""
    firsts: dict[str, RunScores] = {}
    for run in runs:
        if not run.reason:
            firsts.setdefault(run.cell, run)
    return list(firsts.values())[:SHEET_CELLS]


def _note(ready: PreparedSweep) -> str:
    cells, seeds = ({run.of.cell.name for run in ready.runs}, {run.of.seed for run in ready.runs})
    fields = f", {len(seeds)} values of {' and '.join(ready.sweep.seeds)}" if ready.sweep.seeds else ""
    return f"{len(cells)} cells{fields}; mean and 95 % interval over seeds and subjects"
