"""Exceptions raised by the store. Each message is one line that says where the problem is and how to fix it."""

from __future__ import annotations

import errno

from bootpig.storage.secrets import mask

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""Of an OSError: the disk is full, or the user's share of it."""


class StoreError(ValueError):
    """The store cannot be used as given."""

    def __init__(self, message: str) -> None:
        super().__init__(mask(message))


class StoreFull(StoreError):
    """There is no space left. Committed data is kept."""


class StoreUnavailable(StoreError):
    """The store still fails to answer after all retries. Committed data is kept."""


class CorruptPart(StoreError):
    """Stored bytes are missing or do not match their checksum."""
