"""Keeps pieces of an unfinished result in the store, so that a killed run can resume."""

from __future__ import annotations

import logging
import re

from bootpig.storage.fingerprint import bytes_digest
from bootpig.storage.root import Root

_PREFIX = "pieces-"

_LOG = logging.getLogger(__name__)


def open_pieces(root: Root, path: str, key: str) -> StoredPieces:
    """The pieces with this `key` (see `Checkpoints.pieces`) in a stage's folder `path`. All others are removed."""
    folder = f"{_PREFIX}{key[:16]}"
    clear_pieces(root, path, but=folder)
    return StoredPieces(root, f"{path}/{folder}")


def clear_pieces(root: Root, path: str, but: str = "") -> None:
    """Remove all pieces in a stage's folder `path`, except those in the folder `but`."""
    for name in root.folders(path):
        if name.startswith(_PREFIX) and name != but:
            root.remove(f"{path}/{name}", recursive=True)


class StoredPieces:
    """`Pieces` (see `contract`) in one folder of the store. Files are named after the piece and its sha256."""

    def __init__(self, root: Root, folder: str) -> None:
        self.root = root
        self.folder = folder
        self._found: dict[str, list[str]] = {}
        for file in sorted(root.names(folder)):
            if match := re.fullmatch(r"([\w-]+)\.([0-9a-f]{64})", file):
                self._found.setdefault(match[1], []).append(match[2])

    def put(self, name: str, data: bytes) -> None:
        name, sha256 = _safe(name), bytes_digest(data)
        self.root.write(f"{self.folder}/{name}.{sha256}", data)
        self._found[name] = [sha256]

    def get(self, name: str) -> bytes | None:
        name = _safe(name)
        for sha256 in self._found.get(name, ()):
            path = f"{self.folder}/{name}.{sha256}"
            try:
                data = self.root.read(path)
            except FileNotFoundError:
                continue
            if bytes_digest(data) == sha256:
                return data
            _LOG.warning("%s: altered or incomplete; it is rebuilt", path)
            self.root.remove(path)
        return None


def _safe(name: str) -> str:
    return re.sub(r"[^\w-]", "_", name, flags=re.ASCII)
