"""Runs a reduce stage in several processes of this machine: this process is rank 0, the others are its children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import FatalError

GRACE_SECONDS = 30.0
"""Time that the other ranks have to end after rank 0."""
SETTLE_SECONDS = 5.0
"""Time to find out whether an error of rank 0 came from the end of another rank."""


@contextlib.contextmanager
def started(config: PipelineConfig, stage: str, count: int) -> Iterator[None]:
    """A context in which this process is rank 0 of `count` processes that run `stage`, as torchrun would start them.

    The environment has torch.distributed's variables until the context ends. Then all other ranks have ended: by
    themselves after a success or a signal that all of them agreed on, otherwise by force.

    Raises:
        FatalError: another rank died.
    """
    if count <= 1 or "RANK" in os.environ:
        yield
        return
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    with tempfile.TemporaryDirectory(prefix="bootpig-") as logs:
        others = [_Rank(config, stage, rank, shared, Path(logs)) for rank in range(1, count)]
        before = {name: os.environ.get(name) for name in (*shared, "RANK", "LOCAL_RANK")}
        os.environ.update(shared, RANK="0", LOCAL_RANK="0")
        agreed = False
        try:
            yield
            agreed = True
        except SystemExit:  # a signal, at which all ranks stop after the same update
            agreed = True
            raise
        except (FatalError, ValueError):  # rank 0 itself knows what is wrong
            raise
        except Exception as error:
            if lost := _lost(others, SETTLE_SECONDS):
                raise FatalError(f"{stage}: {lost}; run again, which goes on from the newest checkpoint") from error
            raise
        finally:
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

    def __init__(self, config: PipelineConfig, stage: str, rank: int, shared: dict[str, str], logs: Path) -> None:
        self.rank = rank
        self.log = logs / f"rank-{rank}"
        with self.log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bootpig.stages.engine.rank", stage],
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


def _lost(others: list[_Rank], seconds: float) -> str:
    """The first rank that died, in one line, waiting up to `seconds` for one. Empty if all live."""
    deadline = time.monotonic() + seconds
    while True:
        if found := [failure for other in others if (failure := other.failure())]:
            # a rank that was killed is the cause; the others then lose their connections
            return min(found, key=lambda failure: "killed" not in failure)
        if time.monotonic() > deadline:
            return ""
        time.sleep(0.1)


def _leave_group() -> None:
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
