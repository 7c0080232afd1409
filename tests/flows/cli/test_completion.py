"""Completion in a real shell: what stands on its command line after a TAB."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source {0}/_bootpig"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "fpath=({0} $fpath); autoload -U compinit; compinit -D -u; zstyle ':completion:*' insert-tab false",
    ),
}
"""How each shell is started without a user's own settings, and how it reads the script in folder {0}."""


@pytest.fixture(scope="module", params=START)
def shell(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture(scope="module")
def script(shell: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    command = [sys.executable, "-m", "bootpig", "--print-completion", shell]
    printed = subprocess.run(command, check=True, capture_output=True, text=True)
    assert printed.stderr == ""
    folder = tmp_path_factory.mktemp(shell)
    (folder / "_bootpig").write_text(printed.stdout)
    return folder


def words_after_tab(shell: str, script: Path, typed: str, folder: Path) -> list[str]:
    """The arguments that a command named bootpig gets from `typed`, a TAB and Enter."""
    command, prepare = START[shell]
    environment = os.environ | {"TERM": "dumb", "INPUTRC": os.devnull, "HISTFILE": os.devnull}
    # a function in the place of the program: it writes down how it was called
    prepare = prepare.format(script) + "; bootpig() { printf '%s\\n' \"$@\" > words; exit; }\n"
    ours, its = pty.openpty()
    running = subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, cwd=folder, env=environment, start_new_session=True
    )
    os.close(its)
    late = threading.Timer(30, running.kill)
    late.start()
    try:
        os.write(ours, f"{prepare}{typed}\t\n".encode())
        said = b""
        while chunk := _read(ours):
            said += chunk
        assert (folder / "words").exists(), said.decode(errors="replace")
        return (folder / "words").read_text().split()
    finally:
        late.cancel()
        running.kill()
        running.wait()
        os.close(ours)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says so when the other end is closed
        return b""


@pytest.mark.parametrize(
    ("typed", "last"),
    [
        ("bootpig ru", "run"),
        ("bootpig stat", "status"),
        ("bootpig runs pro", "promote"),
        ("bootpig run --unt", "--until"),
        ("bootpig run --only seg", "segment"),
        ("bootpig run toy --from ev", "evaluate"),
        ("bootpig run toy-l", "toy-long"),
        ("bootpig plan mi", "mine.yaml"),
        ("bootpig evaluate latest --config sd2", "sd21"),
        ("bootpig init sd1", "sd15"),
        ("bootpig generate latest --ref ca", "cat.png"),
    ],
)
def test_a_tab_completes(shell: str, script: Path, typed: str, last: str, tmp_path: Path) -> None:
    for name in ("mine.yaml", "mine.txt", "cat.png"):
        (tmp_path / name).touch()
    *before, cut = typed.split()[1:]
    assert last.startswith(cut)
    words = words_after_tab(shell, script, typed, tmp_path)
    assert words[-1] == last and words[:-1] == before


def test_an_unknown_shell_is_bad_input() -> None:
    command = [sys.executable, "-m", "bootpig", "--print-completion", "csh"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2 and "invalid choice: 'csh'" in done.stderr and "Traceback" not in done.stderr
