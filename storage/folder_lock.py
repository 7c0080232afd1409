"""Lets one process at a time write to a folder on a local disk. The lock ends with its process, also after a kill."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bootpig.storage.errors import StoreError
from bootpig.storage.refusals import NO_LOCKS, REFUSALS

LOCK = ".bootpig-lock"
"""Exists while a process writes, and after a kill. It holds a line that tells who."""


@contextmanager
def locked_folder(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes that ask for the same folder out until the block ends. Does nothing on a file system without
    file locks.

    Args:
        folder: must exist.
        what: the beginning of the message for those others, such as `--to: 'exported'`.

    Raises:
        StoreError: another process has it. The message names that process.
    """
    handle = _open(folder / LOCK, what)
    try:
        yield
    finally:
        if handle is not None:
            (folder / LOCK).unlink(missing_ok=True)  # before it is unlocked: the next process makes its own
            os.close(handle)


def _open(path: Path, what: str) -> int | None:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            return None
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            who = os.read(handle, 200).decode(errors="replace").strip()
            os.close(handle)
            if error.errno in NO_LOCKS:
                return None
            if not isinstance(error, (BlockingIOError, PermissionError)):
                raise
            raise StoreError(
                f"{what} → {who or 'another process'} is writing there; wait for its end, or choose another folder"
            ) from None
        if _is_same(handle, path):
            break
        os.close(handle)  # its owner has just removed it
    os.ftruncate(handle, 0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}, since {since},".encode())
    return handle


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
