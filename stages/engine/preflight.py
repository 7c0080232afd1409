"""Checks before a run: that models exist, the store is writable and the caption source is ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from bootpig.models.pretrained.downloads import fetch
from bootpig.models.pretrained.source import ModelSource
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import Stage
from bootpig.stages.engine.engine import Engine
from bootpig.storage.errors import StoreError


def preflight(engine: Engine, stages: Iterable[str]) -> list[str]:
    """Everything that would prevent a run of `stages`, one line each: missing models, a read-only store."""
    unwritable = []
    try:
        engine.root.check_writable()
    except (StoreError, OSError) as error:
        unwritable.append(str(error))
    missing = missing_models(engine, stages, ready=not unwritable)
    return list(dict.fromkeys([*(line for lines in missing.values() for line in lines), *unwritable]))


def missing_models(engine: Engine, stages: Iterable[str], ready: bool = False) -> dict[str, list[str]]:
    """The problems with the models of each stage, one line each. All stages are checked in parallel.

    Args:
        ready: also check that stages with something to make are ready.
    """

    def look_up(name: str) -> list[str]:
        try:
            stage = engine.make(name)
            stage.models()
            if problems := stage.check_models():
                return problems
            if ready and type(stage).check_ready is not Stage.check_ready and is_due(engine, name):
                stage.check_ready()
        except (ValueError, OSError) as error:
            return str(error).splitlines()
        return []

    names = list(stages)
    with ThreadPoolExecutor(len(names) or 1) as pool:
        return dict(zip(names, pool.map(look_up, names), strict=True))


def pinned(engine: Engine, stages: Iterable[str]) -> PipelineConfig:
    """The configuration with the revisions of these stages' hub models replaced by commits.

    All processes of a run, and a repair months later, then use the same models.

    Raises:
        InputError, ModelError: a model is missing.
    """
    pins: dict[str, dict[str, str]] = {}
    for name in stages:
        for model, source in engine.make(name).models().items():
            if isinstance(source, ModelSource) and source.revision is not None:
                field = "revision" if model == "model" else f"{model}_revision"
                pins.setdefault(name, {})[field] = source.revision
    return engine.config.pinned(pins)


def fetch_models(engine: Engine, stages: Iterable[str], announce: Callable[[str], None]) -> None:
    """Download the checkpoints that are given by URL, for the stages that are not complete.

    Called before the first stage runs, so that a wrong sha256 is not found only after hours of generation.

    Args:
        announce: called with one line before each download.

    Raises:
        ModelError: a file cannot be downloaded, or its sha256 differs.
    """
    for name in stages:
        for source in engine.make(name).models().values():
            if isinstance(source, ModelSource) and source.sha256 is not None and is_due(engine, name):
                fetch(source, announce)


def is_due(engine: Engine, stage: str) -> bool:
    """Whether any unit of a stage, or its result, is not complete."""
    return any(state != "complete" for state in engine.survey(stage).units.values())
