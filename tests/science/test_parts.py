"""Parts of `python -m science` as processes: order, failures, and an interrupt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from science import parts as science_parts
from science.__main__ import METHODS, SWEEPS, TUNING_SWEEPS, all_parts
from science.parts import Pace, Part, _about, run_parts

MODULE = """
import os, pathlib, sys, time
name, seconds, code = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
log = pathlib.Path(sys.argv[4])
print(sys.argv[5], flush=True)
with log.open("a") as file:
    file.write(f"+{name} {os.environ['OMP_NUM_THREADS']}\\n")
try:
    time.sleep(seconds)
finally:
    with log.open("a") as file:
        file.write(f"-{name}\\n")
if code != 7:
    print("the last line")
sys.exit(code)
"""


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "one_part.py").write_text(MODULE.replace("\\\\", "\\"), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setattr(science_parts, "WORK", tmp_path / "work")
    monkeypatch.setattr(science_parts, "POLL_SECONDS", 0.02)
    return tmp_path / "events.txt"


def part(
    events: Path, name: str, seconds: float = 0.0, code: int = 0, after: tuple[str, ...] = (), says: str = ""
) -> Part:
    return Part(name, ["one_part", name, str(seconds), str(code), str(events), says], 1.0, after)


def test_two_run_at_a_time_and_each_after_those_that_it_needs(events: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [
        part(events, "a", 0.6),
        part(events, "after a", after=("a",)),
        part(events, "b", 0.6, code=1),
        part(events, "after b", after=("b",)),
    ]
    assert run_parts(parts, 2, 3) == ["b"]
    lines = events.read_text().splitlines()
    assert set(lines[:2]) == {"+a 3", "+b 3"}
    assert lines.index("-a") < lines.index("+after a 3")
    assert lines.index("-b") < lines.index("+after b 3")
    said = capsys.readouterr().out
    assert "b failed" in said
    assert "b: the last line" in said


def test_an_interrupt_reaches_all_parts(events: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from science import parts; parts.WORK = Path(sys.argv[1]) / 'work'\n"
        "events = sys.argv[2]\n"
        "parts.run_parts([parts.Part(n, ['one_part', n, '60', '0', events, ''], 1) for n in 'ab'], 2, 1)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(events.parent), str(events)], cwd=Path.cwd())
    deadline = time.monotonic() + 60
    while not events.exists() or len(events.read_text().splitlines()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert {"-a", "-b"} <= set(events.read_text().splitlines())


def test_everything_is_a_part_and_depends_on_parts() -> None:
    parts = all_parts("/store", 2)
    names = [each.name for each in parts]
    assert len(set(names)) == len(names)
    assert set(names) == {"samples", "inpaint", *SWEEPS, *METHODS} - TUNING_SWEEPS
    assert {name for each in parts for name in each.after} <= set(names)
    assert all("/store" in " ".join(each.arguments) for each in parts)
    assert {*METHODS} <= {*next(each for each in parts if each.name == "rivals").after}


def test_now_and_then_it_says_how_far_each_part_is(
    events: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(science_parts, "NEWS_SECONDS", 0.1)
    logs = events.parent / "work/logs"
    logs.mkdir(parents=True)
    for name in "abc":
        (logs / f"{name}.log").write_text(f"[1/3] of an earlier process\n{name}: of an earlier process\n")
    says = {
        "a": "[1/3] one, train.seed=0\n[2/3] two, train.seed=0\ntrain  1 made\r50%",
        "b": "b: mug-0 in 30 s",
        "c": "-",
    }
    assert run_parts([part(events, name, 0.6, says=text) for name, text in says.items()], 3, 1) == []
    said = capsys.readouterr().out
    assert "a: [2/3] two, train.seed=0\n" in said
    assert "b: mug-0 in 30 s\n" in said
    assert "c: at its beginning\n" in said
    assert "less than a minute left" in said


def test_a_part_that_fails_without_a_word_does_not_speak_for_an_earlier_one(
    events: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_parts([part(events, "a", code=1)], 1, 1) == ["a"]
    assert "a: the last line" in capsys.readouterr().out
    assert run_parts([part(events, "a", code=7)], 1, 1) == ["a"]
    assert "a: no output" in capsys.readouterr().out


def test_the_time_left_follows_the_parts_that_ended_and_not_what_was_in_the_store() -> None:
    pace = Pace(2)
    assert pace.left([40.0, 40.0], []) == 40.0
    assert pace.left([], [(40.0, 10.0), (20.0, 25.0)]) == 30.0, "a part that takes longer is about to end"
    assert pace.left([10.0], [(60.0, 0.0)]) == 60.0, "not less than the longest part"
    pace.add(30.0, 2.0)
    assert pace.left([40.0, 40.0], []) == 40.0, "it was in the store"
    pace.add(20.0, 50.0)
    assert pace.left([40.0, 40.0], []) == 80.0
    assert pace.left([], []) == 0.0


def test_time_left_is_said_in_hours_and_minutes() -> None:
    assert [_about(minutes) for minutes in (0.4, 5.2, 60.0, 124.0)] == [
        "less than a minute left",
        "about 5 min left",
        "about 1 h 00 min left",
        "about 2 h 04 min left",
    ]
