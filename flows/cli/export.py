"""`bootpig export`: finds the data set of a run and exports it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bootpig.flows.cli import display
from bootpig.flows.environment import check_scratch
from bootpig.flows.loading import load_config, shipped_configs
from bootpig.flows.rounds import with_trained_models
from bootpig.flows.runs.records import read_config, read_run
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.export.records import DataSet
from bootpig.stages.export.run import Options, export, open_target
from bootpig.stages.export.splits import Splits
from bootpig.storage.root import Root


def export_run(asked: argparse.Namespace) -> int:
    options = Options(asked.format, Splits.parse(asked.split), asked.shard_bytes)
    data = find_data_set(asked.run, asked.root, asked.config, asked.set)
    target = open_target(data, asked.to, options, asked.private)
    if "://" in asked.to:
        check_scratch()
    was_done = target.done
    with display.shown_on(Console(stderr=True)) as screen:
        if not was_done and target.shards:
            screen.line(f"{len(target.shards)} shards are finished; going on with the next", "dim")
        with screen.stage("export", data.total) as bar:
            export(data, target, options, bar.result())
        for split in options.splits.names:
            if not target.of(split):
                screen.line(f"split {split}: no sample falls into it; it is left out", "yellow")
        count, size = sum(shard.samples for shard in target.shards), sum(shard.size for shard in target.shards)
        state = "was complete" if was_done else "exported"
        screen.line(f"{state}: {count} samples in {len(target.shards)} shards, {size / 1e6:.1f} MB")
    print(target.address)
    return 0


def find_data_set(run: str, root: str, config: str | None, overrides: Sequence[str]) -> DataSet:
    """The data set of a run id, of `latest`, or of a configuration.

    Args:
        run: as given by the user. A file or the name of a shipped configuration is a configuration.
        root: the store in which runs are found.
        config: a configuration whose store is used in place of `root`.
        overrides: settings of whichever configuration is given.

    Raises:
        InputError: there is no such run, or its data set is not finished.
    """
    if run != "latest" and (Path(run).is_file() or run in shipped_configs()):
        if config is not None:
            raise InputError(f"--config: {config!r} → RUN is a configuration already; leave out one of them")
        engine = Engine(with_trained_models(load_config(run, overrides)))
        surveys = engine.survey_all([*engine.graph.maps(), *(name for name in engine.graph.stages if name == "select")])
        return DataSet.of_surveys(engine.root, engine.config, surveys)
    if config is None and overrides:
        raise InputError("--set: → needs a configuration; give one as RUN or with --config")
    store = Root(root if config is None else load_config(config, overrides).root)
    record = read_run(store, run)
    fingerprints = {name: done.fingerprint for name, done in record.stages.items()}
    return DataSet(store, read_config(store, record), record.id, record.units, fingerprints)
