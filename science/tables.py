"""The tables of docs/science.md and of the terminal, as rows of text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bootpig.stages.sweep.bootstrap import Interval, interval
from science import WORK
from science.results import Cell, Results
from science.statements import NAMES, Statement, difference, paired, verdict

RIVALS = {
    "DreamBooth": "dreambooth",
    "DreamBooth LoRA": "dreambooth-lora",
    "Textual Inversion": "textual-inversion",
    "IP-Adapter": "ip-adapter",
}
"""Other method, as in rivals.yaml → its folder in `WORK`."""

Rows = Sequence[Sequence[str]]
"""The head first."""

HEAD_OF_VERDICTS = ("statement", "source", "measure", "difference", "verdict")


def verdict_rows(statements: Sequence[Statement], results: Results) -> Rows:
    """One row per statement."""
    rows = [HEAD_OF_VERDICTS]
    for each in statements:
        found = difference(each, results)
        rows.append((each.text, each.source, NAMES[each.metric], shown_difference(found), f"**{verdict(found)}**"))
    return rows


def cell_rows(cells: Mapping[str, Cell], baseline: str | None) -> Rows:
    """One row per cell of a sweep; with the difference from the cell `baseline`, if there is one of this name."""
    compared = None if baseline is None else cells.get(baseline)
    rows = [["", *NAMES.values(), *([] if compared is None else [f"DINO − that of “{baseline}”"])]]
    for name, cell in cells.items():
        row = [shown_cell(name), *(shown_value(mean(cell, "bootpig", metric)) for metric in NAMES)]
        if compared is not None:
            row.append(
                "" if name == baseline else shown_difference(paired(cell, "bootpig", compared, "bootpig", "dino"))
            )
        rows.append(row)
    return rows


def table_1_rows(results: Results) -> Rows:
    """BootPIG, the other methods, text only, and real pictures."""
    others = results.cells.get("rivals", {})
    any_other = next((cell for cell in others.values() if None not in cell.seeds.values()), None)
    methods: list[tuple[str, Cell | None, str, str]] = [
        *((name, cell, "bootpig", _seconds_once(cell)) for name, cell in results.cells.get("table-1", {}).items()),
        *(
            (name, others.get(name), name, results.others.get(f"seconds of {folder}", "–"))
            for name, folder in RIVALS.items()
        ),
        ("text only", any_other, "text_only", "none"),
    ]
    rows = [["", *NAMES.values(), "training per subject"]]
    for name, cell, method, took in methods:
        values = [shown_value(None if cell is None else mean(cell, method, metric)) for metric in NAMES]
        rows.append([name, *values, took])
    found = [] if any_other is None else [each.real for each in any_other.seeds.values() if each is not None]
    real = found[0] if found else {}
    return [*rows, ["real", *(f"{real[name]:.3f}" if name in real else "–" for name in NAMES), ""]]


def measured_others() -> dict[str, Any]:
    """What other methods' trainings took, as text, and what `python -m science inpaint` measured, as far as it is in
    `WORK`."""
    found = {f"seconds of {folder}": _seconds_per_subject(folder) for folder in RIVALS.values()}
    found["inpainting"] = read_json(WORK / "inpainting.json")
    return {name: value for name, value in found.items() if value is not None}


def inpainting(results: Results) -> dict[str, Any] | None:
    """What `python -m science inpaint` measured, as text. None if it did not."""
    facts = results.others.get("inpainting")
    if facts is None:
        return None
    return {name: shown_value(Interval(**value)) if isinstance(value, dict) else value for name, value in facts.items()}


def mean(cell: Cell, method: str, metric: str) -> Interval | None:
    """The mean over seeds and subjects, with its interval. None if a run is missing."""
    if None in cell.seeds.values():
        return None
    values = cell.values(method, metric)
    return interval(values) if values.size else None


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def markdown(rows: Rows) -> str:
    """A table of Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines[0] = lines[0].replace("|  |", "| |")
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def shown_difference(found: Interval | None) -> str:
    return "–" if found is None else f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def shown_value(found: Interval | None) -> str:
    return "–" if found is None else f"{found.mean:.3f} ± {(found.high - found.low) / 2:.3f}"


def shown_cell(name: str) -> str:
    """The name of a cell without the sections of its settings."""
    for section in ("evaluate.", "train.", "caption."):
        name = name.replace(section, "")
    return name.replace("=", " ")


def _seconds_once(cell: Cell) -> str:
    """How long the training of a cell took."""
    found = [run.seconds["train"][1] for run in cell.seeds.values() if run is not None and "train" in run.seconds]
    return f"none ({sum(found) / len(found):.0f} s once)" if found else "none"


def _seconds_per_subject(folder: str) -> str | None:
    if (once := read_json(WORK / folder / "training.json")) is not None:
        return f"none ({once['cpu_seconds']:.0f} s once)"
    facts = [read_json(path) for path in sorted((WORK / folder).glob("*/training.json"))]
    seconds = [each["cpu_seconds"] for each in facts if each is not None]
    return f"{sum(seconds) / len(seconds):.0f} s ({len(seconds)} subjects)" if seconds else None
