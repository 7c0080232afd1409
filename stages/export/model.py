"""The files of a trained model as others get them: no local paths, no secrets, and a card with sample pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from bootpig.models.pipelines.card import CARD_FILE, model_card
from bootpig.models.pretrained.source import local_path
from bootpig.stages.engine.contract import InputError
from bootpig.storage.jsonio import parse_json
from bootpig.storage.root import masked
from bootpig.storage.secrets import mask

INFO = "bootpig.json"
WEIGHTS = ("*.safetensors", "reference_unet/*.safetensors")
SETTINGS = (INFO, "reference_unet/*.json")
"""What `save_trained` writes. Other files in the folder are not for others."""

SHEET = "samples/contact_sheet.png"


@dataclass(frozen=True)
class Public:
    """What was written."""

    identity: list[str]
    """Files that tell the model from others: its weights and settings."""
    local_base: str | None
    """Name of the base model's folder, if others cannot get it by this name."""


def public_copy(model: Path, evaluation: Path | None, repository: str, folder: Path) -> Public:
    """Fill a folder with what may be published of a trained model. Its weights are links to those of `model`.

    Args:
        model: the folder of the trained model.
        evaluation: a folder with evaluate's `metrics.json` and `contact_sheet.png`, for the card.
        repository: `owner/name`, for the card.
        folder: an empty folder.

    Raises:
        InputError: a part of the model is missing or damaged.
    """
    weights = [file for pattern in WEIGHTS for file in sorted(model.glob(pattern))]
    settings = [file for pattern in SETTINGS for file in sorted(model.glob(pattern))]
    for file in weights:
        target = folder / file.relative_to(model)
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(file.resolve())
    read = {file.relative_to(model).as_posix(): _public(_read(file)) for file in settings}
    for name, value in read.items():
        (folder / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    info = read[INFO]
    if not weights or not isinstance(info, dict):
        raise InputError(f"model: {str(model)!r} → has no weights (*.safetensors); give the folder of a trained model")
    sheet = None
    if evaluation is not None:
        info = {**info, "metrics": _read(evaluation / "metrics.json")}
        (folder / SHEET).parent.mkdir()
        shutil.copyfile(evaluation / "contact_sheet.png", folder / SHEET)
        sheet = SHEET
    (folder / CARD_FILE).write_text(model_card(info, repository, sheet), encoding="utf-8")
    names = [file.relative_to(model).as_posix() for file in weights]
    base = str(info.get("base") or "")
    return Public([*names, *read], None if "/" in base else base)


def _read(file: Path) -> Any:
    try:
        return parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"model: {str(file)!r} → cannot be read ({error}); restore it or train again") from None


def _public(value: Any) -> Any:
    """A JSON value with the last part of each local path in place of the path, and without secrets."""
    if isinstance(value, Mapping):
        return {name: _public(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_public(entry) for entry in value]
    return mask(masked(_without_folders(value))) if isinstance(value, str) else value


def _without_folders(text: str) -> str:
    path = text.removeprefix("file://")
    if PureWindowsPath(path).drive:
        return PureWindowsPath(path).name
    is_local = (
        path != text or path.startswith(("/", "~", "./", "../")) or ("/" in path and local_path(path) is not None)
    )
    return PurePosixPath(path).name if is_local else text
