"""`bootpig plan`: what a run would do and what it would cost. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from bootpig.flows.rounds import with_trained_models
from bootpig.models.pretrained.source import ModelSource
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError, Stage
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.estimates import Estimate, SampleShape, Workload
from bootpig.stages.engine.memory import ASSUMPTION as MEMORY_ASSUMPTION
from bootpig.stages.engine.memory import Memory
from bootpig.stages.engine.preflight import all_models, missing_models
from bootpig.stages.engine.survey import StageSurvey
from bootpig.stages.plain_text import one_line
from bootpig.storage.jsonio import parse_json
from bootpig.storage.root import Root

GPU_TFLOP_PER_SECOND = 0.4 * 800.0
USD_PER_GPU_HOUR = 2.5

ASSUMPTIONS = (
    f"one H100 at 40 % of {GPU_TFLOP_PER_SECOND / 0.4:.0f} TFLOP/s, {USD_PER_GPU_HOUR:.2f} USD an hour",
    "no sample is rejected, so every stage sees all of them",
    "bytes: this store's own units, where it has any; else as below",
    MEMORY_ASSUMPTION,
    "seconds: this store's own logs of the same stage and settings, where it has any",
)


def plan(config: PipelineConfig, known: Mapping[str, type[Stage]] | None = None) -> dict[str, Any]:
    """What a run would make, per stage: units, samples, GPU-hours, cost, bytes in the store, seconds as measured. Also
    the licences of the models, warnings, the missing models, and the assumptions behind the figures.

    Args:
        known: the stages there are, as in `Engine`; the registry's where none are given.

    Raises:
        StoreError: the root cannot be opened.
    """
    engine = Engine(with_trained_models(config), known)
    missing = missing_models(engine, engine.graph.stages)
    stages: dict[str, Any] = {}
    shapes: dict[str, SampleShape] = {}
    assumptions, warnings = list(ASSUMPTIONS), list[str]()
    blocked = False
    dirty = False
    for name in engine.graph.stages:
        blocked = blocked or bool(missing[name])
        survey = None if blocked else engine.survey(name)
        units = _units(engine, name, survey, dirty)
        dirty = dirty or units["due"] > 0
        stage = engine.make(name)
        above = engine.graph.upstream[name][:1]
        samples = units["due"] * (config.unit_size if engine.graph.is_map(name) else 1)
        work = Workload(units["due"], samples, shapes[above[0]] if above else SampleShape())
        estimate = stage.estimate(work)
        shapes[name] = estimate.shape
        assumptions += estimate.assumptions
        stages[name] = _facts(engine.root, survey, units, work, estimate)
        stages[name]["licences"] = {} if missing[name] else _licences(stage)
        missing[name] += _unready(stage, units)
        warnings += _warnings(stage) if units["due"] else []
    total = {key: sum(stage[key] for stage in stages.values()) for key in ("gpu_hours", "cost_usd", "bytes")}
    return {
        "root": config.root,
        "stages": stages,
        "total": total,
        "warnings": list(dict.fromkeys(warnings)),
        "missing": list(dict.fromkeys(line for lines in missing.values() for line in lines)),
        "assumptions": list(dict.fromkeys(assumptions)),
    }


def _licences(stage: Stage) -> dict[str, dict[str, str | None]]:
    """By the config field that names it, each model and the licence in its card; None if that is not known."""
    from bootpig.models.pretrained.licences import fetch_licence

    found = {role: source for role, source in all_models(stage).items() if isinstance(source, ModelSource)}
    return {role: {"model": source.source, "licence": fetch_licence(source)} for role, source in found.items()}


def _warnings(stage: Stage) -> list[str]:
    try:
        return stage.warnings()
    except (ValueError, OSError):  # a model that it would look at is missing, which is said anyway
        return []


def _unready(stage: Stage, units: Mapping[str, int]) -> list[str]:
    """What a stage with something to make lacks: a key, a picture that can be decoded."""
    try:
        if units["due"]:
            stage.check_ready()
    except InputError as error:
        return str(error).splitlines()
    return []


def _units(engine: Engine, name: str, survey: StageSurvey | None, dirty: bool) -> dict[str, int]:
    """How many units a stage has, and how many of them are due; `dirty`: a stage above it has some to make."""
    total = len(engine.units()) if engine.graph.is_map(name) else 1
    cached = survey.count("complete") if survey is not None else 0
    if not engine.graph.is_map(name) and dirty:
        cached = 0  # its data set is about to change
    return {"total": total, "cached": cached, "due": total - cached}


def _facts(
    root: Root, survey: StageSurvey | None, units: dict[str, int], work: Workload, estimate: Estimate
) -> dict[str, Any]:
    pace = _measured(root, survey) if survey is not None else None
    size = _measured_bytes(root, survey) if survey is not None else None
    gpu_hours = estimate.tflop / GPU_TFLOP_PER_SECOND / 3600
    return {
        "units": units,
        "samples": work.samples,
        "seconds": None if pace is None else round(pace * work.units, 1),
        "gpu_hours": gpu_hours,
        "cost_usd": gpu_hours * USD_PER_GPU_HOUR + estimate.usd,
        "bytes": round(estimate.stored_bytes if size is None else work.units * size),
        "memory": estimate.memory.facts(),
        **estimate.details,
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


def licence_lines(facts: Mapping[str, Any]) -> list[str]:
    """The licence of each model of a plan, one line each. A model in several fields is named once."""
    fields: dict[tuple[str, str | None], list[str]] = {}
    for name, stage in facts["stages"].items():
        for role, found in stage["licences"].items():
            fields.setdefault((found["model"], found["licence"]), []).append(f"{name}.{role}")
    return [
        f"licence: {one_line(model, 120)} ({', '.join(names)}): {one_line(licence or 'unknown', 120)}"
        for (model, licence), names in fields.items()
    ]


def plan_table(facts: dict[str, Any]) -> Table:
    """The plan as a table."""
    table = Table(
        "stage",
        "units",
        "cached",
        "due",
        "samples due",
        "seconds",
        "GPU-hours",
        "USD",
        "GB",
        "memory",
        title=Text(facts["root"]),
    )
    for name, stage in facts["stages"].items():
        units = stage["units"]
        seconds = "–" if stage["seconds"] is None else f"{stage['seconds']:.0f}"
        numbers = [str(units["total"]), str(units["cached"]), str(units["due"]), str(stage["samples"]), seconds]
        memory = Memory(stage["memory"]["bytes"], stage["memory"]["basis"])
        table.add_row(name, *numbers, *_costs(stage), str(memory))
    table.add_row("total", *[""] * 5, *_costs(facts["total"]))
    return table


def _costs(facts: dict[str, Any]) -> tuple[str, str, str]:
    return _short(facts["gpu_hours"]), f"{facts['cost_usd']:.2f}", _short(facts["bytes"] / 1e9)


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
