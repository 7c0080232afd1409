"""Writes docs/science.md from the results: tables, verdicts, figures, pictures. Runs nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path

import jinja2

from science.figures import Point, curves, points
from science.pictures import sheet
from science.record import provenances
from science.results import Cell, Results
from science.statements import OUR_STATEMENTS, STATEMENTS
from science.tables import (
    cell_rows,
    inpainting,
    markdown,
    mean,
    read_json,
    shown_cell,
    table_1_rows,
    verdict_rows,
)

TEMPLATE = Path(__file__).with_name("page.md.jinja")
TUNING = Path(__file__).with_name("tuning.json")
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "numpy")

TITLES = {
    "trained-parts": "Trained parts (table 2)",
    "trained-parts-guidance": "Trained parts with less guidance by the reference",
    "moved-references": "References that are smaller, mirrored and in a corner",
    "references": "Several references (figure 6)",
    "guidance": "Guidance (figure 7)",
    "guidance-five": "Guidance with five references, on validation subjects",
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
    "moved-references": "RSA / all",
    "references": "1 reference",
    "dropping": "both dropped at 0.15",
    "ours": "as shipped",
    "selection": "all samples",
    "views": "cut-outs",
}
"""Sweep → the cell that the others are compared with."""

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
    file = images / "pictures.png"
    pictures = sheet(results, file) or file.exists()
    page = docs / "science.md"
    page.write_text(_text(results, drawn.keys(), pictures), encoding="utf-8")
    return page


def _text(results: Results, drawn: Collection[str], pictures: bool) -> str:
    there, wanted = results.count()
    cost, cost_of_all = _cost(results)
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return template.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        provenance=provenances(results),
        there=there,
        wanted=wanted,
        statements=STATEMENTS,
        our_statements=OUR_STATEMENTS,
        verdicts=lambda statements: markdown(verdict_rows(statements, results)),
        table_1=markdown(table_1_rows(results)),
        sections=[
            (title, markdown(cell_rows(results.cells[sweep], BASELINES.get(sweep))), sweep if sweep in drawn else None)
            for sweep, title in TITLES.items()
            if sweep in results.cells
        ],
        inpainting=inpainting(results),
        tuning=read_json(TUNING) or {},
        pictures=pictures,
        cost=cost,
        cost_of_all=cost_of_all,
        missing=_missing(results),
    )


def provenance() -> str:
    """The commit of this checkout, and the versions of the libraries."""
    commit = _git("rev-parse", "--short=12", "HEAD") or "unknown"
    changed = " with changes" if _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs") else ""
    return f"commit {commit}{changed}; " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES)


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


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
        lines.append(f"- {sweep}: {'; '.join(map(shown_cell, names[:LISTED]))}{more}")
    return "\n".join(lines)


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
