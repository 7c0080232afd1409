"""Memory settings of the process."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Let glibc reuse large freed blocks in place of returning them to the kernel after each operation.

    Every activation of a CPU training step is a large block, and getting it anew costs its page faults: about 5 % of a
    step of the toy BootPIG. A process keeps its peak memory until it ends.

    Returns:
        Whether the C library took the setting; False where it is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
