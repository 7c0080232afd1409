"""Keeps one loaded stage per process: its models are loaded once and freed when another stage is loaded."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bootpig.models.memory import free_memory, keep_freed_memory
from bootpig.stages.engine.contract import Stage
from bootpig.stages.engine.device_lock import Home, devices, exclusive

if TYPE_CHECKING:
    from bootpig.stages.config import PipelineConfig

_LOCK = threading.RLock()


@dataclass
class _Loaded:
    """What this process has loaded, and where."""

    key: str
    stage: Stage
    device: str | None
    home: Home


_CURRENT: _Loaded | None = None
_LOADS = 0


@contextmanager
def loaded(stage: Stage, config: PipelineConfig, waits: Callable[[], None] = lambda: None) -> Iterator[Stage]:
    """`stage`, or the equal one this process has loaded already, for the caller alone until the block ends; likewise
    its GPU among the processes of this host.

    With `device: auto` each process loads its models on a GPU on which no other one has any, while there is one; it
    keeps that GPU until it loads another stage. Torch's threads are pinned to `config.threads`, on which the last bits
    of a CPU result depend.

    Args:
        waits: called again and again while another process has the GPU; what it raises ends the wait.
    """
    global _CURRENT, _LOADS
    key = f"{stage.name}/{stage.seed}/{stage.config.model_dump_json()}"
    with _LOCK:
        allowed = devices(stage.device())
        if _CURRENT is not None and _CURRENT.key == key:
            home, wanted = _CURRENT.home, _CURRENT.device
        else:
            release()
            home = Home(allowed)
            wanted = home.name
        try:
            with exclusive(allowed if wanted is None else [wanted], waits) as device:
                _use(allowed.get(device or ""))
                if _CURRENT is None:
                    keep_freed_memory()
                    stage.setup()
                    _LOADS += 1
                    _CURRENT = _Loaded(key, stage, device, home)
                torch = sys.modules.get("torch")
                if torch is not None and torch.get_num_threads() != config.threads:
                    torch.set_num_threads(config.threads)
                yield _CURRENT.stage
        finally:
            if _CURRENT is None:
                home.leave()


def _use(index: int | None) -> None:
    """Make a GPU the one that torch takes in this thread where none is named."""
    if index is not None:
        import torch

        torch.cuda.set_device(index)


def load_count() -> int:
    """How often this process has loaded a stage's models; the log of each unit tells."""
    return _LOADS


def release() -> None:
    """Free the models of the stage this process has loaded."""
    global _CURRENT
    with _LOCK:
        if _CURRENT is None:
            return
        _CURRENT.stage.teardown()
        _CURRENT.home.leave()
        _CURRENT = None
        free_memory()
