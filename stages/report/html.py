"""Builds the report: one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bootpig.stages.evaluate.measures.names import measured
from bootpig.stages.evaluate.results import (
    heading,
    judge_lines,
    measure_groups,
    result_rows,
    results_table,
    unscored_reasons,
)
from bootpig.stages.report.charts import charts
from bootpig.stages.report.gather import Report
from bootpig.stages.report.selection import SelectionFacts

__all__ = ["build_report", "results_table"]

TEMPLATES = Path(__file__).parent / "templates"
FIRST_ENTRIES = 12
"""Captions of the contact sheet that are shown at first; the others unfold."""
FIRST_SUBJECTS = 20
MOST_SUBJECTS = 1000
"""Subjects that unfold; a data set of an LLM has thousands."""


def build_report(report: Report) -> str:
    """The page, UTF-8. Whatever comes from a caption, a file or an error is escaped, and the page forbids scripts."""
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            widest=max((stage.rows for stage in report.stages), default=0) or 1,
            reasons=[
                (stage.name, reason, count, stage.meanings.get(reason, "an error; its message is in the unit's log"))
                for stage in report.stages
                for reason, count in [*stage.rejected.items(), *stage.failed.items()]
            ],
            charts=charts(report.curves),
            results=result_rows(report.metrics) if report.metrics else [],
            groups=measure_groups(report.metrics) if report.metrics else [],
            unscored=unscored_lines(report),
            judge=judge_lines(report.metrics or {}),
            heading=heading,
            headlines=headlines(report),
            first_entries=FIRST_ENTRIES,
            first_subjects=FIRST_SUBJECTS,
            most_subjects=MOST_SUBJECTS,
        )
    )


def build_selection(name: str, selection: SelectionFacts) -> str:
    """The page of a selection alone, as a preview for `name`, a configuration. UTF-8, likewise escaped."""
    template = page_environment().get_template("select.html.j2")
    return template.render(name=name, selection=selection, most_subjects=MOST_SUBJECTS)


def page_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "words": words}
    return environment


def headlines(report: Report) -> list[tuple[str, str, str]]:
    """The most important figures, each as (figure, what it is, details)."""
    found = []
    if report.metrics:
        methods, gap = report.metrics["methods"], report.metrics.get("gap_closed_dino")
        means = {
            (method, metric): facts[metric]["mean"]
            for method, facts in methods.items()
            for metric in measured(report.metrics)
            if facts.get(metric)
        }
        likeness = [means.get((method, "dino")) for method in ("text_only", "bootpig", "real")]
        if gap is not None and None not in likeness:
            text, trained, real = likeness
            found.append(
                (
                    f"{gap:.0%}",
                    "of the gap closed",
                    f"DINO: {text:.3f} from text only, {trained:.3f} with BootPIG, {real:.3f} among real pictures",
                )
            )
        before, after = means.get(("text_only", "clip_t")), means.get(("bootpig", "clip_t"))
        if before and after:
            found.append(
                (
                    f"{after / before - 1:+.1%}".replace("-", "−"),
                    "fidelity to the caption",
                    f"CLIP-T: {before:.3f} from text only, {after:.3f} with BootPIG",
                )
            )
    maps = [stage for stage in report.stages if stage.is_map]
    if maps and maps[0].rows:
        what = "pictures" if maps[0].name == "pictures" else "captions"
        chosen = None if report.selection is None else report.selection.selected
        share = f"{maps[-1].ok / maps[0].rows:.0%} of {maps[0].rows:,} {what} came through every stage"
        found.append(
            (
                f"{maps[-1].ok if chosen is None else chosen:,}",
                "samples to train on",
                share if chosen is None else f"selected; {share}",
            )
        )
    return found


def unscored_lines(report: Report) -> list[tuple[str, str]]:
    """The measures that some pictures have no value of, as (name, reasons with their numbers)."""
    metrics = report.metrics or {"methods": {}}
    found = [(facts.title, unscored_reasons(metrics, name)) for name, facts in measured(metrics).items()]
    return [(title, reasons) for title, reasons in found if reasons]


def duration(seconds: float) -> str:
    """`0.4 s`, `41 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def words(code: str) -> str:
    """`touches_border` → `touches border`."""
    return code.replace("_", " ")
