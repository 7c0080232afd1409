"""Checks before a run: that models exist and can be loaded, the store is writable and the caption source is ready."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from bootpig.models.pretrained.downloads import fetch
from bootpig.models.pretrained.snapshots import fetch_folder
from bootpig.models.pretrained.source import ModelError, ModelSource
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.base_sizes import size_problems
from bootpig.stages.engine.contract import ModelIdentity, Stage
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.survey import complete_stages
from bootpig.storage.errors import StoreError

_ONE_AT_A_TIME = threading.Lock()
"""The lazy imports of transformers and diffusers, which opening a model begins, fail in several threads at once."""

_SIZED = ("synthesize", "encode")
"""The stages that cost hours if the base model cannot take the size of a picture."""


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

    The files of models are opened for the stages with something to make. A complete stage loads none.

    Args:
        ready: also check that stages with something to make are ready.
    """

    names = list(stages)
    complete = _complete(engine, names)

    def look_up(name: str) -> list[str]:
        try:
            stage = engine.make(name)
            all_models(stage)
            if name not in complete:
                with _ONE_AT_A_TIME:
                    problems = stage.check_models() + engine.config.conflicts(name)
                if problems:
                    return problems
            if ready and type(stage).check_ready is not Stage.check_ready and name not in complete:
                stage.check_ready()
        except (ValueError, OSError) as error:
            return str(error).splitlines()
        return []

    with ThreadPoolExecutor(len(names) or 1) as pool:
        found = dict(zip(names, pool.map(look_up, names), strict=True))
    for name in _SIZED:
        if name in found and name not in complete:
            found[name] = found[name] + size_problems(engine.config)
            break
    return found


def pinned(engine: Engine, stages: Iterable[str]) -> PipelineConfig:
    """The configuration with the revisions of these stages' hub models replaced by commits.

    All processes of a run, and a repair months later, then use the same models.

    Raises:
        InputError, ModelError: a model is missing.
    """
    pins: dict[str, dict[str, str]] = {}
    for name in stages:
        for model, source in all_models(engine.make(name)).items():
            if isinstance(source, ModelSource) and source.revision is not None:
                section, dot, last = model.rpartition(".")
                field = f"{section}{dot}{'revision' if last == 'model' else f'{last}_revision'}"
                pins.setdefault(name, {})[field] = source.revision
    return engine.config.pinned(pins)


def fetch_models(engine: Engine, stages: Iterable[str], announce: Callable[[str], None]) -> None:
    """Download the hub models and the checkpoints given by URL, for the stages that are not complete, and open them.

    Called before the first stage runs, so that a wrong sha256 or a damaged file is not found only after hours of
    generation.

    Args:
        announce: called with one line before each download.

    Raises:
        ModelError: a file cannot be downloaded, its sha256 differs, or it is damaged; one line per problem.
    """
    problems = []
    names = list(stages)
    complete = _complete(engine, names)
    for name in names:
        stage = engine.make(name)
        sources = [source for source in all_models(stage).values() if isinstance(source, ModelSource)]
        remote = [source for source in sources if not source.is_local]
        if not remote or name in complete:
            continue
        for source in remote:
            if source.sha256 is not None:
                fetch(source, announce)
            else:
                fetch_folder(source, announce)
        problems += stage.check_models()
        if name == "encode":
            problems += size_problems(engine.config)
    if problems:
        raise ModelError("\n".join(dict.fromkeys(problems)))


def all_models(stage: Stage) -> dict[str, ModelIdentity]:
    """All models and folders that a stage needs, by name."""
    return {**stage.models(), **stage.unhashed_models()}


def _complete(engine: Engine, stages: Iterable[str]) -> set[str]:
    """The stages that have nothing to make. None where the store or a model cannot be read: they are then checked."""
    names = set(stages)
    try:
        surveys = engine.survey_all(names)
    except (ValueError, OSError):
        return set()
    return complete_stages({name: survey for name, survey in surveys.items() if name in names}, engine.graph)
