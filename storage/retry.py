"""The retry policy of the whole project: how many attempts, how long the pauses between them. Built on tenacity."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, retry_if_result, stop_after_attempt
from tenacity.retry import RetryBaseT
from tenacity.wait import WaitBaseT, wait_random_exponential

from bootpig.storage.faults import is_transient

T = TypeVar("T")

ATTEMPTS = 4
"""Of one call. Below it botocore tries a single request again; this is for what that does not see: an answer that ends
in its middle, a part of an upload that is lost, file systems without retries of their own."""

PAUSE_SECONDS = 0.5
"""The longest first pause; each further one may be twice as long."""

MOST_SECONDS = 60.0
"""The longest pause."""


def patiently(action: Callable[[], T]) -> T:
    """`action()`, again after a fault that `is_transient`. Raises the last attempt's fault, or any other at once."""
    return retrying(is_transient)(action)


def while_left(action: Callable[[], T]) -> T:
    """`action()`, again as long as it returns what it has left undone. Returns what the last attempt has left."""
    return _retrying(retry_if_result(bool), retry_error_callback=_result)(action)


def retrying(
    transient: Callable[[BaseException], bool],
    *,
    attempts: int = ATTEMPTS,
    pause: WaitBaseT | None = None,
    stopped: threading.Event | None = None,
) -> Retrying:
    """What calls a function again after a fault that is `transient`; the last fault is raised as it came.

    Args:
        transient: asked for each `Exception`, by type and status code. Access refused is never transient.
        pause: seconds to wait after an attempt; default `backoff()`.
        stopped: once set, a pause ends at once and there is no further attempt.
    """
    again = retry_if_exception(lambda error: isinstance(error, Exception) and transient(error))
    return _retrying(again, attempts=attempts, pause=pause, stopped=stopped, reraise=True)


def backoff() -> WaitBaseT:
    """Exponential pauses with jitter, so that processes that failed together don't come back together."""
    return wait_random_exponential(multiplier=PAUSE_SECONDS, min=PAUSE_SECONDS / 2, max=MOST_SECONDS)


def _retrying(
    again: RetryBaseT,
    attempts: int = ATTEMPTS,
    pause: WaitBaseT | None = None,
    stopped: threading.Event | None = None,
    reraise: bool = False,
    retry_error_callback: Callable[[RetryCallState], object] | None = None,
) -> Retrying:
    last = stop_after_attempt(attempts)
    return Retrying(
        retry=again,
        # tenacity's own `sleep_using_event` makes one more attempt when the event ends the pause; so wait it out here
        stop=last if stopped is None else lambda state: last(state) or stopped.wait(state.upcoming_sleep),
        sleep=time.sleep if stopped is None else lambda seconds: None,
        wait=pause or backoff(),
        reraise=reraise,
        retry_error_callback=retry_error_callback,
    )


def _result(state: RetryCallState) -> object:
    assert state.outcome is not None
    return state.outcome.result()
