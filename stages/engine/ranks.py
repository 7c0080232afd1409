"""Runs a reduce stage in several processes of this machine: this process is rank 0, the others are its children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import FatalError, Interrupted

GRACE_SECONDS = 30.0
"""Time that the other ranks have to end after rank 0."""
SETTLE_SECONDS = 5.0
"""Time to find out whether an error of rank 0 came from the end of another rank."""
NOTICE_SECONDS = 600.0
"""Time in which rank 0 notices the end of another rank; else its process exits. A collective on a GPU never does."""
POLL_SECONDS = 0.2


@contextlib.contextmanager
def started(config: PipelineConfig, stage: str, count: int, *, force: bool = False) -> Iterator[None]:
    """A context in which this process is rank 0 of `count` processes that run `stage`, as torchrun would start them.

    The environment has torch.distributed's variables until the context ends. Then all other ranks have ended: by
    themselves after a success or a signal that all of them agreed on, otherwise by force.

    Args:
        force: whether the result is made although there is one.

    Raises:
        FatalError: another rank died, or does not answer.
    """
    if count <= 1 or "RANK" in os.environ:
        yield
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    # The ranks meet at a store of this process, not of its rank 0, so that its end can be felt by whoever waits there.
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(meeting.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    with tempfile.TemporaryDirectory(prefix="bootpig-") as logs:
        others = [_Rank(config, stage, rank, shared, Path(logs), force) for rank in range(1, count)]
        watch = _Watch(stage, others, meeting)
        del meeting
        before = {name: os.environ.get(name) for name in (*shared, "RANK", "LOCAL_RANK")}
        os.environ.update(shared, RANK="0", LOCAL_RANK="0")
        agreed = False
        try:
            watch.start()
            yield
            agreed = True
        except Interrupted:
            agreed = True
            raise
        except (FatalError, ValueError):  # rank 0 itself knows what is wrong
            raise
        except Exception as error:
            if reason := watch.reason(error):
                raise FatalError(f"{reason}; run again, which goes on from what is in the store") from error
            raise
        finally:
            watch.over.set()
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            _leave_group()
            for other in others:
                other.end(GRACE_SECONDS if agreed else 0.0)


class _Rank:
    """A process that runs the stage as another rank. It ends when this process does."""

    def __init__(
        self, config: PipelineConfig, stage: str, rank: int, shared: dict[str, str], logs: Path, force: bool
    ) -> None:
        self.rank = rank
        self.log = logs / f"rank-{rank}"
        with self.log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bootpig.stages.engine.rank", stage, *(["--force"] if force else [])],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C reaches rank 0 alone, which tells the others
            )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(config.model_dump_json().encode() + b"\n")
            self.process.stdin.flush()

    def failure(self) -> str:
        """How the process died, in one line. Empty if it runs or ended well."""
        code = self.process.poll()
        if code is None or code in (0, 128 + signal.SIGTERM, 128 + signal.SIGINT):
            return ""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {lines[-1][:300] if lines else code}"
        return f"rank {self.rank} {how}"

    def end(self, grace: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()


class _Watch(threading.Thread):
    """Watches the other ranks. When one dies, it closes the place where they meet, so that nobody waits there."""

    def __init__(self, stage: str, others: list[_Rank], meeting: Any) -> None:
        super().__init__(name="ranks", daemon=True)
        self.stage = stage
        self.others = others
        self.over = threading.Event()
        self._meeting = meeting
        self._died = threading.Event()
        self._lost = ""

    def run(self) -> None:
        while not self.over.wait(POLL_SECONDS):
            if found := [failure for other in self.others if (failure := other.failure())]:
                # a rank that was killed is the cause; the others then lose their connections
                self._lost = f"{self.stage}: {min(found, key=lambda failure: 'killed' not in failure)}"
                self._died.set()
                self._meeting = None
                if not self.over.wait(NOTICE_SECONDS):
                    print(f"{self._lost}; complete units and checkpoints are kept", file=sys.stderr, flush=True)
                    os._exit(1)
                return

    def reason(self, error: Exception) -> str:
        """Which rank an error of rank 0 comes from, in one line. Empty if from none."""
        if self._died.wait(SETTLE_SECONDS):
            return self._lost
        silent = [str(other.rank) for other in self.others if other.process.poll() is None]
        # torch has no type of its own for a collective that took too long on a CPU
        if "timed out" in str(error).lower() and silent:
            return f"{self.stage}: rank {', '.join(silent)} did not answer in time"
        return ""


def _leave_group() -> None:
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
