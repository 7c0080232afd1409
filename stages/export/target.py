"""The folder that an export is written to: whose it is, which shards are finished, and where to go on.

`export.json` names the export. Below `.progress/`, each finished shard has a small file with its checksum, written
after the shard. When all shards are there, `export.json` takes over their list and `.progress/` is removed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bootpig.stages.engine.contract import InputError
from bootpig.storage.errors import StoreError
from bootpig.storage.jsonio import parse_json
from bootpig.storage.root import Root

STATE = "export.json"
PROGRESS = ".progress"
SCRATCH = ".tmp-export"
"""Folder for unfinished shards in a local target. Left behind by a kill, removed by the next export."""


@dataclass(frozen=True)
class ShardFacts:
    """A finished shard."""

    name: str
    split: str
    samples: int
    end: int
    """Position in the data set after the shard's last sample; for a split's last shard, the number of all samples."""
    bytes: int
    """Of the file `name`, as is `sha256`."""
    sha256: str
    size: int
    """Bytes of all its files."""


class Target:
    """A folder for one export.

    Args:
        url: a local path or an fsspec URL; empty, or with an earlier attempt at the same export.
        identity: digest of what determines the exported files.
        about: facts for `export.json`, such as the run and the format.

    Raises:
        InputError: it holds anything else, or cannot be written.
        StoreUnavailable, StoreFull: as for any store.
    """

    def __init__(self, url: str, identity: str, about: Mapping[str, Any]) -> None:
        if url.startswith("hf://"):
            raise InputError(f"--to: {url!r} → is not written directly; export to a folder, then run hf upload")
        try:
            self.root = Root(url)
            if self.root.local is not None and self.root.local.exists() and not self.root.local.is_dir():
                raise InputError(f"--to: {url!r} → is a file; choose an empty folder")
            found = self._read(url)
            if found is None or not found.get("done"):
                self.root.check_writable()
        except StoreError as error:
            raise type(error)(str(error).replace("root:", "--to:", 1)) from None
        self.identity = identity
        self.about = dict(about)
        self.done = False
        self.shards: list[ShardFacts] = []
        if found is None:
            self._save()
            return
        if found.get("identity") != identity:
            raise InputError(
                f"--to: {url!r} → holds another export (run {found.get('run')}, {found.get('format')}, made from other "
                "data or with other options); choose an empty folder"
            )
        self.done = bool(found.get("done"))
        self.about = {name: found[name] for name in about if name in found} or self.about
        self.shards = self._finished(found)

    def _read(self, url: str) -> dict[str, Any] | None:
        """The content of `export.json`, or None if the folder is empty or does not exist."""
        entries = [*self.root.names(""), *(name for name in self.root.folders("") if name != SCRATCH)]
        if not entries:
            return None
        try:
            found = parse_json(self.root.read(STATE))
        except (FileNotFoundError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise InputError(f"--to: {url!r} → is not empty, and holds no export; choose an empty folder")
        return found

    def _finished(self, found: Mapping[str, Any]) -> list[ShardFacts]:
        """The finished shards of each split up to the first that is missing or has another size."""
        listed = list(found.get("shards", []))
        names = [f"{PROGRESS}/{name}" for name in sorted(self.root.names(PROGRESS)) if name.endswith(".json")]
        read = self.root.read_many(names)
        try:
            listed += [parse_json(read[name]) for name in names if name in read]
            facts = {shard.name: shard for shard in (ShardFacts(**entry) for entry in listed)}
        except (TypeError, ValueError):
            raise InputError(f"--to: {self.root.url!r} → its {STATE} is damaged; choose an empty folder") from None
        sizes = {f"data/{name}": size for name, size in self.root.names("data").items()}
        good: list[ShardFacts] = []
        broken: set[str] = set()
        for shard in sorted(facts.values(), key=lambda shard: shard.name):
            size = sizes.get(shard.name)
            if size is None and shard.name.count("/") > 1:  # a folder's metadata.jsonl
                size = self.root.size(shard.name)
            if size != shard.bytes or shard.split in broken:
                broken.add(shard.split)
            else:
                good.append(shard)
        self.done = self.done and not broken
        return good

    def of(self, split: str) -> list[ShardFacts]:
        """The finished shards of a split, in order."""
        return [shard for shard in self.shards if shard.split == split]

    def add(self, shard: ShardFacts) -> None:
        """Record that a shard is finished."""
        stem = shard.name.removeprefix("data/").replace("/", "-")
        self.root.write(f"{PROGRESS}/{stem}.json", json.dumps(asdict(shard)).encode())
        self.shards.append(shard)

    def finish(self, files: Mapping[str, bytes]) -> None:
        """Write the files beside the data, then mark the export as complete."""
        for name, data in files.items():
            self.root.write(name, data)
        self.done = True
        self._save()
        self.root.remove(PROGRESS, recursive=True)
        self.clear_scratch()

    def _save(self) -> None:
        order = sorted(self.shards, key=lambda shard: shard.name)
        state = {"identity": self.identity, **self.about, "done": self.done, "shards": [asdict(s) for s in order]}
        self.root.write(STATE, (json.dumps(state, indent=1) + "\n").encode())

    def clear_scratch(self) -> None:
        """Remove what a killed export left."""
        if self.root.local is not None:
            shutil.rmtree(self.root.local / SCRATCH, ignore_errors=True)
