"""A repository on the hub as the place of an export: each shard is sent when it is finished, then removed here.

Sent shards become visible in commits, at most one a minute: the hub allows about a hundred an hour. Each commit has the
list of finished shards in `export.json`, and is refused if somebody else has written into the repository meanwhile.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bootpig.stages.export.target import STATE, ShardFacts, Target
from bootpig.storage.hub import PROTOCOL, HubRepository
from bootpig.storage.root import Root

FORM = f"{PROTOCOL}datasets/owner/name"

LARGEST_FILE = 50_000_000_000
"""Bytes that the hub takes in one file."""

COMMIT_SECONDS = 60.0
"""Between two commits, at least."""

_CARD = """---
viewer: false
---

This data set is being exported. It is complete when this text is replaced by its card.
"""


class RepositoryTarget(Target):
    """A repository of the kind data set. Its constructor reads only.

    Args:
        url: `hf://datasets/owner/name`; does not exist yet, or holds nothing, or an earlier attempt at the same export.
        identity, about: as for `Target`.
        private: only its owner may read it.

    Raises:
        InputError: it holds anything else.
        StoreError, StoreUnavailable: as for `HubRepository`.
    """

    def __init__(self, url: str, identity: str, about: Mapping[str, Any], private: bool) -> None:
        super().__init__(url, identity, about)
        self.repository = HubRepository(url, "dataset", private)
        self.place = self.repository.name
        self._committed = 0.0
        self._look()

    @property
    def address(self) -> str:
        return self.repository.page

    def _look(self) -> None:
        names = self.repository.names
        if names:
            self._take(self.repository.read(STATE) if STATE in names else None, list, self.repository.size)

    @contextmanager
    def held(self) -> Iterator[Path]:
        self.repository.create()
        self._look()
        with tempfile.TemporaryDirectory(prefix="bootpig-") as folder, _without_bars():
            self.root = Root(f"{folder}/finished")
            scratch = Path(folder, "open")
            scratch.mkdir()
            if not self.done:
                self.repository.send({"README.md": _CARD.encode()})
                self._commit("Begin an export")
            yield scratch

    def check(self) -> None:
        """Every commit does it."""

    def add(self, shard: ShardFacts) -> None:
        assert self.root.local is not None
        first = self.root.local / shard.name
        # the shards of a folder are folders
        files = [first] if shard.name.count("/") == 1 else [p for p in first.parent.rglob("*") if p.is_file()]
        files.sort(key=lambda file: (file == first, file))
        self.repository.send({file.relative_to(self.root.local).as_posix(): file for file in files})
        for file in files:
            file.unlink()
        self.shards.append(shard)
        if time.monotonic() - self._committed >= COMMIT_SECONDS:
            self._commit(f"Add samples up to number {shard.end}")

    def finish(self, files: Mapping[str, bytes]) -> None:
        self.repository.send(files)
        self.done = True
        self._commit("Finish the export")

    def _commit(self, message: str) -> None:
        self.repository.send({STATE: self._state()})
        self.repository.commit(message)
        self._committed = time.monotonic()


@contextmanager
def _without_bars() -> Iterator[None]:
    """The hub's client shows a bar for each file, which would run into our own."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, not in __all__
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
