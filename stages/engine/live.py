"""Copies the log of a running reduce stage to the store, so that others can watch it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bootpig.storage.errors import StoreError
from bootpig.storage.root import Root

COPY_SECONDS = 15.0
"""Time between two copies."""

COPY_BYTES = 2**20
"""Bytes of the end of the log that are copied: thousands of lines. An object store writes a file only as a whole."""

JOIN_SECONDS = 60.0
"""Time to wait for a copy in progress."""

_LOG = logging.getLogger(__name__)


def live_path(path: str) -> str:
    """Where the copy is, in the stage's folder `path`."""
    return f"{path}/live-log.jsonl"


@contextmanager
def copied(root: Root, path: str, log: Path) -> Iterator[None]:
    """A context in which the end of the file `log` is copied to the stage's folder `path` whenever it has grown.

    The copy stays if the context ends with an error, and is removed otherwise: the log is then in the result. A store
    that fails costs the copy, not the stage.
    """
    copy = _Copy(root, live_path(path), log)
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(COPY_SECONDS):
            copy.update()

    thread = threading.Thread(target=repeat, name="live-log", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        stop.set()
        thread.join(JOIN_SECONDS)
        copy.update()
        raise
    stop.set()
    thread.join(JOIN_SECONDS)
    with suppress(StoreError, OSError):
        root.remove(live_path(path))


class _Copy:
    """A copy of the end of a local file in the store."""

    def __init__(self, root: Root, path: str, file: Path) -> None:
        self.root = root
        self.path = path
        self.file = file
        self._size = 0
        self._warned = False

    def update(self) -> None:
        """Write the copy again if the file has another size. A failure is one warning."""
        try:
            size = self.file.stat().st_size if self.file.exists() else 0
            if size == self._size:
                return
            with self.file.open("rb") as stream:
                stream.seek(max(0, size - COPY_BYTES))
                self.root.write(self.path, stream.read())
            self._size = size
        except (StoreError, OSError) as error:
            if not self._warned:
                self._warned = True
                _LOG.warning("the log of the running stage cannot be copied to the store: %s", error)
