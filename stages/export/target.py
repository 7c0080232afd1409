"""Where an export goes, whose it is, which shards are finished, and where to go on: a folder on any file system.

`export.json` names the export. Below `.progress/`, each finished shard has a small file with its checksum, written
after the shard. When all shards are there, `export.json` takes over their list and `.progress/` is removed.
"""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bootpig.stages.engine.contract import InputError
from bootpig.storage.errors import StoreError
from bootpig.storage.folder_lock import LOCK, locked_folder
from bootpig.storage.jsonio import parse_json
from bootpig.storage.root import Root

STATE = "export.json"
FOLDER = "FOLDER"
"""What cards call a folder, which may be moved."""
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


class Target(ABC):
    """A place for one export.

    Args:
        url: as given by the user.
        identity: digest of what determines the exported files.
        about: facts for `export.json`, such as the run and the format.
    """

    root: Root
    """Where shards are written; within `held` only."""
    place = FOLDER
    """What the card calls it."""

    def __init__(self, url: str, identity: str, about: Mapping[str, Any]) -> None:
        self.url = url
        self.identity = identity
        self.about = dict(about)
        self.done = False
        self.shards: list[ShardFacts] = []
        self._by = {"export": secrets.token_hex(8), "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        """Tells this attempt from others that write to the same place at the same time."""

    @property
    @abstractmethod
    def address(self) -> str:
        """What a user opens."""

    @abstractmethod
    def held(self) -> AbstractContextManager[Path]:
        """Claim the place until the block ends, and read again what is finished. The value is a local folder for
        unfinished shards.

        Raises:
            StoreError: another export is writing there, or it cannot be written.
            InputError: it holds something else by now.
        """

    @abstractmethod
    def check(self) -> None:
        """See that no other export has taken over the place. Raises StoreError."""

    @abstractmethod
    def add(self, shard: ShardFacts) -> None:
        """Record that a shard is finished."""

    @abstractmethod
    def finish(self, files: Mapping[str, bytes]) -> None:
        """Write the files beside the data, then mark the export as complete."""

    def of(self, split: str) -> list[ShardFacts]:
        """The finished shards of a split, in order."""
        return [shard for shard in self.shards if shard.split == split]

    def _take(self, data: bytes | None, listed: Callable[[], list[Any]], size: Callable[[str], int | None]) -> None:
        """Go on with an earlier attempt.

        Args:
            data: the content of `export.json`; None if there is none.
            listed: further finished shards that are recorded elsewhere.
            size: of a file, or None if it does not exist.

        Raises:
            InputError: the place holds something else.
        """
        try:
            found = parse_json(data) if data is not None else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise InputError(f"--to: {self.url!r} → is not empty, and holds no export; choose an empty folder")
        if found.get("identity") != self.identity:
            raise InputError(
                f"--to: {self.url!r} → holds another export ({_difference(found, self.about)}); choose an empty folder"
            )
        self.about = {name: found.get(name, value) for name, value in self.about.items()}
        try:
            facts = [ShardFacts(**entry) for entry in [*found.get("shards", []), *listed()]]
        except (TypeError, ValueError):
            raise InputError(f"--to: {self.url!r} → its {STATE} is damaged; choose an empty folder") from None
        self.shards = []
        broken: set[str] = set()
        for shard in sorted({shard.name: shard for shard in facts}.values(), key=lambda shard: shard.name):
            if size(shard.name) != shard.bytes or shard.split in broken:
                broken.add(shard.split)  # up to the first that is missing or has another size
            else:
                self.shards.append(shard)
        self.done = bool(found.get("done")) and not broken

    def _state(self) -> bytes:
        """The content of `export.json`."""
        order = sorted(self.shards, key=lambda shard: shard.name)
        state = {"identity": self.identity, **self.about, "done": self.done, "shards": [asdict(s) for s in order]}
        if not self.done:
            state["by"] = self._by
        return (json.dumps(state, indent=1) + "\n").encode()


def _difference(found: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What an export that is there has other than the one that is asked for."""
    names = {"format": "--format", "splits": "--split", "shard_bytes": "--shard-bytes"}
    other = [f"{option} {_shown(found.get(name))}" for name, option in names.items() if found.get(name) != about[name]]
    run = f"run {found.get('run')}"
    if found.get("run") == about["run"] and other:
        return f"{run}, with {', '.join(other)}"
    return f"{run}, {found.get('format')}, made from other data or with other options"


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(f"{name}={share}" for name, share in value) or "none"
    return str(value)


class FolderTarget(Target):
    """A folder.

    Args:
        url: a local path or an fsspec URL; empty, or with an earlier attempt at the same export.

    Raises:
        InputError: it holds anything else, or cannot be written.
        StoreUnavailable, StoreFull: as for any store.
    """

    def __init__(self, url: str, identity: str, about: Mapping[str, Any]) -> None:
        super().__init__(url, identity, about)
        with self._named():
            self.root = Root(url)
            if self.root.local is not None and self.root.local.exists() and not self.root.local.is_dir():
                raise InputError(f"--to: {url!r} → is a file; choose an empty folder")
            self._look()
            if not self.done:
                self.root.check_writable()

    @property
    def address(self) -> str:
        return self.url if self.root.local is None else str(self.root.local)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            text = str(error).replace("root:", "--to:", 1)
            raise type(error)(text.replace("complete units are kept", "finished shards are kept")) from None

    def _look(self) -> bool:
        """Read what is there. Returns whether there is anything."""
        names = [name for name in self.root.names("") if name != LOCK]
        if not names and not [name for name in self.root.folders("") if name != SCRATCH]:
            return False
        self._take(self.root.read(STATE) if STATE in names else None, self._progress, self._size)
        return True

    def _progress(self) -> list[Any]:
        names = [f"{PROGRESS}/{name}" for name in sorted(self.root.names(PROGRESS)) if name.endswith(".json")]
        read = self.root.read_many(names)
        self._sizes = {f"data/{name}": size for name, size in self.root.names("data").items()}
        return [parse_json(read[name]) for name in names if name in read]

    def _size(self, name: str) -> int | None:
        found = self._sizes.get(name)
        return self.root.size(name) if found is None and name.count("/") > 1 else found  # a folder's metadata.parquet

    @contextmanager
    def held(self) -> Iterator[Path]:
        folder = self.root.local
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with (
            nullcontext() if folder is None else locked_folder(folder, f"--to: {self.url!r}"),
            tempfile.TemporaryDirectory(prefix="bootpig-") if folder is None else self._beside(folder) as scratch,
            self._named(),
        ):
            is_new = not self._look() and self.root.create(STATE, self._state())
            if not is_new and self._look() and not self.done:  # another process may have been faster
                self.root.write(STATE, self._state())
            yield Path(scratch)

    @contextmanager
    def _beside(self, folder: Path) -> Iterator[Path]:
        """A folder on the disk of the target. A kill leaves it behind; the next export removes it."""
        scratch = folder / SCRATCH
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            scratch.mkdir()
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def check(self) -> None:
        try:
            found = parse_json(self.root.read(STATE))
        except (FileNotFoundError, ValueError):
            found = None
        state = found if isinstance(found, dict) else {}
        if state.get("by") == self._by:
            return
        if state.get("done"):
            raise StoreError(f"--to: {self.url!r} → another export has finished there meanwhile; nothing is left to do")
        by = state.get("by")
        since = f", since {by['since']}," if isinstance(by, dict) and "since" in by else ""
        raise StoreError(
            f"--to: {self.url!r} → another export{since} is writing there and goes on with the finished shards; "
            "wait for its end, or choose another folder"
        )

    def add(self, shard: ShardFacts) -> None:
        stem = shard.name.removeprefix("data/").replace("/", "-")
        self.root.write(f"{PROGRESS}/{stem}.json", json.dumps(asdict(shard)).encode())
        self.shards.append(shard)

    def finish(self, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            self.root.write(name, data)
        self.done = True
        self.root.write(STATE, self._state())
        self.root.remove(PROGRESS, recursive=True)
