"""What rank 0 does when another rank dies, does not answer, or a signal arrives. The other ranks are idle processes."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bootpig.stages.engine import ranks, share
from bootpig.stages.engine.contract import FatalError, Interrupted
from bootpig.stages.engine.ranks import started
from bootpig.stages.engine.share import Share
from tests.stages import doubles

IDLE: list[subprocess.Popen[bytes]] = []


class Idle(ranks._Rank):
    """A process in place of a rank: it does nothing, or ends with a message."""

    command = ("sleep", "60")

    def __init__(self, config: Any, stage: str, rank: int, shared: dict[str, str], logs: Path, force: bool) -> None:
        self.rank = rank
        self.log = logs / f"rank-{rank}"
        with self.log.open("wb") as stderr:
            self.process = subprocess.Popen(self.command, stderr=stderr)
        IDLE.append(self.process)


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ranks, "_Rank", Idle)
    monkeypatch.setattr(ranks, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(share, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(ranks, "SETTLE_SECONDS", 0.5)
    IDLE.clear()
    yield
    assert "RANK" not in os.environ and len(IDLE) > 0
    assert all(process.poll() is not None for process in IDLE), "no rank is left"


@pytest.fixture
def config(tmp_path: Path) -> Any:
    return doubles.config(tmp_path)


def run(config: Any, count: int, act: Callable[[], None]) -> None:
    """Call `act` as rank 0 of `count` ranks."""
    with started(config, "evaluate", count):
        act()


def reraise(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def wait() -> None:
    Share.of_environment().wait("pictures", 1)


def test_a_rank_that_is_killed_ends_the_wait_for_it(config: Any) -> None:
    def act() -> None:
        mine = Share.of_environment()
        assert (mine.rank, mine.count) == (0, 3)
        assert [number in mine for number in range(4)] == [True, False, False, True]
        IDLE[1].kill()
        mine.wait("pictures", 1)

    with pytest.raises(FatalError, match=r"^evaluate: rank 2 was killed by signal 9; run again"):
        run(config, 3, act)


def test_a_rank_that_fails_says_why(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Idle, "command", ("sh", "-c", "echo 'no memory' >&2; exit 1"))
    with pytest.raises(FatalError, match=r"^evaluate: rank 1 ended with no memory; run again"):
        run(config, 2, wait)


def test_ranks_tell_the_first_how_far_they_are(config: Any) -> None:
    seen: list[int] = []

    def act() -> None:
        mine = Share.of_environment()
        other = Share(1, 2, mine._meeting)
        mine.tell("pictures", 5)
        other.tell("pictures", 2)
        assert mine.told("pictures") == 2, "only what others do is waited for"
        other.tell("pictures", 1)
        mine.wait("pictures", 3, seen.append)
        IDLE[0].terminate()

    run(config, 2, act)
    assert seen == [3]


def test_ranks_that_do_nothing_are_waited_for_only_so_long(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "STALL_SECONDS", 0.2)
    with pytest.raises(FatalError, match="0 of 1 are done; run again"):
        run(config, 2, wait)


@pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt(), FatalError("no memory"), ValueError("wrong")])
def test_other_ranks_end_at_once_with_rank_0(config: Any, error: BaseException) -> None:
    begun = time.monotonic()
    with pytest.raises(type(error)):
        run(config, 2, reraise(error))
    assert time.monotonic() - begun < ranks.GRACE_SECONDS / 2


def test_a_signal_that_all_ranks_agreed_on_leaves_them_time(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Idle, "command", ("sh", "-c", "sleep 1; exit 143"))
    with pytest.raises(Interrupted):
        run(config, 2, reraise(Interrupted(143)))
    assert IDLE[0].returncode == 143


def test_a_rank_that_does_not_answer_is_named(config: Any) -> None:
    late = RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation")
    with pytest.raises(FatalError, match=r"^evaluate: rank 1 did not answer in time; run again"):
        run(config, 2, reraise(late))


def test_an_error_of_rank_0_stays_what_it_is(config: Any) -> None:
    with pytest.raises(RuntimeError, match=r"^shapes do not fit$"):
        run(config, 2, reraise(RuntimeError("shapes do not fit")))


def test_rank_0_that_never_notices_is_ended(
    config: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(ranks, "NOTICE_SECONDS", 0.1)
    monkeypatch.setattr(os, "_exit", codes.append)

    def act() -> None:
        IDLE[0].kill()
        deadline = time.monotonic() + 30
        while not codes and time.monotonic() < deadline:
            time.sleep(0.02)

    run(config, 2, act)
    assert codes == [1]
    assert (
        "evaluate: rank 1 was killed by signal 9; complete units and checkpoints are kept\n" in capfd.readouterr().err
    )
