"""One process at a time on a device of this host: a file lock, which the kernel frees when its owner dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bootpig.stages.engine.contract import InputError

POLL_SECONDS = 0.2


def device_key(name: str) -> str | None:
    """What stands for a device on this host, or None for the CPU, which many may use at once.

    Args:
        name: as in a stage's `device`: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`. A GPU is known by its UUID: behind
            CUDA_VISIBLE_DEVICES `cuda:0` is another one in each process.
    """
    kind, _, index = name.partition(":")
    if kind == "cpu":
        return None
    if kind in ("auto", "cuda"):
        import torch

        number = int(index or 0)
        if not torch.cuda.is_available() or number >= torch.cuda.device_count():
            return None  # a device that is not there is named by whoever loads a model on it
        return f"cuda-{torch.cuda.get_device_properties(number).uuid}"
    return name


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
        with contextlib.suppress(PermissionError):  # another user owns it and has already done this
            os.fchmod(place, 0o1777)
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=place)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"TMPDIR: {str(folder / name)!r} → is a link, not a lock file; remove it") from None
    finally:
        os.close(place)


@contextlib.contextmanager
def exclusive(key: str | None, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Have a device for this process alone until the block ends. The caller keeps its own threads apart.

    Args:
        key: of `device_key`; None needs no lock.
        waits: called again and again while another process has it; what it raises ends the wait.
    """
    if key is None:
        yield
        return
    handle = _open_lock(f"{re.sub(r'[^A-Za-z0-9_.-]', '-', key)}.lock")
    try:
        with contextlib.suppress(PermissionError):
            os.fchmod(handle, 0o666)
        while True:
            try:
                # POSIX, not flock: a forked loader process that outlives its parent must not keep it
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waits()
                time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(handle)
