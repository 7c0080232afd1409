"""Divides the work of a reduce stage among ranks that need no collectives: they only tell how far they are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Protocol, Self

from bootpig.stages.engine.contract import FatalError

STALL_SECONDS = 2 * 3600.0
"""Time after which ranks that tell no progress count as stuck."""
POLL_SECONDS = 0.2


class Meeting(Protocol):
    """Numbers that all ranks share, such as a `torch.distributed.TCPStore`."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a number and return it. Raises RuntimeError if the store is gone."""


class Share:
    """The part of this process. Of a single process, it is everything."""

    def __init__(self, rank: int = 0, count: int = 1, meeting: Meeting | None = None) -> None:
        self.rank = rank
        self.count = count
        self._meeting = meeting

    @classmethod
    def of_environment(cls) -> Self:
        """The part of the rank that `engine.ranks` started, or torchrun."""
        count = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
        if count == 1:
            return cls()
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return cls(int(os.environ["RANK"]), count, TCPStore(address, port, is_master=False))

    def __contains__(self, number: int) -> bool:
        """Whether a piece of the work is this rank's. Numbers in a row are dealt out in turn."""
        return number % self.count == self.rank

    def tell(self, work: str, amount: int) -> None:
        """Tell the first rank that this one has done so much more of `work`. Its results must be in the store."""
        if self.rank and self._meeting is not None:
            self._meeting.add(f"bootpig/{work}", amount)

    def told(self, work: str) -> int:
        """How much of `work` all ranks but the first have told.

        Raises:
            RuntimeError: a rank has died.
        """
        return 0 if self._meeting is None else int(self._meeting.add(f"bootpig/{work}", 0))

    def wait(self, work: str, amount: int, progress: Callable[[int], None] = lambda done: None) -> None:
        """In the first rank: wait until the others have told `amount` of `work`.

        Args:
            progress: called with the amount that they have told so far.

        Raises:
            FatalError: they have told nothing new for a long time.
            RuntimeError: a rank has died.
        """
        done, since = -1, time.monotonic()
        while (told := self.told(work)) < amount:
            if told > done:
                done, since = told, time.monotonic()
                progress(told)
            elif time.monotonic() - since > STALL_SECONDS:
                raise FatalError(
                    f"{work}: the other processes have done nothing for {STALL_SECONDS / 3600:g} h, {told} of {amount} "
                    "are done; run again, which goes on from what is in the store"
                )
            time.sleep(POLL_SECONDS)
        progress(amount)
