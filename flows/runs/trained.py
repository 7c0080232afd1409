"""Finds the trained model that a user names: a folder, a run id, or `latest`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bootpig.flows.runs.records import read_run
from bootpig.stages.engine.contract import InputError
from bootpig.storage.errors import CorruptPart
from bootpig.storage.folders import Published, check_folder, fetch_folder, read_manifest
from bootpig.storage.root import Root


def model_folder(model: str, root: str, scratch: Path) -> Path:
    """Find the folder of a trained model.

    Args:
        model: the folder itself, a folder that contains it as `model/`, train's folder in a store, a run id, or
            `latest`.
        root: the store to search for runs.
        scratch: folder to which the model is copied if the store is remote.

    Raises:
        InputError: there is no trained model.
    """
    for folder in (Path(model), Path(model, "model"), *_published(Path(model).absolute())):
        if (folder / "bootpig.json").is_file():
            return folder
    if Path(model).exists():
        raise InputError(f"model: {model!r} → holds no bootpig.json; give the folder of a trained model")
    store = Root(root)
    record = read_run(store, model)
    trained = record.stages.get("train")
    found = None if trained is None else published_model(store, trained.fingerprint, scratch)
    if found is None:
        raise InputError(f"model: {model!r} → that run has no trained model; see bootpig runs")
    return found


def published_model(store: Root, fingerprint: str, scratch: Path) -> Path | None:
    """The folder of the model that `train` made under a fingerprint. None if there is none.

    Raises:
        InputError: it is damaged.
    """
    fetched = _fetched(store, f"train/{fingerprint}", "model/", scratch)
    return None if fetched is None else fetched / "model"


def run_evaluation(model: str, root: str, scratch: Path) -> Path | None:
    """The folder with `metrics.json` and `contact_sheet.png` of a run's evaluate. None if `model` is a folder, or the
    run has none. Raises InputError if it is damaged. Arguments as in `model_folder`.
    """
    if Path(model).exists():
        return None
    store = Root(root)
    done = read_run(store, model).stages.get("evaluate")
    if done is None:
        return None
    return _fetched(store, f"evaluate/{done.fingerprint}", ("metrics.json", "contact_sheet.png"), scratch)


def _fetched(store: Root, stage: str, start: str | tuple[str, ...], scratch: Path) -> Path | None:
    """The folder with those files of a stage's result whose names begin with `start`. None if there is no result."""
    published = read_manifest(store, f"{stage}/result")
    if published is None:
        return None
    wanted = {name: facts for name, facts in published.files.items() if name.startswith(start)}
    copied = Published(published.path.replace("/", "-"), wanted)
    try:
        if store.local is None and not check_folder(Root(str(scratch)), copied):
            return scratch / copied.path
        return fetch_folder(store, Published(published.path, wanted), scratch)
    except CorruptPart as error:
        raise InputError(f"model: {stage} → {error}") from None


def _published(folder: Path) -> Iterator[Path]:
    """The model in train's result, if `folder` is `train/<fingerprint>` or its `result` folder in a local store."""
    for result in (folder, folder / "result"):
        with suppress(CorruptPart):
            if (published := read_manifest(Root(str(result.parent)), result.name)) is not None:
                yield result.parent / published.path / "model"
