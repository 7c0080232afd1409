"""One process at a time on a device of this host: a file lock, which the kernel frees when its owner dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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
    folder = Path(tempfile.gettempdir()) / "bootpig-locks"
    folder.mkdir(mode=0o777, exist_ok=True)
    with contextlib.suppress(PermissionError):  # of another user, who has done it
        folder.chmod(0o1777)
    file = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', key)}.lock"
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
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
