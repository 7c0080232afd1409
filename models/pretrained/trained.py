"""What the folder of a trained BootPIG model says about itself, before its weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bootpig.models.pretrained.source import BASE, PIPELINE, ModelError, ModelSource
from bootpig.models.pretrained.sources import resolve
from bootpig.models.pretrained.weight_files import DamagedFile, read_json

TRAINED = "bootpig.json"
"""A file in every folder of a trained model."""


def trained_info(field: str, model: Path) -> dict[str, Any]:
    """The content of a trained model's `bootpig.json`, which names its base.

    Args:
        field: the setting that names the folder, for messages.

    Raises:
        ModelError: it is missing or damaged, or names no base.
    """
    try:
        info = read_json(model / TRAINED)
        if isinstance(info.get("base"), str) and info["base"]:
            return info
    except DamagedFile:
        pass
    raise ModelError(
        f"{field}: {str(model)!r} is not a trained model ({TRAINED} is missing or names no base); give a folder "
        "written by train or save_bootpig"
    )


def base_of(field: str, model: Path) -> ModelSource:
    """The base that a trained model names.

    Raises:
        ModelError: the model names none, or the base is not found.
    """
    info = trained_info(field, model)
    return resolve(f"{field} (its base)", info["base"], info.get("revision"), PIPELINE, BASE)
