"""`bootpig gc`: removes data that only old versions of the data set use. Data of kept or live runs is never removed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime

from bootpig.flows.runs.records import FOLDER, RunRecord, is_alive, latest_run, list_runs
from bootpig.flows.sweep.records import runs_of_sweeps
from bootpig.stages.engine.contract import InputError
from bootpig.stages.registry import MAP_STAGES, STAGES
from bootpig.storage.parts import Parts
from bootpig.storage.root import Root

KEEP = 7
"""Versions to keep by default."""

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Garbage:
    """What can be removed."""

    runs: list[RunRecord]
    folders: list[str]
    """`<stage>/<fingerprint>` folders that no remaining run uses."""
    kept: list[RunRecord]
    """The versions that are kept, the last promoted first."""
    replaced: dict[str, int] = field(default_factory=dict)
    """In the remaining folders, payloads that were replaced when their unit was made again: path → size in bytes."""


def garbage(root: Root, keep: int = KEEP) -> Garbage:
    """Find what can be removed if the last `keep` promoted versions are kept.

    A run is removed if it was promoted before those, or was never promoted and started before the oldest of them. Runs
    that started later stay, so that a version that failed last night can still be repaired. Live runs stay too, and the
    runs of sweeps.

    Raises:
        InputError: a record cannot be read, so what it uses is unknown; or `keep` is not positive.
    """
    if keep < 1:
        raise InputError(f"keep: {keep} → must be 1 or more; the latest version is always kept")
    records = list_runs(root)
    try:
        latest = latest_run(root)
    except InputError:
        return Garbage([], [], [], replaced(root, records))
    versions = sorted(
        (record for record in records if record.promoted is not None or record.id == latest),
        # stores of earlier releases do not record when `latest` was promoted
        key=lambda record: (record.id == latest, record.promoted or record.started),
        reverse=True,
    )
    kept = versions[:keep]
    if len(versions) < keep:
        return Garbage([], [], kept, replaced(root, records))
    oldest = min(record.started for record in kept)
    swept = runs_of_sweeps(root)
    go = [
        record
        for record in records
        if record not in kept and _is_old(record, oldest) and record.id not in swept and not is_alive(root, record)
    ]
    stay = [record for record in records if record not in go]
    used = {folder for record in stay for folder in folders(record)}
    configs = [_config_text(root, record) for record in stay]
    unused = {folder for record in go for folder in folders(record)} - used
    # a setting such as `train.init_from` or `view.model` may point into the store, or to a copy of what is in it
    unused = {
        folder for folder in unused if not any(folder in text or folder.replace("/", "-") in text for text in configs)
    }
    gone = {folder for folder in unused if _is_there(root, folder)}
    left = {path: size for path, size in replaced(root, records).items() if path.rsplit("/", 1)[0] not in gone}
    return Garbage(go, sorted(gone), kept, left)


def replaced(root: Root, records: list[RunRecord]) -> dict[str, int]:
    """Payloads that no marker names any more: path → size in bytes. Empty while a run is live: it may read them."""
    if any(is_alive(root, record) for record in records):
        return {}
    found: dict[str, int] = {}
    for stage in MAP_STAGES:
        # other folders, such as the journal of an images endpoint, have no payloads
        for fingerprint in filter(_FINGERPRINT.fullmatch, root.folders(stage)):
            parts = Parts(root, stage, fingerprint)
            found |= {f"{parts.folder}/{name}": size for name, size in parts.replaced().items()}
    return found


def collect(root: Root, found: Garbage) -> None:
    """Remove the garbage: folders first, records last, so that the next `gc` can finish one that was killed.

    What a newly started run or sweep needs is kept as well.
    """
    go = {record.id for record in found.runs}

    def needed() -> list[RunRecord]:
        swept = runs_of_sweeps(root)
        return [r for r in list_runs(root) if r.id not in go or r.id in swept or is_alive(root, r)]

    for folder in found.folders:
        if any(folder in folders(record) for record in needed()):
            continue
        # without its manifest, a partly removed result is not used
        root.remove(f"{folder}/result/manifest.json")
        root.remove(folder, recursive=True)
    if not any(is_alive(root, record) for record in list_runs(root)):
        for path in found.replaced:
            root.remove(path)
    stay = {record.id for record in needed()}
    for record in found.runs:
        if record.id not in stay:
            root.remove(record.folder, recursive=True)


def folders(record: RunRecord) -> set[str]:
    """The `<stage>/<fingerprint>` folders that a run has read or written."""
    named = {(stage, fingerprint) for stage, fingerprints in record.uses.items() for fingerprint in fingerprints}
    named |= {(stage, done.fingerprint) for stage, done in record.stages.items()}
    # a record is untrusted: its names must not lead outside these folders
    return {f"{stage}/{mark}" for stage, mark in named if stage in STAGES and _FINGERPRINT.fullmatch(mark)}


def size(root: Root, folder: str) -> int:
    """Size of a folder and its subfolders in bytes."""
    below = sum(size(root, f"{folder}/{name}") for name in root.folders(folder))
    return below + sum(root.names(folder).values())


def _is_there(root: Root, folder: str) -> bool:
    # an object store has no folders, so `exists` cannot find one
    return bool(root.names(folder) or root.folders(folder))


def _is_old(record: RunRecord, oldest: datetime) -> bool:
    return record.promoted is not None or record.started < oldest


def _config_text(root: Root, record: RunRecord) -> str:
    try:
        return root.read(f"{FOLDER}/{record.id}/config.yaml").decode(errors="replace")
    except FileNotFoundError:
        return ""
