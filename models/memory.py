"""Memory of the process: allocator settings, detecting out of memory, freeing memory, its peak."""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Make glibc reuse large freed blocks instead of returning them to the kernel after each operation.

    Every activation of a CPU training step is a large block, and allocating it again costs page faults: about 5 % of a
    step of the toy BootPIG. In return, the process keeps its peak memory until it ends.

    Returns:
        Whether the C library accepted the setting; False if it is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the host or a device is out of memory. Does not import torch."""
    return isinstance(error, MemoryError) or any(c.__name__ == "OutOfMemoryError" for c in type(error).__mro__)


def free_memory() -> None:
    """Free unreferenced memory on the host and on the GPU."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _allocated(device: Any) -> Any:
    """The module of torch that counts the memory of a torch.device. None if nothing does, as for the CPU."""
    module = getattr(sys.modules["torch"], device.type, None)
    return module if hasattr(module, "max_memory_allocated") else None


def reset_peak_memory(device: Any) -> None:
    """Count the peak of a device's memory from now on. Without effect on a CPU, whose processes have one peak."""
    if (counted := _allocated(device)) is not None:
        counted.reset_peak_memory_stats(device)


def peak_memory(device: Any) -> int:
    """Peak memory in bytes: what torch had allocated on a torch.device since `reset_peak_memory`, or, on a CPU, the
    largest resident set that this process ever had."""
    if (counted := _allocated(device)) is not None:
        return int(counted.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
    except (OSError, IndexError):  # not Linux, where getrusage would start from the peak of the parent process
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
