"""Uploads checkpoints in the background while training continues."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from bootpig.stages.engine.saved import Checkpoints


class Uploads:
    """Writes checkpoints to a local folder and uploads them one at a time in a background thread.

    Only the process that saves waits, and only for the previous upload. If other ranks waited for it in a collective,
    they could reach the timeout. Leaving the context waits for the last upload.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:  # otherwise the current exception matters more than that of an upload
            self.wait()

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Let `write` fill a local folder, then start its upload.

        Raises:
            StoreError: the previous upload failed.
        """
        folder = TemporaryDirectory(prefix="bootpig-")
        try:
            write(Path(folder.name))
            self.wait()
        except BaseException:
            folder.cleanup()
            raise
        self._running = self._pool.submit(self._upload, step, folder)

    def _upload(self, step: int, folder: TemporaryDirectory[str]) -> None:
        with folder:
            self.checkpoints.save(step, Path(folder.name))

    def busy(self, seconds: float) -> bool:
        """Whether an upload still runs after `seconds`."""
        return self._running is not None and bool(wait([self._running], seconds).not_done)

    def wait(self) -> None:
        """Wait for the current upload. Raises its exception, if any."""
        running, self._running = self._running, None
        if running is not None:
            running.result()
