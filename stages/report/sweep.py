"""The page of a sweep: a table with intervals and paired differences, and the same captions drawn by each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bootpig.stages.evaluate.measures.names import MEASURES
from bootpig.stages.evaluate.results import METHOD_NAMES, heading
from bootpig.stages.report.html import page_environment
from bootpig.stages.report.pictures import UNREADABLE, data_uri
from bootpig.stages.sweep.scores import RunScores
from bootpig.stages.sweep.summary import OURS, CellSummary, Measured
from bootpig.storage.root import Root

SHEET_ROWS = 24
"""Captions on the page."""
FIRST_ROWS = 8
"""Captions that are shown at first; the others unfold."""
SHEET_CELLS = 12
"""Cells with pictures. More would not fit beside each other."""


@dataclass(frozen=True)
class SweepEntry:
    """One caption of one subject: the reference, then its picture by each cell, as data URIs."""

    caption: str
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """An interval on an axis, in percent of its width."""

    at: float
    begin: float
    width: float
    zero: float | None
    """Where 0 is, for differences."""


@dataclass(frozen=True)
class SweepPage:
    """The content of the page."""

    name: str
    note: str
    """What the figures are, in one sentence."""
    measures: Sequence[str]
    cells: Sequence[CellSummary]
    shown: Sequence[str] = ()
    """The cells with pictures on the sheet."""
    sheet: Sequence[SweepEntry] = ()
    sweep: str = ""
    """The sweep's file as YAML."""

    def rows(self) -> list[dict[str, Any]]:
        """The table for Prefect: one line per cell, and one per failed run."""
        lines: list[dict[str, Any]] = []
        for cell in self.cells:
            line: dict[str, Any] = {"cell": cell.name, "runs": f"{cell.runs - len(cell.failed)}/{cell.runs}"}
            for measure in self.measures:
                line[heading(MEASURES[measure])] = shown(cell.scores.get((OURS, measure)))
                if any(other.differences for other in self.cells):
                    difference = cell.differences.get((OURS, measure))
                    line[f"{heading(MEASURES[measure])} − baseline"] = shown(difference, signed=True)
            lines.append(line)
            lines += [{"cell": f"{cell.name}, {seed}", "runs": f"failed: {why}"} for seed, why in cell.failed.items()]
        return lines


def shown(measured: Measured | None, signed: bool = False) -> str:
    """`0.512 [0.480, 0.544]`, or `–` if there is none."""
    if measured is None:
        return "–"
    numbers = (measured.interval.mean, measured.interval.low, measured.interval.high)
    mean, low, high = (f"{number:{'+' if signed else ''}.3f}".replace("-", "−") for number in numbers)
    return f"{mean} [{low}, {high}]"


def build_sweep(page: SweepPage) -> str:
    """The page, UTF-8. Whatever comes from a file or an error is escaped, and the page forbids scripts."""
    kinds = [(method, measure) for method in _methods(page.cells) for measure in page.measures]
    return (
        page_environment()
        .get_template("sweep.html.j2")
        .render(
            page=page,
            ours=OURS,
            methods={method: METHOD_NAMES.get(method, (method, "")) for method in _methods(page.cells)},
            names={name: (heading(facts), facts.note) for name, facts in MEASURES.items()},
            shown=shown,
            scores={kind: _places(page.cells, "scores", kind) for kind in kinds},
            differences={kind: _places(page.cells, "differences", kind) for kind in kinds},
            first_rows=FIRST_ROWS,
        )
    )


def read_sweep_sheet(root: Root, runs: Sequence[RunScores], count: int = SHEET_ROWS) -> list[SweepEntry]:
    """The first picture of captions that all `runs`, one per cell, have drawn: at most `count`, evenly spread. Not
    selected. Empty if they have none in common, or a picture is not readable."""
    drawn: list[dict[tuple[str, str], str]] = []
    for run in runs:
        rows = [row for row in run.pictures if row["method"] == OURS and str(row["file"]).endswith("-00.png")]
        rows = [row for row in rows if row.get("status", "ok") == "ok"]
        drawn.append({(row["subject"], row["prompt"]): f"{run.folder}/{row['file']}" for row in rows})
    common = [key for key in drawn[0] if all(key in files for files in drawn)] if drawn else []
    chosen = [common[index * len(common) // min(count, len(common))] for index in range(min(count, len(common)))]
    try:
        return [
            SweepEntry(
                prompt,
                tuple(
                    data_uri(root.read(path))
                    for path in (
                        f"{runs[0].folder}/images/reference/{subject}-00.png",
                        *(files[subject, prompt] for files in drawn),
                    )
                ),
            )
            for subject, prompt in chosen
        ]
    except UNREADABLE:
        return []


def _methods(cells: Sequence[CellSummary]) -> list[str]:
    """The methods that any cell measured, ours first."""
    found = dict.fromkeys(method for cell in cells for method, _ in cell.scores)
    return sorted(found, key=lambda method: method != OURS)


def _places(cells: Sequence[CellSummary], of: str, kind: tuple[str, str]) -> Mapping[str, Place]:
    """Cell → its interval on the axis that spans those of all cells, and 0 for differences."""
    found = {cell.name: getattr(cell, of)[kind].interval for cell in cells if kind in getattr(cell, of)}
    if not found:
        return {}
    zeros = [0.0] if of == "differences" else []
    low = min([*zeros, *(value.low for value in found.values())])
    span = max(max([*zeros, *(value.high for value in found.values())]) - low, 1e-9)

    def percent(value: float) -> float:
        return round((value - low) / span * 100, 2)

    return {
        name: Place(
            percent(value.mean),
            percent(value.low),
            round((value.high - value.low) / span * 100, 2),
            percent(0.0) if zeros else None,
        )
        for name, value in found.items()
    }
