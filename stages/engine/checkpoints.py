"""The checkpoints of a reduce stage in the store."""

from __future__ import annotations

import re
from pathlib import Path

from bootpig.storage.errors import CorruptPart
from bootpig.storage.folders import fetch_folder, publish_folder, read_manifest
from bootpig.storage.root import Root

KEEP = 2
"""Checkpoints kept."""


class StoredCheckpoints:
    """`bootpig.stages.engine.contract.Checkpoints` in the store, below the stage's fingerprint."""

    def __init__(self, root: Root, path: str, scratch: Path) -> None:
        self.root = root
        self.path = path
        self.scratch = scratch

    def _steps(self) -> list[int]:
        matches = (re.fullmatch(r"checkpoint-(\d+)", name) for name in self.root.folders(self.path))
        return sorted(int(match[1]) for match in matches if match)

    def _folder(self, step: int) -> str:
        return f"{self.path}/checkpoint-{step:05d}"

    def save(self, step: int, folder: Path) -> None:
        publish_folder(self.root, self._folder(step), folder)
        for old in self._steps()[:-KEEP]:
            self._remove(old)

    def clear(self) -> None:
        """Begin at the beginning: no checkpoint is left."""
        for step in self._steps():
            self._remove(step)

    def _remove(self, step: int) -> None:
        # The manifest goes first: a half-removed checkpoint is no checkpoint.
        self.root.remove(f"{self._folder(step)}/manifest.json")
        self.root.remove(self._folder(step), recursive=True)

    def latest(self) -> tuple[int, Path] | None:
        for step in reversed(self._steps()):
            try:
                published = read_manifest(self.root, self._folder(step))
                if published is not None:
                    return step, fetch_folder(self.root, published, self.scratch)
            except CorruptPart as error:
                print(f"train: passing over a damaged checkpoint: {error}", flush=True)
        return None
