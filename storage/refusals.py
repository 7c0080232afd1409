"""Handles file system calls that some mounts do not support: SMB, NFS, gcsfuse, container volumes."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

REFUSALS = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY}
"""Error numbers of file systems for calls that they do not support."""

NO_LOCKS = {errno.ENOLCK, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Error numbers of file systems without file locks."""


@contextmanager
def optional() -> Iterator[None]:
    """Ignore errors of calls that the file system does not support. For calls that are not needed for correctness, such
    as setting a mode."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
