"""`bootpig plan`: what a run would do and what it would cost. Changes nothing."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from bootpig.flows.runs.estimates import (
    ASSUMPTIONS,
    GPU_TFLOP_PER_SECOND,
    USD_PER_GPU_HOUR,
    caption_assumptions,
    operations,
    store_bytes,
)
from bootpig.stages.caption.llm.spending import estimate
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError, MapStage, Stage
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.preflight import missing_models
from bootpig.stages.engine.survey import StageSurvey
from bootpig.storage.jsonio import parse_json
from bootpig.storage.root import Root


def plan(config: PipelineConfig) -> dict[str, Any]:
    """What a run would make, per stage: units, samples, GPU-hours, cost, bytes in the store, seconds as measured. Also
    the missing models, and the assumptions behind the figures.

    Raises:
        StoreError: the root cannot be opened.
    """
    engine = Engine(config)
    missing = missing_models(engine, engine.graph.stages)
    stages: dict[str, Any] = {}
    blocked = False
    dirty = False
    for name in engine.graph.stages:
        blocked = blocked or bool(missing[name])
        survey = None if blocked else engine.survey(name)
        facts = _stage(engine, name, survey, dirty)
        dirty = dirty or facts["units"]["due"] > 0
        stages[name] = facts
        missing[name] += _unready(engine.make(name), facts)
    total = {key: sum(stage[key] for stage in stages.values()) for key in ("gpu_hours", "cost_usd", "bytes")}
    return {
        "root": config.root,
        "stages": stages,
        "total": total,
        "missing": list(dict.fromkeys(line for lines in missing.values() for line in lines)),
        "assumptions": [*ASSUMPTIONS, *caption_assumptions(config, stages["caption"].get("llm"))],
    }


def _unready(stage: Stage, facts: dict[str, Any]) -> list[str]:
    """What a source with units to make lacks, such as a key."""
    try:
        if isinstance(stage, MapStage) and facts["units"]["due"]:
            stage.check_ready()
    except InputError as error:
        return [str(error)]
    return []


def _stage(engine: Engine, name: str, survey: StageSurvey | None, dirty: bool) -> dict[str, Any]:
    config = engine.config
    units = len(engine.units()) if engine.graph.is_map(name) else 1
    cached = survey.count("complete") if survey is not None else 0
    if not engine.graph.is_map(name) and dirty:
        cached = 0  # its data set is about to change
    due = units - cached
    samples = due * config.unit_size if engine.graph.is_map(name) else due
    gpu_hours = samples * operations(config, name) / GPU_TFLOP_PER_SECOND / 3600
    pace = _measured(engine.root, survey) if survey is not None else None
    size = _measured_bytes(engine.root, survey) if survey is not None else None
    llm = config.caption.openai if name == "caption" else None
    asked = {} if llm is None else {"llm": estimate(llm, due, config.unit_size)}
    cost = gpu_hours * USD_PER_GPU_HOUR + sum(facts["cost_usd"] or 0.0 for facts in asked.values())
    return {
        "units": {"total": units, "cached": cached, "due": due},
        "samples": samples,
        "seconds": None if pace is None else round(pace * due, 1),
        "gpu_hours": gpu_hours,
        "cost_usd": cost,
        "bytes": round(samples * store_bytes(config, name) if size is None else due * size),
        **asked,
    }


def _measured(root: Root, survey: StageSurvey) -> float | None:
    """Mean seconds per unit, from the last log line of each unit made under this fingerprint."""
    names = [name for name in root.names(survey.path) if name.startswith("log-")] if survey.path else []
    seconds = []
    for data in root.read_many([f"{survey.path}/{name}" for name in names]).values():
        done = [record for line in data.splitlines() if (record := parse_json(line)).get("event") == "done"]
        seconds += [done[-1]["seconds"]] if done else []
    return sum(seconds) / len(seconds) if seconds else None


def _measured_bytes(root: Root, survey: StageSurvey) -> float | None:
    """Mean size of the complete units' payloads."""
    if not survey.markers:
        return None
    names = root.names(survey.path)
    return sum(names.get(marker.payload, 0) for marker in survey.markers.values()) / len(survey.markers)


def plan_table(facts: dict[str, Any]) -> Table:
    """The plan as a table."""
    table = Table(
        "stage", "units", "cached", "due", "samples due", "seconds", "GPU-hours", "USD", "GB", title=facts["root"]
    )
    for name, stage in facts["stages"].items():
        units = stage["units"]
        seconds = "–" if stage["seconds"] is None else f"{stage['seconds']:.0f}"
        numbers = [str(units["total"]), str(units["cached"]), str(units["due"]), str(stage["samples"]), seconds]
        table.add_row(name, *numbers, *_costs(stage))
    table.add_row("total", *[""] * 5, *_costs(facts["total"]))
    return table


def _costs(facts: dict[str, Any]) -> tuple[str, str, str]:
    return _short(facts["gpu_hours"]), f"{facts['cost_usd']:.2f}", _short(facts["bytes"] / 1e9)


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
