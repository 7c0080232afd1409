"""File system calls that some mounts refuse: SMB, NFS, gcsfuse, container volumes."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

REFUSALS = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY}
"""What a file system answers to a call that it does not support."""

NO_LOCKS = {errno.ENOLCK, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What a file system without file locks answers."""


@contextmanager
def optional() -> Iterator[None]:
    """Skip a call that a file system refuses: for what is good to have but not needed for safety, such as a mode."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
