"""`bootpig status`: which units of each stage are complete in the store, and which are not."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from bootpig.flows.rounds import with_view_model
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.survey import StageSurvey, UnitState

STATES: tuple[UnitState, ...] = ("complete", "stale", "failed", "pending")


def status(config: PipelineConfig) -> dict[str, Any]:
    """The root and, for every stage, its fingerprint, path, units by state, and rows by status and reason.

    Raises:
        ModelError, StoreError: a model is missing, or the root cannot be opened.
    """
    engine = Engine(with_view_model(config))
    surveys = engine.survey_all()
    return {"root": config.root, "stages": {name: _facts(engine, survey) for name, survey in surveys.items()}}


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
    return table


def reasons(counts: dict[str, int]) -> str:
    """`12 (low_score 8, too_small 4)`."""
    if not counts:
        return "·"
    return f"{sum(counts.values())} ({', '.join(f'{reason} {count}' for reason, count in counts.items())})"
