"""The retry policy: what is tried again, how often, and what ends a pause."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from tenacity.wait import wait_fixed

from bootpig.storage import retry
from bootpig.storage.retry import ATTEMPTS, backoff, patiently, retrying, while_left


class Answer(Exception):
    """An error that carries an HTTP status, as gcsfs's do."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


class Calls:
    """A function that raises the given faults, one per call, the last of them for good."""

    def __init__(self, *faults: BaseException) -> None:
        self.faults = list(faults)
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        if self.faults:
            raise self.faults.pop(0) if len(self.faults) > 1 else self.faults[0]
        return "done"


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSE_SECONDS", 0.001)


@pytest.mark.parametrize(
    "fault", [ConnectionError(), TimeoutError(), Answer(500), Answer(503), Answer(408), Answer(425), Answer(429)]
)
def test_a_fault_that_passes_is_tried_again_a_bounded_number_of_times(fault: Exception) -> None:
    calls = Calls(fault)
    with pytest.raises(type(fault)) as caught:
        patiently(calls)
    assert calls.count == ATTEMPTS and caught.value is fault, "as it came, not wrapped"


@pytest.mark.parametrize(
    "fault",
    [PermissionError(), FileNotFoundError(), Answer(401), Answer(403), Answer(404), ValueError(), KeyboardInterrupt()],
)
def test_every_other_fault_is_raised_at_once(fault: BaseException) -> None:
    calls = Calls(fault)
    with pytest.raises(type(fault)):
        patiently(calls)
    assert calls.count == 1


def test_an_exit_with_a_number_like_a_status_is_no_fault() -> None:
    calls = Calls(SystemExit(503))
    with pytest.raises(SystemExit):
        patiently(calls)
    assert calls.count == 1


def test_a_refusal_after_a_fault_that_passes_ends_it() -> None:
    calls = Calls(ConnectionError(), Answer(401))
    with pytest.raises(Answer):
        patiently(calls)
    assert calls.count == 2


def test_what_is_left_is_returned_after_the_last_attempt() -> None:
    left = [["a", "b"], ["b"], []]
    assert while_left(lambda: left.pop(0)) == []
    calls: list[int] = []

    def stubborn() -> list[str]:
        calls.append(1)
        return ["b"]

    assert while_left(stubborn) == ["b"] and len(calls) == ATTEMPTS


def test_a_stop_ends_a_pause_at_once_without_another_attempt() -> None:
    stopped = threading.Event()
    calls = Calls(ConnectionError("first"), ConnectionError("second"))
    again = retrying(lambda error: True, pause=wait_fixed(60), stopped=stopped)
    threading.Timer(0.1, stopped.set).start()
    started = time.monotonic()
    with pytest.raises(ConnectionError, match="first"):
        again(calls)
    assert calls.count == 1 and again.statistics["attempt_number"] == 1
    assert time.monotonic() - started < 30


def test_pauses_grow_and_differ() -> None:
    state = _at_attempt(retrying(lambda error: True))
    pauses = [[backoff()(state(attempt)) for _ in range(50)] for attempt in (1, 2, 3)]
    for attempt, drawn in enumerate(pauses):
        assert len(set(drawn)) > 1
        assert all(0.0005 <= seconds <= 0.001 * 2**attempt for seconds in drawn)
    assert max(pauses[2]) > max(pauses[0])


def _at_attempt(again: retry.Retrying) -> Callable[[int], retry.RetryCallState]:
    def state(number: int) -> retry.RetryCallState:
        made = retry.RetryCallState(again, None, (), {})
        made.attempt_number = number
        return made

    return state
