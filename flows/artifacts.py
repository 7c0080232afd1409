"""Prefect artifacts of a run, shown in the UI: row counts, metrics, curves, contact sheet, report link, progress."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

from bootpig.stages.evaluate.contact_sheet import SheetRow, contact_sheet
from bootpig.stages.evaluate.results import cell_text, heading, result_columns, result_rows
from bootpig.stages.plain_text import markdown
from bootpig.stages.report.charts import charts, picture
from bootpig.stages.report.gather import Report
from bootpig.stages.report.sweep import SweepPage

SHEET_ROWS = 12
"""Maximum rows of the contact sheet. Kept small because artifacts are stored in the server's database."""

UPDATE_SECONDS = 5.0
"""Minimum time between two updates of a progress artifact. Each update is a request."""


def publish(report: Report, place: str) -> None:
    """Create the artifacts of a run, inside its flow. If the server refuses them, only a warning is logged.

    Args:
        place: address of the report.
    """

    def make() -> None:
        key = f"{report.name}-{{}}".format
        create_table_artifact(yield_table(report), key=key("yields"), description=f"Rows of run {report.run_id}")
        if report.metrics is not None:
            create_table_artifact(metrics_table(report.metrics), key=key("metrics"), description=_measured(report))
        if drawn := curves_markdown(report):
            create_markdown_artifact(drawn, key=key("curves"), description="Curves of the training")
        if sheet := sheet_markdown(report):
            create_markdown_artifact(sheet, key=key("contact-sheet"), description="Pictures of the run")
        create_link_artifact(
            place, link_text=f"{place}", key=key("report"), description="The full report, one HTML page"
        )

    _tolerant(make)


def publish_sweep(page: SweepPage, place: str) -> None:
    """Create the artifacts of a sweep, inside its flow. If the server refuses them, only a warning is logged.

    Args:
        place: address of the page.
    """

    def make() -> None:
        key = f"{page.name}-sweep-{{}}".format
        create_table_artifact(page.rows(), key=key("scores"), description=page.note)
        if page.sheet:
            titles = ("reference", *page.shown)
            rows = [SheetRow(entry.caption, [_image(uri) for uri in entry.pictures]) for entry in page.sheet]
            create_markdown_artifact(
                _sheet_markdown(titles, rows[:SHEET_ROWS]),
                key=key("contact-sheet"),
                description="Pictures of each cell",
            )
        create_link_artifact(place, link_text=place, key=key("report"), description="The sweep as one HTML page")

    _tolerant(make)


@contextmanager
def stage_progress(stage: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress artifact of the current flow. Yields `update(done, total, text)`, which may be called at any rate. The
    text is its description."""
    artifact = _tolerant(lambda: create_progress_artifact(0.0, key=f"{stage}-progress", description=stage))
    last, shown = time.monotonic(), 0.0

    def update(done: int, total: int, text: str) -> None:
        nonlocal last, shown
        share = 100.0 * min(done, total) / max(total, 1)
        if artifact is None or share == shown or (time.monotonic() - last < UPDATE_SECONDS and done < total):
            return
        last, shown = time.monotonic(), share
        said = f"{stage}: {text}" if text else stage
        _tolerant(lambda: update_progress_artifact(artifact, progress=share, description=said))

    yield update


def yield_table(report: Report) -> list[dict[str, Any]]:
    """One line per stage: its units, and its rows by status and reason."""
    return [
        {
            "stage": stage.name,
            "units": stage.units,
            "complete": stage.states["complete"],
            "made": stage.made,
            "seconds": round(stage.seconds, 1),
            "rows ok": stage.ok if stage.is_map else "",
            "rejected": _reasons(stage.rejected),
            "failed": _reasons(stage.failed),
        }
        for stage in report.stages
    ]


def metrics_table(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One line per method: each measure's mean ± half the width of its 95 % interval."""
    return [
        {"method": row.name, "what": row.note}
        | {
            heading(facts): cell_text(cell)
            for facts, cell in zip(result_columns(metrics).values(), row.cells, strict=True)
        }
        for row in result_rows(metrics)
    ]


def curves_markdown(report: Report) -> str:
    """The curves of the training as one picture in Markdown, and their last values. Empty if there are none."""
    drawn = charts(report.curves)
    if not drawn:
        return ""
    svg = base64.b64encode(picture(drawn).encode()).decode()
    lines = [f"| {chart.title} | {curve.last:.4g} | {chart.note} |" for chart, curve in drawn]
    table = ["| value | running mean at the end | |", "|---|---|---|", *lines]
    return "\n".join([f"![curves](data:image/svg+xml;base64,{svg})", "", *table])


def sheet_markdown(report: Report) -> str:
    """The contact sheet as Markdown: the model's pictures, or samples of the data set if there is no model yet.

    Empty if there are neither.
    """
    titles: Sequence[str]
    if report.sheet:
        step = max(1, len(report.sheet) // SHEET_ROWS)
        entries = list(report.sheet)[::step][:SHEET_ROWS]
        titles = [title for title, _ in entries[0].pictures]
        rows = [
            SheetRow(
                entry.caption,
                [_image(uri) for _, uri in entry.pictures],
                [entry.judged.get(title, "") for title in titles] if entry.judged else (),
            )
            for entry in entries
        ]
    else:
        titles = ("picture", "mask", "reference")
        rows = [
            SheetRow(example.caption, [_image(uri) for uri in (example.image, example.mask, *example.references[:1])])
            for example in report.examples
        ]
    return _sheet_markdown(titles, rows) if rows else ""


def _sheet_markdown(titles: Sequence[str], rows: Sequence[SheetRow]) -> str:
    buffer = io.BytesIO()
    contact_sheet(titles, rows).save(buffer, "JPEG", quality=85)
    picture = f"![contact sheet](data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()})"
    captions = [f"{number}. {markdown(row.caption)}" for number, row in enumerate(rows, 1)]
    return "\n".join([markdown(", ".join(titles)), "", picture, "", *captions])


def _image(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def _measured(report: Report) -> str:
    metrics = report.metrics or {}
    return f"{metrics.get('subjects')} subjects, {metrics.get('images')} pictures per method; ± is the 95 % interval"


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())


def _tolerant(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:  # no error of the client or the server is worth stopping a run for
        get_run_logger().warning("cannot create an artifact: %s", " ".join(str(error).split())[:500])
        return None
