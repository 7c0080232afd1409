"""One loaded stage a process: its models are loaded once and freed when another stage takes its place."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bootpig.models.memory import free_memory, keep_freed_memory
from bootpig.stages.engine.contract import Stage
from bootpig.stages.engine.device_lock import device_key, exclusive

if TYPE_CHECKING:
    from bootpig.stages.config import PipelineConfig

_LOCK = threading.RLock()
_CURRENT: tuple[str, Stage] | None = None
_LOADS = 0


@contextmanager
def loaded(stage: Stage, config: PipelineConfig, waits: Callable[[], None] = lambda: None) -> Iterator[Stage]:
    """`stage`, or the equal one this process has loaded already, for the caller alone until the block ends; likewise
    its GPU among the processes of this host.

    Torch's threads are pinned to `config.threads`, on which the last bits of a CPU result depend.

    Args:
        waits: called again and again while another process has the GPU; what it raises ends the wait.
    """
    global _CURRENT, _LOADS
    key = f"{stage.name}/{stage.seed}/{stage.config.model_dump_json()}"
    with _LOCK, exclusive(device_key(stage.device()), waits):
        if _CURRENT is None or _CURRENT[0] != key:
            release()
            keep_freed_memory()
            stage.setup()
            _LOADS += 1
            _CURRENT = (key, stage)
        torch = sys.modules.get("torch")
        if torch is not None and torch.get_num_threads() != config.threads:
            torch.set_num_threads(config.threads)
        yield _CURRENT[1]


def load_count() -> int:
    """How often this process has loaded a stage's models; the log of each unit tells."""
    return _LOADS


def release() -> None:
    """Free the models of the stage this process has loaded."""
    global _CURRENT
    with _LOCK:
        if _CURRENT is None:
            return
        _CURRENT[1].teardown()
        _CURRENT = None
        free_memory()
