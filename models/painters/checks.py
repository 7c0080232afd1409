"""Checks a text-to-image model and its settings before it is loaded, with the JSON files of its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers

from bootpig.models.painters.family import Configs
from bootpig.models.painters.loading import scheduler_problem, starting_problem, stopping_problem
from bootpig.models.painters.painter import Brush, setting_problems
from bootpig.models.pretrained.snapshots import cached_folder
from bootpig.models.pretrained.source import PIPELINE, ModelSource
from bootpig.models.pretrained.weight_files import DamagedFile, read_json

_CONFIGS = ("config.json", "scheduler_config.json")


def painter_problems(
    source: ModelSource,
    brush: Brush,
    *,
    sizes: Sequence[tuple[int, int]] = (),
    scheduler: str | None = None,
    refiner: ModelSource | None = None,
) -> list[str]:
    """The settings that do not fit a text-to-image model or would have no effect, one line each. `sizes`: see
    `setting_problems`.

    Empty for a hub model that is not downloaded, and for files that cannot be read: those are reported by
    `inspection.pipeline_problems`.
    """
    configs = read_configs(source)
    pipeline = _class_of(configs)
    if configs is None or pipeline is None:
        return []
    problems: list[str | None] = [*setting_problems(source.field, pipeline, configs, brush, sizes)]
    index = configs[""]
    own = index.get("scheduler")
    if scheduler is not None and isinstance(own, list) and hasattr(diffusers, str(own[-1])):
        problems.append(scheduler_problem(source, getattr(diffusers, own[-1]), scheduler))
    if refiner is not None:
        problems.append(stopping_problem(source.field, pipeline))
        continues = _class_of(read_configs(refiner))
        problems.append(starting_problem(refiner, continues) if continues else None)
    return [problem for problem in problems if problem is not None]


def read_configs(source: ModelSource) -> Configs | None:
    """The settings of a pipeline folder. None if it is not on this machine, or its index cannot be read."""
    folder = cached_folder(source)
    index = None if folder is None else _read(folder / PIPELINE)
    if folder is None or index is None:
        return None
    configs: dict[str, dict[str, Any]] = {"": index}
    for name in index:
        for file in _CONFIGS:
            if (found := _read(folder / name / file)) is not None:
                configs[name] = found
    return configs


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return read_json(file) if file.is_file() else None
    except DamagedFile:
        return None


def _class_of(configs: Configs | None) -> type | None:
    """The pipeline class that a model_index.json names, if diffusers has it."""
    if configs is None:
        return None
    found = getattr(diffusers, str(configs[""].get("_class_name")), None)
    return found if isinstance(found, type) else None
