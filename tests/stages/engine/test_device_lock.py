"""The device lock between processes: who waits, and what a killed owner leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.device_lock import devices, exclusive
from bootpig.stages.engine.engine import WAITS, Engine
from bootpig.stages.registry import STAGES
from tests.stages.doubles import config, doubles  # noqa: F401

PROJECT = Path(__file__).parents[3]

HOLD = """
import os, sys, time
sys.path.insert(0, {project!r})
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.device_lock import exclusive
with exclusive([{key!r}]):
    if os.fork() == 0:  # as a loader's process: it outlives its parent
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold() -> Callable[[str], subprocess.Popen[str]]:
    """Starts a process, and a child of it, that has a device."""
    started = []

    def start(key: str) -> subprocess.Popen[str]:
        program = HOLD.format(project=str(PROJECT), key=key)
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the host, and beside it what a planted link points to."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "victim").mkdir(mode=0o700)
    (tmp_path / "victim" / "file").write_text("theirs")
    (tmp_path / "victim" / "file").chmod(0o600)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path


def modes(shared: Path) -> list[int]:
    return [path.stat().st_mode & 0o7777 for path in (shared / "victim", shared / "victim" / "file")]


@pytest.mark.parametrize("kind", ["link to a folder", "link to a file", "link to nothing", "file"])
def test_what_is_planted_in_place_of_the_folder_is_refused(shared: Path, kind: str) -> None:
    place = shared / "temporary" / "bootpig-locks"
    if kind == "file":
        place.write_text("")
    else:
        targets = {"link to a folder": "victim", "link to a file": "victim/file", "link to nothing": "nothing"}
        place.symlink_to(shared / targets[kind])
    with pytest.raises(InputError, match="is a link or a file, not a folder; remove it"), exclusive(["pretend:1"]):
        pass
    assert modes(shared) == [0o700, 0o600] and not (shared / "nothing").exists()


def test_a_link_planted_in_place_of_a_lock_is_refused(shared: Path) -> None:
    (shared / "temporary" / "bootpig-locks").mkdir()
    (shared / "temporary" / "bootpig-locks" / "pretend-1.lock").symlink_to(shared / "victim" / "file")
    with pytest.raises(InputError, match="is a link, not a lock file"), exclusive(["pretend:1"]):
        pass
    assert modes(shared) == [0o700, 0o600]


def test_every_user_may_use_the_locks(shared: Path) -> None:
    with exclusive(["pretend:1"]):
        folder = shared / "temporary" / "bootpig-locks"
        assert folder.stat().st_mode & 0o7777 == 0o1777
        assert (folder / "pretend-1.lock").stat().st_mode & 0o7777 == 0o666


def test_the_cpu_is_for_all() -> None:
    assert devices("cpu") == {}
    with exclusive([]), exclusive([]):
        pass


def test_a_killed_owner_frees_it_at_once(hold: Callable[[str], subprocess.Popen[str]]) -> None:
    owner = hold("pretend:0")
    waited = []

    def waits() -> None:
        waited.append(1)
        assert len(waited) < 100, "its forked child, which lives on, keeps the lock"
        if len(waited) == 3:
            os.kill(owner.pid, signal.SIGKILL)

    with exclusive(["pretend:0"], waits):
        pass
    assert len(waited) >= 3
    with exclusive(["pretend:1"]):  # another device never waited
        pass


def test_a_wait_can_be_ended(hold: Callable[[str], subprocess.Popen[str]]) -> None:
    hold("pretend:2")

    def waits() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError), exclusive(["pretend:2"], waits):
        pass


@pytest.mark.usefixtures("doubles")
def test_a_unit_waits_for_its_device(
    hold: Callable[[str], subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STAGES["synthesize"], "device", lambda self: "pretend:3")
    engine = Engine(config(tmp_path))
    assert engine.run_unit("caption", 0).state == "done"
    owner = hold("pretend:3")
    said = []

    def progress(done: int, total: int, text: str) -> None:
        said.append(text)
        if text == WAITS:
            os.kill(owner.pid, signal.SIGKILL)

    assert engine.run_unit("synthesize", 0, progress=progress).state == "done"
    assert said[0] == WAITS
    assert said[-1] == ""


WORKER = """
import sys
sys.path.insert(0, {project!r})
from bootpig.stages.engine import loaded as module
from bootpig.stages.engine.loaded import loaded, release
from tests.stages.doubles import config

module.devices = lambda name: dict.fromkeys(["pretend-a", "pretend-b"])  # a host with two devices
made = config({folder!r})

class Painter:
    name, seed, config = "painter", 0, made
    def device(self): return "auto"
    def setup(self): pass
    def teardown(self): pass

for line in sys.stdin:
    if line == "release\\n":
        release()
        print("released", flush=True)
        continue
    with loaded(Painter(), made):
        print(module._CURRENT.device, flush=True)
"""


def test_processes_choose_different_devices(tmp_path: Path, shared: Path) -> None:
    """Also if none works at the moment the other chooses: who has models on a device keeps it."""
    program = WORKER.format(project=str(PROJECT), folder=str(tmp_path / "store"))
    environment = {**os.environ, "TMPDIR": str(shared / "temporary")}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]

    def ask(worker: int, what: str = "work") -> str:
        pipe, answers = workers[worker].stdin, workers[worker].stdout
        assert pipe is not None and answers is not None
        pipe.write(f"{what}\n")
        pipe.flush()
        return answers.readline().strip()

    try:
        assert [ask(0), ask(1), ask(0), ask(1)] == ["pretend-a", "pretend-b", "pretend-a", "pretend-b"]
        assert ask(2) in ("pretend-a", "pretend-b"), "more workers than devices share them"
        ask(2, "release"), ask(1, "release")
        assert ask(2) == "pretend-b", "what is given back can be chosen again"
        workers[0].kill()
        workers[0].wait()
        assert ask(1) == "pretend-a", "a killed worker holds nothing"
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
