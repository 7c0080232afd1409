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
    """What would keep a run of `stages` from starting, one line each: missing models, a read-only store."""
    unwritable = []
    try:
        engine.root.check_writable()
    except (StoreError, OSError) as error:
        unwritable.append(str(error))
    missing = missing_models(engine, stages, ready=not unwritable)
    return list(dict.fromkeys([*(line for lines in missing.values() for line in lines), *unwritable]))


def missing_models(engine: Engine, stages: Iterable[str], ready: bool = False) -> dict[str, list[str]]:
    """What each stage lacks of its models, one line each; all are looked for at the same time.

    Args:
        ready: also ask a stage that has something to make whether it could begin.
    """

    def look_up(name: str) -> list[str]:
        try:
            stage = engine.make(name)
            stage.models()
            if ready and type(stage).check_ready is not Stage.check_ready and is_due(engine, name):
                stage.check_ready()
        except (ValueError, OSError) as error:
            return str(error).splitlines()
        return []

    names = list(stages)
    with ThreadPoolExecutor(len(names) or 1) as pool:
        return dict(zip(names, pool.map(look_up, names), strict=True))


def pinned(engine: Engine, stages: Iterable[str]) -> PipelineConfig:
    """The configuration with commits in place of the revisions of these stages' hub models.

    So all processes of a run, and a repair of it months later, see the same models.

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
    """Download the checkpoints that are given by URL, for stages that have something to do.

    Before the first stage works: a wrong sha256 should not be found after a night of painting.

    Args:
        announce: receives one line before each download.

    Raises:
        ModelError: one cannot be downloaded, or is another file.
    """
    for name in stages:
        for source in engine.make(name).models().values():
            if isinstance(source, ModelSource) and source.sha256 is not None and is_due(engine, name):
                fetch(source, announce)


def is_due(engine: Engine, stage: str) -> bool:
    """Whether some unit, or the result, of a stage is not complete."""
    return any(state != "complete" for state in engine.survey(stage).units.values())
