"""Shows `metrics.json` as a table, with the same rows in the terminal and in the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from bootpig.stages.plain_text import one_line

METHOD_NAMES = {
    "text_only": ("text only", "the base model, with the caption only"),
    "untrained": ("untrained", "BootPIG before training"),
    "bootpig": ("BootPIG", "trained, with the reference"),
    "bootpig_no_reference": ("BootPIG, no reference", "trained, with the caption only"),
    "round_before": ("BootPIG, round before", "the model that drew the views, with the reference"),
    "real": ("real pictures", "compared with each other: the ceiling"),
}

METRIC_NAMES = {
    "clip_t": ("CLIP-T", "similarity to the caption"),
    "clip_i": ("CLIP-I", "similarity to the subject's real pictures"),
    "dino": ("DINO", "the same, with a network that distinguishes individuals"),
}

JUDGE_NAMES = {"concept": "subject", "following": "caption"}
"""Question to a judge → what it is about."""

AGREEMENT = {"alpha": "alpha", "spearman": "Spearman", "people_alpha": "alpha among people"}


@dataclass(frozen=True)
class Cell:
    """A mean with its 95 % interval, and their positions on the metric's axis in percent."""

    mean: float
    low: float
    high: float
    at: float
    begin: float
    width: float


@dataclass(frozen=True)
class ResultRow:
    """One row of the table: a method, or the real pictures."""

    method: str
    name: str
    note: str
    cells: tuple[Cell | None, ...]
    """One per metric, in the order of `METRIC_NAMES`. None if it was not measured."""


def result_rows(metrics: Mapping[str, Any]) -> list[ResultRow]:
    """The rows of `metrics.json`. Each metric has its own axis, which spans the intervals of all methods."""
    columns = {metric: _column(metrics, metric) for metric in METRIC_NAMES}
    rows = []
    for method in metrics["methods"]:
        name, note = METHOD_NAMES.get(method, (method, ""))
        rows.append(ResultRow(method, name, note, tuple(columns[metric].get(method) for metric in METRIC_NAMES)))
    return rows


def results_table(metrics: Mapping[str, Any]) -> Table:
    """The results as a table for the terminal: mean cosines in [-1, 1] ± half the width of their 95 % intervals."""
    gap = metrics.get("gap_closed_dino")
    caption = (
        f"{metrics['subjects']} subjects, {metrics['images']} pictures per method; ± : 95 %, bootstrap over subjects"
    )
    if gap is not None:
        caption += f"\nBootPIG closes {gap:.0%} of the gap between text only and real pictures (DINO)"
    caption += "".join(f"\n{line}" for line in judge_lines(metrics))
    table = Table(caption=Text(caption), caption_justify="left")
    table.add_column("method")
    for name, _ in METRIC_NAMES.values():
        table.add_column(name, justify="right", no_wrap=True)
    for row in result_rows(metrics):
        cells = ["–" if c is None else f"{c.mean:.3f} ± {(c.high - c.low) / 2:.3f}" for c in row.cells]
        table.add_row(Text(row.name), *cells, style="bold" if row.method == "bootpig" else "")
    return table


def judge_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What a vision model says of each method, one line each, and how well it agrees with people. Empty without one."""
    judge = metrics.get("judge")
    if judge is None:
        return []
    lines = [f"{one_line(judge['model'], 60)} judges from 0 to 4:"]
    for method, scores in judge["methods"].items():
        shown = [f"{name} {_score(scores[question])}" for question, name in JUDGE_NAMES.items()]
        lines.append(f"  {METHOD_NAMES.get(method, (method, ''))[0]}: {', '.join(shown)}")
    for question, facts in judge.get("agreement", {}).items():
        values = [f"{name} {facts[key]:.2f}" for key, name in AGREEMENT.items() if facts[key] is not None]
        values.append(f"{facts['pictures']} pictures")
        lines.append(f"  with people, {JUDGE_NAMES[question]}: {', '.join(values)}")
    return lines


def _score(value: Mapping[str, Any] | None) -> str:
    return "–" if value is None else f"{value['mean']:.2f} ± {(value['ci95'][1] - value['ci95'][0]) / 2:.2f}"


def _column(metrics: Mapping[str, Any], metric: str) -> dict[str, Cell]:
    values = {method: facts[metric] for method, facts in metrics["methods"].items() if facts.get(metric)}
    if not values:
        return {}
    low = min(value["ci95"][0] for value in values.values())
    span = max(max(value["ci95"][1] for value in values.values()) - low, 1e-9)
    cells = {}
    for method, value in values.items():
        begin, end = value["ci95"]
        at, left, width = ((number / span) * 100 for number in (value["mean"] - low, begin - low, end - begin))
        cells[method] = Cell(value["mean"], begin, end, round(at, 2), round(left, 2), round(width, 2))
    return cells
