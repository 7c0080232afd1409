"""What a reduce stage can save while it works: checkpoints, and pieces of its result."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from bootpig.storage.parts import Parts


class Pieces(Protocol):
    """Stores pieces of an unfinished result. In names, characters other than letters, digits, `-` and `_` are alike."""

    def put(self, name: str, data: bytes) -> None:
        """Store a piece."""

    def get(self, name: str) -> bytes | None:
        """Read a piece and verify its checksum. None if it is missing or damaged."""


class Checkpoints(Protocol):
    """Where a reduce stage saves its progress: whole folders under its fingerprint, with the manifest written last."""

    def save(self, step: int, folder: Path) -> None:
        """Publish `folder` as `checkpoint-<step>`, then remove all but the last two."""

    def latest(self) -> tuple[int, Path] | None:
        """The newest complete checkpoint as (step, local folder), or None. Damaged ones are skipped with a message."""

    def pieces(self, key: str) -> Pieces:
        """The pieces of this result from earlier runs and this one. Removed when the result is published.

        Args:
            key: digest of what changes the pieces but is not part of the fingerprint, such as the batch size. Pieces
                with any other key are removed.
        """

    def kept(self, name: str) -> Pieces:
        """Pieces that all results of the stage share, and that stay. The name of a piece must say all it depends on."""

    @property
    def parts(self) -> Parts:
        """The stage's folder, for what outlives the result, such as paid answers of an endpoint."""
