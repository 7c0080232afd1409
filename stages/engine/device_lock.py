"""Assigns the devices of this machine to processes, one process at a time, by file locks that a dead owner frees."""

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


def devices(name: str) -> dict[str, int | None]:
    """The devices of this host that a setting allows, by the names of their locks; empty for the CPU.

    Args:
        name: as in a stage's `device`: `auto` and `cuda` (any GPU), `cpu`, `cuda:1`, `mps`.

    Returns:
        Name → CUDA index in this process, None for another kind of device. A GPU is named by its UUID: behind
        CUDA_VISIBLE_DEVICES `cuda:0` is another one in each process. A GPU that is not there is left out: whoever
        loads a model on it names it.
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


def _open_lock(name: str) -> int:
    """A lock file that all users of this host share, open. The temporary folder is theirs too: no link is followed.

    Raises:
        InputError: somebody has put a link or a file in the place of the folder, or a link in that of the lock.
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
        with optional():  # another user owns it and has already done this
            os.fchmod(place, 0o1777)
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=place)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"TMPDIR: {str(folder / name)!r} → is a link, not a lock file; remove it") from None
    finally:
        os.close(place)


def _locked(name: str) -> int | None:
    """The lock file of this name, open and locked, or None if another process has it."""
    handle = _open_lock(f"{re.sub(r'[^A-Za-z0-9_.-]', '-', name)}.lock")
    try:
        with optional():
            os.fchmod(handle, 0o666)
        # POSIX, not flock: a forked loader process that outlives its parent must not keep it
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        os.close(handle)
        if error.errno not in NO_LOCKS:
            raise
        raise InputError(
            f"TMPDIR: {tempfile.gettempdir()!r} → this file system has no file locks ({error.strerror}); set TMPDIR to "
            "a folder on a local disk"
        ) from None
    except BaseException:
        os.close(handle)
        raise
    return handle


@contextlib.contextmanager
def exclusive(names: Collection[str], waits: Callable[[], None] = lambda: None) -> Iterator[str | None]:
    """Have one of these devices for this process alone until the block ends. The caller keeps its own threads apart.

    Args:
        names: of `devices`; none for the CPU, which needs no lock.
        waits: called again and again while other processes have all of them; what it raises ends the wait.

    Yields:
        The name of the device; None for the CPU.
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
    """The device that this process holds models on. No other process chooses it while one is left that nobody holds."""

    def __init__(self, allowed: Collection[str]) -> None:
        """Claim a device that no other process holds models on; none if there is only one, or none is left."""
        self.name: str | None = None
        self._handle: int | None = None
        for name in allowed if len(allowed) > 1 else ():
            self._handle = _locked(f"{name}-home")
            if self._handle is not None:
                self.name = name
                return

    def leave(self) -> None:
        """Let others choose the device."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
