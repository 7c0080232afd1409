"""`bootpig status`: which units of each stage are complete in the store, and which are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from bootpig.flows.rounds import with_trained_models
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.survey import StageSurvey, UnitState
from bootpig.stages.train.curves import CHARTS, NEWEST_BYTES, newest, read_log

STATES: tuple[UnitState, ...] = ("complete", "stale", "failed", "pending")


def status(config: PipelineConfig) -> dict[str, Any]:
    """The root and, for every stage, its fingerprint, path, units by state, and rows by status and reason.

    Of train also `newest`: its steps, and the newest value of each name in its log, finished or running.

    Raises:
        ModelError, StoreError: a model is missing, or the root cannot be opened.
    """
    engine = Engine(with_trained_models(config))
    surveys = engine.survey_all()
    facts = {name: _facts(engine, survey) for name, survey in surveys.items()}
    if "train" in surveys:
        values = newest(read_log(engine.root, surveys["train"], NEWEST_BYTES))
        facts["train"]["newest"] = {"steps": config.train.steps, **values} if values else {}
    return {"root": config.root, "stages": facts}


def _facts(engine: Engine, survey: StageSurvey) -> dict[str, Any]:
    return {
        "fingerprint": survey.fingerprint,
        "path": engine.root.address(survey.path) if survey.path else "",
        "units": {state: survey.count(state) for state in STATES},
        "rows": survey.rows(),
    }


def status_table(facts: dict[str, Any]) -> Table:
    """The status as a table for the terminal."""
    table = Table("stage", "fingerprint", *STATES, "rows ok", "rejected", "failed rows", title=Text(facts["root"]))
    for name, stage in facts["stages"].items():
        rows = stage["rows"]
        table.add_row(
            name,
            stage["fingerprint"] or "not known yet",
            *(str(stage["units"][state] or "·") for state in STATES),
            str(rows["ok"] or "·"),
            reasons(rows["rejected"]),
            reasons(rows["failed"]),
        )
    if values := facts["stages"].get("train", {}).get("newest"):
        table.caption = Text(newest_line(values))
        table.caption_justify = "left"
    return table


def newest_line(values: Mapping[str, float]) -> str:
    """`train: step 120 of 300, loss 0.1234, …`, from the `newest` of a status."""
    shown = [f"{name.replace('_', ' ')} {values[name]:.4g}" for name in CHARTS if name in values]
    return ", ".join([f"train: step {values['step']:,} of {values['steps']:,}", *shown])


def reasons(counts: dict[str, int]) -> str:
    """`12 (low_score 8, too_small 4)`."""
    if not counts:
        return "·"
    return f"{sum(counts.values())} ({', '.join(f'{reason} {count}' for reason, count in counts.items())})"
