"""Writes the results of an evaluation: the contact sheet, the scores of all pictures, and the metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from bootpig.stages.evaluate.contact_sheet import SheetRow, contact_sheet
from bootpig.stages.evaluate.drawing import METHODS
from bootpig.stages.evaluate.gallery import PictureFiles, read_drawn_or_grey
from bootpig.stages.evaluate.results import JUDGED, judge_texts
from bootpig.stages.evaluate.scoring import Scores

SHEET = {"text_only": "text only", "untrained": "untrained", "bootpig": "trained"}
"""The contact sheet's columns after the reference, before those of the rivals."""

SHEET_ROWS = 64


def write_results(
    workdir: Path, scores: Scores, references: Mapping[str, PictureFiles], metrics: Mapping[str, Any]
) -> None:
    """Write `contact_sheet.png`, `scores.parquet` and `metrics.json` to `workdir`, which has the pictures in `images`,
    and the scores of a judge if there is one.

    Args:
        references: the prepared references by name of the subject.
        metrics: the content of `metrics.json`.
    """
    images = workdir / "images"
    columns = SHEET | {name: name for name in scores.methods if name not in METHODS}
    judged = judge_texts((workdir / JUDGED).read_bytes()) if "judge" in metrics else {}
    firsts = [row for row in scores.rows if row.file.endswith("-00.png")]
    # If there are more captions than fit on a sheet, show some that are spread over the subjects.
    shown = [firsts[int(i)] for i in np.linspace(0, len(firsts) - 1, min(len(firsts), SHEET_ROWS))]
    sheet = contact_sheet(
        ("reference", *columns.values()),
        [
            SheetRow(
                row.prompt,
                PictureFiles(
                    [references[row.subject.name].paths[0], *(images / method / row.file for method in columns)],
                    read_drawn_or_grey,
                ),
                ["", *(judged[f"images/{method}/{row.file}"] for method in columns)] if judged else (),
            )
            for row in shown
        ],
    )
    sheet.save(workdir / "contact_sheet.png")
    pq.write_table(scores.table(), workdir / "scores.parquet", compression="zstd")
    (workdir / "metrics.json").write_text(f"{json.dumps(metrics, indent=2)}\n", encoding="utf-8")
