"""Runs a reduce stage: collects what it reads, publishes its result, keeps its checkpoints."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from bootpig.stages.engine.checkpoints import StoredCheckpoints
from bootpig.stages.engine.contract import Progress, ReduceInput, ReduceStage, UnitRef
from bootpig.stages.engine.earlier import Earlier, earlier_results, no_earlier
from bootpig.stages.engine.live import copied
from bootpig.stages.engine.pieces import clear_pieces
from bootpig.stages.engine.survey import StageSurvey
from bootpig.storage.cache import PayloadCache
from bootpig.storage.errors import CorruptPart
from bootpig.storage.folders import fetch_folder, publish_folder, read_manifest, withdraw_folder
from bootpig.storage.parts import Parts
from bootpig.storage.root import Root


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the first of those started by torchrun or accelerate."""
    return os.environ.get("RANK", "0") == "0"


def publish_result(
    root: Root,
    stage: ReduceStage,
    survey: StageSurvey,
    above: Sequence[StageSurvey],
    progress: Progress,
    *,
    run: str = "",
    restart: bool = False,
) -> None:
    """Run a reduce stage in a local work folder, publish its result with the manifest last, and remove its pieces.

    Args:
        above: the stages that it reads.
        run: the id of the run.
        restart: publish the result even if there is one.

    Raises:
        CorruptPart: a part that it reads is damaged. That part is stale from then on.
    """
    with tempfile.TemporaryDirectory(prefix="bootpig-") as scratch_name:
        scratch = Path(scratch_name)
        workdir = scratch / "result"
        workdir.mkdir()
        checkpoints = StoredCheckpoints(root, survey.path, scratch)
        log = stage.log if is_first_process() else ""
        with copied(root, survey.path, workdir / log) if log else nullcontext():
            found: Earlier = partial(earlier_results, root, survey.path, scratch)
            earlier = no_earlier if restart else found
            inputs = replace(_inputs(root, above, scratch), run=run, earlier=earlier)
            stage.run(inputs, workdir, checkpoints, progress)
            if not is_first_process():
                return
            # Another process may have published it meanwhile, and evaluated it. Other bytes would make that stale.
            if restart or read_manifest(root, f"{survey.path}/result") is None:
                publish_folder(root, f"{survey.path}/result", workdir)
        clear_pieces(root, survey.path)


def _inputs(root: Root, above: Sequence[StageSurvey], scratch: Path) -> ReduceInput:
    first, *others = (stage_input(root, survey, scratch) for survey in above)
    return replace(first, beside={survey.stage: data for survey, data in zip(above[1:], others, strict=True)})


def stage_input(root: Root, upstream: StageSurvey, scratch: Path) -> ReduceInput:
    """What a reduce stage reads from one upstream: its complete units, or a copy of its result in `scratch`.

    Raises:
        CorruptPart: the result is damaged. Shards are verified when they are read.
    """
    config = upstream.identity["config"]
    if upstream.result is not None:
        try:
            return ReduceInput((), _no_shard, fetch_folder(root, upstream.result, scratch), config)
        except CorruptPart:
            withdraw_folder(root, f"{upstream.path}/result", upstream.result)
            raise
    parts = Parts(root, upstream.stage, upstream.fingerprint)
    markers = dict(sorted(upstream.markers.items()))
    units = [UnitRef(unit, marker.digest, marker.counts["ok", ""]) for unit, marker in markers.items()]
    cache = PayloadCache.of_environment()

    def shard(unit: int) -> bytes:
        marker = markers[unit]
        try:
            if root.local is not None:
                return parts.payload(unit, marker)
            return cache.get(marker.payload_sha256, lambda: parts.payload(unit, marker))
        except CorruptPart:
            parts.discard_payload(unit)
            raise

    columns = frozenset(name for marker in markers.values() for name in marker.columns())
    return ReduceInput(units, shard, None, config, lambda unit: markers[unit].rows, columns)


def _no_shard(unit: int) -> bytes:
    raise LookupError(f"unit {unit}: the upstream is a reduce stage, which has no shards")
