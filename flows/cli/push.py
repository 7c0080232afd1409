"""`bootpig push`: uploads a trained model to the hub, with its card and sample pictures."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console

from bootpig.flows.cli import display
from bootpig.flows.environment import check_scratch
from bootpig.flows.runs.trained import model_folder, run_evaluation
from bootpig.stages.engine.contract import InputError
from bootpig.storage.hub import HubRepository


def push(asked: argparse.Namespace) -> int:
    repository = HubRepository(asked.to, "model", asked.private)
    check_scratch()
    with tempfile.TemporaryDirectory(prefix="bootpig-") as scratch, display.shown_on(Console(stderr=True)) as screen:
        found = model_folder(asked.model, asked.root, Path(scratch))
        evaluation = run_evaluation(asked.model, asked.root, Path(scratch))
        from bootpig.stages.export.model import public_copy

        copy = Path(scratch, "public")
        copy.mkdir()
        public = public_copy(found, evaluation, repository.name, copy)
        if repository.names and not all(repository.holds(name, copy / name) for name in public.identity):
            raise InputError(f"--to: {asked.to!r} → is not empty and does not hold this model; name a new repository")
        repository.create()
        if evaluation is None:
            screen.line("without evaluate's pictures and metrics: they are those of a run, given by its id", "yellow")
        if public.local_base is not None:
            screen.line(
                f"base {public.local_base!r}: a folder of this machine; say in the card where others get it", "yellow"
            )
        size = sum(file.stat().st_size for file in copy.rglob("*") if file.is_file())
        screen.line(f"uploading {size / 1e6:.1f} MB")
        repository.upload(copy, "Upload a BootPIG model")
    print(repository.page)
    return 0
