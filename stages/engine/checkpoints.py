"""Checkpoints and partial results that a reduce stage keeps in the store while it runs."""

from __future__ import annotations

import re
from pathlib import Path

from bootpig.stages.engine.pieces import StoredPieces, clear_pieces, open_pieces
from bootpig.storage.errors import CorruptPart
from bootpig.storage.folders import fetch_folder, publish_folder, read_manifest
from bootpig.storage.parts import Parts
from bootpig.storage.root import Root

CHECKPOINTS_KEPT = 2
"""Number of complete checkpoints to keep."""


class StoredCheckpoints:
    """`Checkpoints` (see `contract`) in the store, under the stage's fingerprint."""

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
        # A checkpoint with a higher number was damaged: training resumed from an earlier one.
        older = [old for old in reversed(self._steps()) if old < step and self._is_whole(old)]
        kept = [step, *older][:CHECKPOINTS_KEPT]
        for other in self._steps():
            if other not in kept:
                self._remove(other)

    def _is_whole(self, step: int) -> bool:
        """Whether all files of a checkpoint exist in full size. Their content is not read."""
        try:
            published = read_manifest(self.root, self._folder(step))
        except CorruptPart:
            return False
        return published is not None and all(
            self.root.size(f"{published.path}/{name}") == facts["size"] for name, facts in published.files.items()
        )

    def pieces(self, key: str) -> StoredPieces:
        return open_pieces(self.root, self.path, key)

    def kept(self, name: str) -> StoredPieces:
        return StoredPieces(self.root, f"{self.path.partition('/')[0]}/kept-{name}")

    @property
    def parts(self) -> Parts:
        stage, _, fingerprint = self.path.partition("/")
        return Parts(self.root, stage, fingerprint)

    def clear(self) -> None:
        """Remove all checkpoints and pieces."""
        for step in self._steps():
            self._remove(step)
        clear_pieces(self.root, self.path)

    def _remove(self, step: int) -> None:
        # The manifest is removed first, so that a half-removed checkpoint does not count as one.
        self.root.remove(f"{self._folder(step)}/manifest.json")
        self.root.remove(self._folder(step), recursive=True)

    def latest(self) -> tuple[int, Path] | None:
        for step in reversed(self._steps()):
            try:
                published = read_manifest(self.root, self._folder(step))
                if published is not None:
                    return step, fetch_folder(self.root, published, self.scratch)
            except CorruptPart as error:
                print(f"train: skipping a damaged checkpoint: {error}", flush=True)
        return None
