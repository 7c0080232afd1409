"""Shows `metrics.json` as a table, with the same rows in the terminal and in the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from bootpig.stages.evaluate.measures.names import DIRECTION, MeasureFacts, measured, unscored
from bootpig.stages.plain_text import one_line
from bootpig.storage.tables import read_table

METHOD_NAMES = {
    "text_only": ("text only", "the base model, with the caption only"),
    "untrained": ("untrained", "BootPIG before training"),
    "bootpig": ("BootPIG", "trained, with the reference"),
    "bootpig_no_reference": ("BootPIG, no reference", "trained, with the caption only"),
    "round_before": ("BootPIG, round before", "the model that drew the views, with the reference"),
    "real": ("real pictures", "compared with each other: the ceiling"),
}

COLUMNS = 4
"""Measures side by side in a table. More are shown in further tables below."""

JUDGED = "judge.parquet"
"""The scores of a vision model, one row per method and picture."""

JUDGE_NAMES = {"concept": "subject", "following": "caption"}
"""Question to a judge → what it is about."""

JUDGE_FACTS = {
    question: MeasureFacts(f"judge: {name}", f"how well the picture shows the {name}, from 0 to 4, to a model", "judge")
    for question, name in JUDGE_NAMES.items()
}
"""The columns of a judge, after those of the measures."""

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
    counted: str = ""
    """`n of m` pictures, if some have no value."""


@dataclass(frozen=True)
class ResultRow:
    """One row of the table: a method, or the real pictures."""

    method: str
    name: str
    note: str
    cells: tuple[Cell | None, ...]
    """One per column, in the order of `result_columns`. None if it was not measured."""


def result_columns(metrics: Mapping[str, Any]) -> dict[str, MeasureFacts]:
    """The columns of `metrics.json`: its measures, then the questions to its judge, if there is one."""
    return measured(metrics) | (JUDGE_FACTS if metrics.get("judge") else {})


def result_rows(metrics: Mapping[str, Any]) -> list[ResultRow]:
    """The rows of `metrics.json`. Each column has its own axis, which spans the intervals of all methods."""
    names = result_columns(metrics)
    columns = {name: _column(metrics, name) for name in names}
    rows = []
    for method in metrics["methods"]:
        name, note = METHOD_NAMES.get(method, (method, ""))
        rows.append(ResultRow(method, name, note, tuple(columns[measure].get(method) for measure in names)))
    return rows


def measure_groups(metrics: Mapping[str, Any]) -> list[tuple[range, list[MeasureFacts]]]:
    """The columns of `metrics.json`, at most `COLUMNS` in each group, with the places of their cells in a row."""
    facts = list(result_columns(metrics).values())
    count = -(-len(facts) // COLUMNS)
    size = -(-len(facts) // max(count, 1))  # groups of about the same size
    return [(range(at, min(at + size, len(facts))), facts[at : at + size]) for at in range(0, len(facts), size or 1)]


def heading(facts: MeasureFacts) -> str:
    """The name of a measure with an arrow that says which way is better."""
    return f"{facts.title} {DIRECTION[facts.higher_is_better]}"


def results_table(metrics: Mapping[str, Any]) -> Group:
    """The results as tables for the terminal: means ± half the width of their 95 % intervals."""
    gap = metrics.get("gap_closed_dino")
    caption = (
        f"{metrics['subjects']} subjects, {metrics['images']} pictures per method; ± : 95 %, bootstrap over subjects"
    )
    if gap is not None:
        caption += f"\nBootPIG closes {gap:.0%} of the gap between text only and real pictures (DINO)"
    for name, facts in measured(metrics).items():
        if reasons := unscored_reasons(metrics, name):
            caption += f"\n{facts.title}: not measured in some pictures ({reasons})"
    caption += "".join(f"\n{line}" for line in judge_lines(metrics))
    rows, tables = result_rows(metrics), []
    for places, group in measure_groups(metrics):
        table = Table()
        table.add_column("method")
        for facts in group:
            table.add_column(heading(facts), justify="right", no_wrap=True)
        for row in rows:
            cells = [cell_text(row.cells[place]) or "–" for place in places]
            table.add_row(Text(row.name), *cells, style="bold" if row.method == "bootpig" else "")
        tables.append(table)
    return Group(*tables, Text(caption))


def cell_text(cell: Cell | None) -> str:
    """`0.550 ± 0.040`, with `(7 of 8)` if some pictures have no value. Empty if it was not measured."""
    if cell is None:
        return ""
    return f"{cell.mean:.3f} ± {(cell.high - cell.low) / 2:.3f}{f' ({cell.counted})' if cell.counted else ''}"


def unscored_reasons(metrics: Mapping[str, Any], name: str) -> str:
    """Why pictures have no value of a measure, over all methods: `3 no_detection, 1 no_scene`."""
    counts: dict[str, int] = {}
    for reasons in metrics.get("unscored", {}).get(name, {}).values():
        for reason, count in reasons.items():
            counts[reason] = counts.get(reason, 0) + count
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))


def judge_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Which vision model judges, the scores it did not give, and how well it agrees with people. Empty without one."""
    judge = metrics.get("judge")
    if judge is None:
        return []
    missing = judge.get("missing", {})
    codes = ", ".join(f"{count} {code}" for code, count in missing.items())
    lost = f"; {sum(missing.values())} scores are missing ({codes})" if missing else ""
    lines = [f"{one_line(judge['model'], 60)} judges from 0 to 4{lost}"]
    for question, facts in judge.get("agreement", {}).items():
        values = [f"{name} {facts[key]:.2f}" for key, name in AGREEMENT.items() if facts[key] is not None]
        values.append(f"{facts['pictures']} pictures")
        lines.append(f"judge and people, {JUDGE_NAMES[question]}: {', '.join(values)}")
    return lines


def judge_texts(table: bytes) -> dict[str, str]:
    """The scores of each picture: its file → `subject 3, caption 4`.

    Args:
        table: the content of `JUDGED`.

    Raises:
        ValueError, KeyError: it is damaged.
    """
    rows = read_table(table).to_pylist()
    return {
        row["file"]: ", ".join(
            f"{name} {'–' if row[question] is None else row[question]}" for question, name in JUDGE_NAMES.items()
        )
        for row in rows
    }


def _column(metrics: Mapping[str, Any], name: str) -> dict[str, Cell]:
    methods = metrics["judge"]["methods"] if name in JUDGE_FACTS else metrics["methods"]
    values = {method: facts[name] for method, facts in methods.items() if facts.get(name)}
    if not values:
        return {}
    low = min(value["ci95"][0] for value in values.values())
    span = max(max(value["ci95"][1] for value in values.values()) - low, 1e-9)
    cells = {}
    for method, value in values.items():
        begin, end = value["ci95"]
        at, left, width = ((number / span) * 100 for number in (value["mean"] - low, begin - low, end - begin))
        lost = unscored(metrics, method, name)
        counted = f"{metrics['images'] - metrics.get('not_finite', {}).get(method, 0) - lost} of {metrics['images']}"
        cells[method] = Cell(
            value["mean"], begin, end, round(at, 2), round(left, 2), round(width, 2), counted if lost else ""
        )
    return cells
