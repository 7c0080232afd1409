"""Finds results of a reduce stage that were finished with other settings: they may have parts of a new one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from bootpig.storage.errors import CorruptPart
from bootpig.storage.fingerprint import bytes_digest
from bootpig.storage.folders import Published, fetch_folder, read_manifest
from bootpig.storage.jsonio import parse_json
from bootpig.storage.root import Root

Identity = Mapping[str, Any]
"""The input of a fingerprint."""


class EarlierResult(Protocol):
    """A finished result of the same stage with other settings."""

    @property
    def files(self) -> Mapping[str, str]:
        """Name → sha256."""

    def fetch(self, names: Iterable[str]) -> Path:
        """A local folder with these files, which must not be changed. Raises CorruptPart."""

    def read(self, name: str) -> bytes | None:
        """Read a file and verify its checksum. None if it is missing or damaged."""


Earlier = Callable[[Callable[[Identity], Any]], Iterable[EarlierResult]]
"""`earlier(part)`: the finished results whose identity has the same `part` as that of the new result."""


def no_earlier(part: Callable[[Identity], Any]) -> Iterable[EarlierResult]:
    """There are no earlier results."""
    return ()


class StoredResult:
    """A finished result in the store, see `EarlierResult`."""

    def __init__(self, root: Root, published: Published, scratch: Path) -> None:
        self._root = root
        self._published = published
        self._scratch = scratch
        self.files: Mapping[str, str] = {name: str(facts["sha256"]) for name, facts in published.files.items()}

    def fetch(self, names: Iterable[str]) -> Path:
        files = {name: self._published.files[name] for name in names}
        # a folder for each call: a copy replaces what was copied to its folder before
        into = Path(tempfile.mkdtemp(dir=self._scratch))
        return fetch_folder(self._root, Published(self._published.path, files), into)

    def read(self, name: str) -> bytes | None:
        if name not in self.files:
            return None
        try:
            data = self._root.read(f"{self._published.path}/{name}")
        except FileNotFoundError:
            return None
        return data if bytes_digest(data) == self.files[name] else None


def earlier_results(root: Root, path: str, scratch: Path, part: Callable[[Identity], Any]) -> Iterator[StoredResult]:
    """The finished results beside `path` whose identity has the same `part` as that of `path`.

    Args:
        path: the stage's folder, `<stage>/<fingerprint>`; its `stage.json` is written.
        scratch: a local folder for copies from a remote store.
    """
    stage, _, own = path.rpartition("/")
    wanted = part(_identity(root, path) or {})
    for name in root.folders(stage):
        if name == own:
            continue
        try:
            identity = _identity(root, f"{stage}/{name}")
            published = read_manifest(root, f"{stage}/{name}/result")
            if identity is None or published is None or part(identity) != wanted:
                continue
        except (CorruptPart, KeyError, TypeError, AttributeError):  # of another version, or damaged
            continue
        yield StoredResult(root, published, scratch)


def _identity(root: Root, path: str) -> Identity | None:
    try:
        identity = parse_json(root.read(f"{path}/stage.json"))
    except (FileNotFoundError, ValueError):
        return None
    return identity if isinstance(identity, dict) else None
