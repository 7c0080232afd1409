"""Opens the data set of a run as a webdataset pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bootpig.flows.runs.records import read_run
from bootpig.stages.engine.contract import InputError
from bootpig.storage.root import Root
from bootpig.storage.webdatasets import open_shards

if TYPE_CHECKING:
    import webdataset


def open_run(
    root: str, run: str = "latest", stage: str = "encode", *, shuffle: int = 0, seed: int = 0, decode: bool = True
) -> webdataset.DataPipeline:
    """The samples of one stage of a run. Reads exactly the units listed in the run's record.

    Args:
        root: the store, a folder or an fsspec URL.
        run: a run id or `latest`.
        stage: a map stage, such as `segment`, `augment` or `encode`.
        shuffle, seed, decode: see `bootpig.storage.webdatasets.open_shards`.

    Raises:
        InputError: there is no such run, or it did not run that stage.
        StoreError: one of its units is not complete.
    """
    store = Root(root)
    record = read_run(store, run)
    done = record.stages.get(stage)
    if done is None or not done.fingerprint:
        raise InputError(f"stage: {stage!r} → run {record.id} did not run it; it ran {', '.join(record.stages)}")
    return open_shards(store, stage, done.fingerprint, record.units, shuffle=shuffle, seed=seed, decode=decode)
