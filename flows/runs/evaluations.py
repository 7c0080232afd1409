"""Finds what an evaluation has drawn: that of a run in a store, or a folder written by `bootpig evaluate`."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from bootpig.flows.runs.records import read_run
from bootpig.stages.engine.contract import InputError
from bootpig.stages.study.evaluations import REFERENCES, SCORES, Evaluation, read_evaluation
from bootpig.storage.errors import CorruptPart
from bootpig.storage.folders import Published, fetch_folder, read_manifest
from bootpig.storage.root import Root


def find_evaluation(run: str, root: str, scratch: Path) -> Evaluation:
    """The evaluation of a run.

    Args:
        run: a run id, `latest`, a folder written by `bootpig evaluate`, or evaluate's folder in a local store.
        root: the store to search for runs.
        scratch: folder to which files are copied if the store is remote. One for each call.

    Raises:
        InputError: there is none, or it is damaged.
    """
    folder = Path(run)
    if (folder / SCORES).is_file():
        return _of_folder(run, folder)
    if folder.is_dir():
        for result in (folder.absolute(), folder.absolute() / "result"):
            with suppress(CorruptPart):
                if (published := read_manifest(Root(str(result.parent)), result.name)) is not None:
                    return _of_store(run, Root(str(result.parent)), published, scratch)
        raise InputError(f"RUN: {run!r} → holds no {SCORES}; give a run id, or a folder written by bootpig evaluate")
    store = Root(root)
    record = read_run(store, run)
    done = record.stages.get("evaluate")
    try:
        published = None if done is None else read_manifest(store, f"evaluate/{done.fingerprint}/result")
    except CorruptPart as error:
        raise InputError(f"RUN: {run!r} → {error}") from None
    if published is None or SCORES not in published.files:
        raise InputError(
            f"RUN: {run!r} → that run has no evaluation; continue it with bootpig run --run {record.id}, or evaluate "
            "its model with bootpig evaluate"
        )
    return _of_store(record.id, store, published, scratch)


def _of_folder(label: str, folder: Path) -> Evaluation:
    def fetch(files: Collection[str]) -> Path:
        return folder

    try:
        scores = (folder / SCORES).read_bytes()
        references = [f"{REFERENCES}{path.name}" for path in (folder / REFERENCES).glob("*.png")]
    except OSError as error:
        raise InputError(f"RUN: {label!r} → cannot be read ({error.strerror}); check its permissions") from None
    return read_evaluation(label, scores, references, fetch)


def _of_store(label: str, store: Root, published: Published, scratch: Path) -> Evaluation:
    def fetch(files: Collection[str]) -> Path:
        wanted = {name: facts for name, facts in published.files.items() if name in files}
        if missing := sorted(set(files) - wanted.keys()):
            raise InputError(f"RUN: {label!r} → has no file {missing[0]!r}; evaluate it again")
        try:
            return fetch_folder(store, Published(published.path, wanted), scratch)
        except CorruptPart as error:
            raise InputError(f"RUN: {label!r} → {error}") from None

    scores = (fetch([SCORES]) / SCORES).read_bytes()
    return read_evaluation(label, scores, published.files, fetch)
