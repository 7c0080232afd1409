"""Memory of the process: allocator settings, detecting out of memory, freeing memory."""

from __future__ import annotations

import ctypes
import gc
import sys
from functools import lru_cache

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
