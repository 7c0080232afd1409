"""Writes docs/science.md from the results in the store: tables, verdicts, figures, pictures. Runs nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

from bootpig.stages.sweep.bootstrap import Interval, interval
from science import WORK
from science.figures import Point, curves, points
from science.pictures import sheet
from science.results import Cell, Results
from science.statements import NAMES, OUR_STATEMENTS, STATEMENTS, Statement, difference, paired, verdict

TEMPLATE = Path(__file__).with_name("page.md.jinja")
TUNING = Path(__file__).with_name("tuning.json")
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "numpy")

TITLES = {
    "trained-parts": "Trained parts (table 2)",
    "references": "Several references (figure 6)",
    "guidance": "Guidance (figure 7)",
    "dropping": "Dropping and key scale (appendix)",
    "ours": "Beyond the paper",
    "selection": "Selection",
    "views": "Views",
    "data": "Data size",
    "updates": "Updates",
    "updates-long": "Updates, longest",
}
"""Sweep → heading, in the order of the page. Those of table 1 have a table of their own."""

BASELINES = {
    "trained-parts": "RSA / all",
    "references": "1 reference",
    "dropping": "both dropped at 0.15",
    "ours": "as shipped",
    "selection": "all samples",
    "views": "cut-outs",
}
"""Sweep → the cell that the others are compared with."""

RIVALS = {
    "DreamBooth": "dreambooth",
    "DreamBooth LoRA": "dreambooth-lora",
    "Textual Inversion": "textual-inversion",
    "IP-Adapter": "ip-adapter",
}
"""Other method, as in rivals.yaml → its folder in `WORK`."""

LISTED = 6
"""Missing runs of a sweep that are named."""


def write_page(results: Results, docs: Path) -> Path:
    """Write `science.md` and `images/science/` in the folder `docs`. Returns the page.

    Args:
        results: of all sweeps.
        docs: an existing folder.
    """
    images = docs / "images" / "science"
    images.mkdir(parents=True, exist_ok=True)
    drawn = figures(results)
    for name, svg in drawn.items():
        (images / f"{name}.svg").write_text(svg, encoding="utf-8")
    pictures = sheet(results, images / "pictures.png")
    page = docs / "science.md"
    page.write_text(_text(results, drawn.keys(), pictures), encoding="utf-8")
    return page


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


def _text(results: Results, drawn: Collection[str], pictures: bool) -> str:
    there, wanted = results.count()
    cost, cost_of_all = _cost(results)
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return template.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        provenance=_provenance(),
        there=there,
        wanted=wanted,
        statements=STATEMENTS,
        our_statements=OUR_STATEMENTS,
        verdicts=lambda statements: _verdicts(statements, results),
        table_1=_table_1(results),
        sections=[
            (title, _table(results.cells[sweep], BASELINES.get(sweep)), sweep if sweep in drawn else None)
            for sweep, title in TITLES.items()
            if sweep in results.cells
        ],
        inpainting=_inpainting(),
        tuning=read_json(TUNING) or {},
        pictures=pictures,
        cost=cost,
        cost_of_all=cost_of_all,
        missing=_missing(results),
    )


def _provenance() -> str:
    commit = _git("rev-parse", "--short=12", "HEAD") or "unknown"
    changed = " with changes" if _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs") else ""
    return f"Commit {commit}{changed}; " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES) + "."


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _verdicts(statements: Sequence[Statement], results: Results) -> str:
    lines = ["| statement | source | measure | difference | verdict |", "|---|---|---|---|---|"]
    for each in statements:
        found = difference(each, results)
        row = [each.text, each.source, NAMES[each.metric], _difference(found), f"**{verdict(found)}**"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _table(cells: Mapping[str, Cell], baseline: str | None) -> str:
    compared = None if baseline is None else cells.get(baseline)
    head = [*NAMES.values(), *([] if compared is None else [f"DINO − that of “{baseline}”"])]
    lines = [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for name, cell in cells.items():
        row = [_shown(name), *(_value(mean(cell, "bootpig", metric)) for metric in NAMES)]
        if compared is not None:
            row.append("" if name == baseline else _difference(paired(cell, "bootpig", compared, "bootpig", "dino")))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _table_1(results: Results) -> str:
    other = results.cells.get("rivals", {}).get("other methods")
    rows: list[tuple[str, Cell | None, str, str]] = [
        *((name, cell, "bootpig", "none") for name, cell in results.cells.get("table-1", {}).items()),
        *((name, other, name, _seconds_per_subject(folder)) for name, folder in RIVALS.items()),
        ("text only", other, "text_only", "none"),
    ]
    lines = [f"| | {' | '.join(NAMES.values())} | training per subject |", "|---|---|---|---|---|"]
    for name, cell, method, seconds in rows:
        values = [_value(None if cell is None else mean(cell, method, metric)) for metric in NAMES]
        lines.append(f"| {name} | {' | '.join(values)} | {seconds} |")
    found = [each.real for each in (other.seeds.values() if other is not None else ()) if each is not None]
    real = found[0] if found else {}
    lines.append(f"| real | {' | '.join(f'{real[name]:.3f}' if name in real else '–' for name in NAMES)} | |")
    return "\n".join(lines)


def _seconds_per_subject(folder: str) -> str:
    if (once := read_json(WORK / folder / "training.json")) is not None:
        return f"none ({once['cpu_seconds']:.0f} s once)"
    facts = [read_json(path) for path in sorted((WORK / folder).glob("*/training.json"))]
    seconds = [each["cpu_seconds"] for each in facts if each is not None]
    return f"{sum(seconds) / len(seconds):.0f} s ({len(seconds)} subjects)" if seconds else "–"


def _inpainting() -> dict[str, Any] | None:
    facts = read_json(WORK / "inpainting.json")
    if facts is None:
        return None
    return {name: _value(Interval(**value)) if isinstance(value, dict) else value for name, value in facts.items()}


def _cost(results: Results) -> tuple[str, str]:
    """The table of seconds, and a sentence on what all runs take."""
    lines = ["| sweep | runs | training, s | evaluation, s |", "|---|---|---|---|"]
    seen: set[str] = set()
    seconds, updates, evaluations = {"train": 0.0, "evaluate": 0.0}, 0, 0
    for sweep, cells in results.cells.items():
        runs = [each for cell in cells.values() for each in cell.seeds.values() if each is not None]
        sums = {"train": 0.0, "evaluate": 0.0}
        for each in runs:
            for stage, (place, took) in each.seconds.items():
                if place not in seen:
                    seen.add(place)
                    sums[stage] += took
                    updates += each.updates if stage == "train" else 0
                    evaluations += stage == "evaluate"
        seconds = {stage: value + sums[stage] for stage, value in seconds.items()}
        lines.append(f"| {sweep} | {len(runs)} | {sums['train']:.0f} | {sums['evaluate']:.0f} |")
    plan = results.plan
    said = (
        f"All sweeps together have {plan.trainings} trainings with {plan.updates:,} updates, and {plan.evaluations} "
        "evaluations."
    )
    if updates and evaluations:
        per_update, per_evaluation = seconds["train"] / updates, seconds["evaluate"] / evaluations
        hours = (per_update * plan.updates + per_evaluation * plan.evaluations) / 3600
        said += (
            f" At the {per_update:.2f} s per update and {per_evaluation:.0f} s per evaluation of the runs above, that "
            f"is {hours:.1f} h, without data and other methods."
        )
    return "\n".join(lines), said


def _missing(results: Results) -> str:
    lines = [f"- {sweep}: {reason}" for sweep, reason in results.unreadable.items()]
    for sweep, names in results.missing().items():
        more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
        lines.append(f"- {sweep}: {'; '.join(map(_shown, names[:LISTED]))}{more}")
    return "\n".join(lines) or "Nothing."


def figures(results: Results) -> dict[str, str]:
    """Name of a sweep → SVG, for those of which something is measured."""
    found = {}
    for sweep in ("trained-parts", "references", "dropping", "ours"):
        rows = [(name, _point(cell)) for name, cell in results.cells.get(sweep, {}).items()]
        if any(value is not None for _, value in rows):
            found[sweep] = points(TITLES[sweep], "DINO", rows)
    lines: dict[str, list[tuple[float, Point]]] = {}
    for cell in results.cells.get("guidance", {}).values():
        by_text = f"text {cell.settings['evaluate.guidance_scale']}"
        if (value := _point(cell)) is not None:
            lines.setdefault(by_text, []).append((_number(cell, "evaluate.reference_guidance_scale"), value))
    if lines:
        found["guidance"] = curves(TITLES["guidance"], "guidance by the reference", "DINO", lines)
    for sweep, field, axis in (("data", "caption.count", "samples"), ("updates", "train.steps", "updates")):
        cells = [*results.cells.get(sweep, {}).values(), *results.cells.get(f"{sweep}-long", {}).values()]
        measured = {_number(cell, field): value for cell in reversed(cells) if (value := _point(cell)) is not None}
        if measured:
            found[sweep] = curves(TITLES[sweep], axis, "DINO", {"BootPIG": sorted(measured.items())})
    return found


def _number(cell: Cell, field: str) -> float:
    return float(str(cell.settings[field]))


def _point(cell: Cell) -> Point | None:
    found = mean(cell, "bootpig", "dino")
    return None if found is None else Point(found.mean, found.low, found.high)


def _difference(found: Interval | None) -> str:
    return "–" if found is None else f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def _value(found: Interval | None) -> str:
    return "–" if found is None else f"{found.mean:.3f} ± {(found.high - found.low) / 2:.3f}"


def _shown(cell: str) -> str:
    """The name of a cell without the sections of its settings."""
    for section in ("evaluate.", "train.", "caption."):
        cell = cell.replace(section, "")
    return cell.replace("=", " ")
