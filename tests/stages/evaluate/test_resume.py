"""An evaluation that is stopped goes on where it was, to the same bytes, and never holds more than a few pictures."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import bootpig.stages.engine.loaded
from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.stages.engine.engine import Engine
from bootpig.stages.evaluate.drawing import METHODS
from bootpig.storage.fingerprint import bytes_digest
from tests.stages.evaluate.world import engine, make_world

ROWS, BATCH = 6, 4
"""Three subjects with two captions each, so batches of 4 and 2."""
ALL = len(METHODS) * ROWS


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield make_world(tmp_path_factory.mktemp("world"), 3)
    bootpig.stages.engine.loaded.release()


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    work = engine(world, tmp_path_factory.mktemp("undisturbed"))
    assert work.run_reduce("evaluate").state == "done"
    return result(work)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that the pipeline draws from now on."""
    sizes: list[int] = []
    real = BootPIGPipeline.__call__

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        sizes.append(len(options["prompt"]))
        return real(self, *args, **options)

    monkeypatch.setattr(BootPIGPipeline, "__call__", counted)
    return sizes


def result(work: Engine) -> dict[str, bytes]:
    """Every file of the result."""
    published = work.survey("evaluate").result
    assert published is not None
    return {name: work.root.read(f"{published.path}/{name}") for name in published.files}


def pieces(work: Engine) -> list[Path]:
    assert work.root.local is not None
    return sorted((work.root.local / work.survey("evaluate").path).glob("pieces-*/*"))


def stop_at(work: Engine, last: int) -> None:
    def progress(done: int, total: int, text: str) -> None:
        if done >= last:
            raise RuntimeError("the power went")

    assert work.run_reduce("evaluate", progress=progress).state == "failed"
    assert work.survey("evaluate").result is None, "pieces are no result"


@pytest.mark.parametrize("last", [BATCH, ROWS + BATCH, ALL])
def test_what_is_drawn_is_not_drawn_again(world, undisturbed, drawn, tmp_path, last):
    stop_at(engine(world, tmp_path), last)
    assert sum(drawn) == last
    drawn.clear()
    work = engine(world, tmp_path)
    assert len(pieces(work)) > 0
    dones: list[int] = []
    assert work.run_reduce("evaluate", progress=lambda done, total, text: dones.append(done)).state == "done"
    assert sum(drawn) == ALL - last
    assert dones == sorted(dones) and dones[-1] == ALL
    assert result(work) == undisturbed
    assert pieces(work) == []


def _swap(file: Path) -> None:
    data = next(file.parent.glob("untrained-000000.*")).read_bytes()
    file.with_name(f"text_only-000000.{bytes_digest(data)}").write_bytes(data)
    file.unlink()


def _empty(file: Path) -> None:
    file.with_name(f"text_only-000000.{bytes_digest(b'')}").write_bytes(b"")
    file.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:700]),
        lambda file: file.write_bytes(file.read_bytes()[:700] + b"?" + file.read_bytes()[701:]),
        lambda file: file.write_bytes(b""),
        Path.unlink,
        _swap,
        _empty,
    ],
    ids=["cut short", "altered", "emptied", "gone", "of another method", "no archive"],
)
def test_a_damaged_batch_is_drawn_again(world, undisturbed, drawn, tmp_path, damage):
    stop_at(engine(world, tmp_path), ROWS + BATCH)
    work = engine(world, tmp_path)
    (file,) = (file for file in pieces(work) if file.name.startswith("text_only-000000"))
    damage(file)
    drawn.clear()
    assert work.run_reduce("evaluate").state == "done"
    assert sum(drawn) == ALL - ROWS - BATCH + BATCH
    assert result(work) == undisturbed


def test_another_batch_size_or_recipe_starts_from_the_beginning(world, drawn, tmp_path):
    stop_at(engine(world, tmp_path), ROWS)
    for changes in ({"batch_size": 3}, {"steps": 1}, {"reference_guidance_scale": 2.0}, {"seed": 4}):
        drawn.clear()
        stop_at(engine(world, tmp_path, **changes), ROWS)
        assert sum(drawn) == ROWS, changes
    old = engine(world, tmp_path)
    assert {file.name.partition(".")[0] for file in pieces(old)} == {"text_only-000000", "text_only-000003"}
    drawn.clear()
    assert old.run_reduce("evaluate").state == "done"
    assert sum(drawn) == ALL, "batches of 3 are of no use to batches of 4"


def test_force_draws_everything_and_published_results_leave_no_pieces(world, undisturbed, drawn, tmp_path):
    work = engine(world, tmp_path)
    stop_at(work, ROWS)
    drawn.clear()
    assert work.run_reduce("evaluate", force=True).state == "done"
    assert sum(drawn) == ALL and result(work) == undisturbed
    left = pieces(work)
    assert left == []
    work.root.write(f"{work.survey('evaluate').path}/pieces-0123456789abcdef/text_only-000000.{'0' * 64}", b"left over")
    assert len(pieces(work)) == 1
    assert work.run_reduce("evaluate").state == "cached"
    assert pieces(work) == []


def test_memory_does_not_grow_with_the_number_of_pictures(world, tmp_path, monkeypatch):
    live = peak = 0
    real = Image.Image.__init__

    def gone() -> None:
        nonlocal live
        live -= 1

    def counted(self: Image.Image) -> None:
        nonlocal live, peak
        real(self)
        live += 1
        peak = max(peak, live)
        weakref.finalize(self, gone).atexit = False

    monkeypatch.setattr(Image.Image, "__init__", counted)
    peaks = []
    for number in (6, 12):  # 144 pictures, then 288
        gc.collect()
        begin = peak = live
        work = engine(world, tmp_path / str(number), images_per_prompt=number, steps=1)
        assert work.run_reduce("evaluate").state == "done"
        peaks.append(peak - begin)
    assert peaks[1] <= peaks[0] + 8, peaks
    assert peaks[1] < 4 * 32 + 8, "what an embedder has at once, and a few"


@pytest.mark.slow
def test_a_killed_process_is_followed_by_one_that_goes_on(world, undisturbed, drawn, tmp_path):
    command = [sys.executable, "-m", "tests.stages.evaluate.world", str(world), str(tmp_path)]
    for last in (BATCH, 2 * ROWS + BATCH):
        assert subprocess.run([*command, str(last)], check=False).returncode == -signal.SIGKILL
        assert engine(world, tmp_path).survey("evaluate").result is None
    assert len(pieces(engine(world, tmp_path))) == 5
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["done"]
    assert result(engine(world, tmp_path)) == undisturbed
    assert pieces(engine(world, tmp_path)) == [] and drawn == []
