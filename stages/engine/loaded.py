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
    """The stage that this process has loaded, and its device."""

    key: str
    stage: Stage
    device: str | None
    home: Home


_CURRENT: _Loaded | None = None
_LOADS = 0


@contextmanager
def loaded(stage: Stage, config: PipelineConfig, waits: Callable[[], None] = lambda: None) -> Iterator[Stage]:
    """Load `stage`, or use the equal one that this process has already loaded. Until the block ends, no other thread
    uses it, and no other process of this machine uses its GPU.

    With `device: auto`, each process loads its models on a GPU where no other process has any, if there is one, and
    keeps that GPU until it loads another stage. The number of torch's threads is set to `config.threads`, because the
    last bits of a CPU result depend on it.

    Args:
        waits: called repeatedly while another process has the GPU. An exception that it raises ends the wait.
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
    """Make a GPU torch's default one in this thread."""
    if index is not None:
        import torch

        torch.cuda.set_device(index)


def load_count() -> int:
    """How often this process has loaded the models of a stage. Written to the log of each unit."""
    return _LOADS


def release() -> None:
    """Free the models of the stage that this process has loaded."""
    global _CURRENT
    with _LOCK:
        if _CURRENT is None:
            return
        _CURRENT.stage.teardown()
        _CURRENT.home.leave()
        _CURRENT = None
        free_memory()
