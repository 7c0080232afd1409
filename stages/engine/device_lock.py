"""Gives each device of this machine to one process at a time, with file locks that are freed when a process dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from bootpig.stages.engine.contract import InputError
from bootpig.storage.refusals import NO_LOCKS, optional

POLL_SECONDS = 0.2
MAX_PROCESSES = 64
"""More than any machine has devices."""


def devices(name: str) -> dict[str, int | None]:
    """The devices of this machine that a setting allows, by the names of their locks. Empty for the CPU.

    Args:
        name: as in a stage's `device`: `auto` or `cuda` (any GPU), `cpu`, `cuda:1`, `mps`.

    Returns:
        Name → CUDA index in this process, or None for other kinds of devices. A GPU is named by its UUID, because with
        CUDA_VISIBLE_DEVICES `cuda:0` can be another GPU in each process. A GPU that does not exist is left out; loading
        a model on it raises an error that names it.
    """
    kind, _, index = name.partition(":")
    if kind == "cpu":
        return {}
    if kind not in ("auto", "cuda"):
        return {name: None}
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    numbers = range(count) if not index else [number for number in (int(index),) if number < count]
    return {f"cuda-{torch.cuda.get_device_properties(number).uuid}": number for number in numbers}


def too_many_processes(stage: str, wanted: int | str, count: int) -> list[str]:
    """The problem if a stage's `num_processes` is above the `count` devices, in one line. A CPU takes any number."""
    if not isinstance(wanted, int) or wanted == 1 or not 0 < count < wanted:
        return []
    return [f"{stage}.num_processes: {wanted}, but this machine has {count} devices; lower it, or use auto"]


def _open_lock(name: str) -> int:
    """Open a lock file that all users of this machine share. Other users can write to the temporary folder too, so no
    symbolic links are followed.

    Raises:
        InputError: the lock folder is a link or a file, or the lock is a link.
    """
    folder = Path(tempfile.gettempdir()) / "bootpig-locks"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o777)
    try:
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        raise InputError(f"TMPDIR: {str(folder)!r} → is a link or a file, not a folder; remove it") from None
    try:
        with optional():  # fails if another user owns it; that user has already set the mode
            os.fchmod(place, 0o1777)
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=place)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"TMPDIR: {str(folder / name)!r} → is a link, not a lock file; remove it") from None
    finally:
        os.close(place)


def _locked(name: str) -> int | None:
    """Open and lock the lock file of this name. None if another process holds the lock."""
    handle = _open_lock(f"{re.sub(r'[^A-Za-z0-9_.-]', '-', name)}.lock")
    try:
        with optional():
            os.fchmod(handle, 0o666)
        # a POSIX lock, not flock: a forked loader process that outlives its parent must not keep the lock
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        os.close(handle)
        if error.errno not in NO_LOCKS:
            raise
        raise InputError(
            f"TMPDIR: {tempfile.gettempdir()!r} → this file system has no file locks ({error.strerror}); set it to a "
            "folder on a local disk"
        ) from None
    except BaseException:
        os.close(handle)
        raise
    return handle


@contextlib.contextmanager
def exclusive(names: Collection[str], waits: Callable[[], None] = lambda: None) -> Iterator[str | None]:
    """Reserve one of these devices for this process until the block ends. Does not separate threads of this process.

    Args:
        names: from `devices`. Empty for the CPU, which needs no lock.
        waits: called repeatedly while other processes hold all of them. An exception that it raises ends the wait.

    Yields:
        The name of the device, None for the CPU.
    """
    if not names:
        yield None
        return
    while True:
        for name in names:
            handle = _locked(name)
            if handle is not None:
                try:
                    yield name
                finally:
                    os.close(handle)
                return
        waits()
        time.sleep(POLL_SECONDS)


class Home:
    """The device on which this process keeps its models. Other processes choose it only if no device is free."""

    def __init__(self, allowed: Collection[str]) -> None:
        """Claim a device on which no other process keeps models. Claims none if there is only one, or none is free."""
        self.name: str | None = None
        self._handle: int | None = None
        for name in allowed if len(allowed) > 1 else ():
            self._handle = _locked(f"{name}-home")
            if self._handle is not None:
                self.name = name
                return

    def leave(self) -> None:
        """Release the device for other processes."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
