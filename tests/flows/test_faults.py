"""Faults during a complete run: a full disk, a damaged part."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def bootpig(api: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from bootpig.flows.cli.main import entry; entry()", *arguments],
        cwd=PROJECT,
        env=os.environ | {"PREFECT_API_URL": api},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False).returncode != 0:
        pytest.skip("mounting a tmpfs needs the rights to")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_disk_that_fills_midway_loses_nothing(prefect_api: str, small_disk: Path) -> None:
    arguments = ["run", "configs/toy.yaml", "--until", "caption", f"--set=root={small_disk / 'store'}"]
    filled = bootpig(prefect_api, *arguments, "--set=caption.count=3000")
    assert filled.returncode == 1
    assert "Traceback" not in filled.stderr
    assert filled.stderr.count("\n") == 1 and "no space left" in filled.stderr, "it ends at the first unit"
    whole = {path: path.read_bytes() for path in small_disk.rglob("part-*.parquet")}
    assert 0 < len(whole) < 30
    for file in small_disk.rglob("log-*"):
        file.unlink()
    again = bootpig(prefect_api, *arguments, f"--set=caption.count={100 * len(whole)}")
    assert "0 made" in again.stdout, again.stdout + again.stderr
    assert {path: path.read_bytes() for path in whole} == whole


def test_a_full_disk_is_found_before_any_work(prefect_api: str, small_disk: Path) -> None:
    with open(small_disk / "fill", "wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(bytes(4096)):
            pass
    done = bootpig(prefect_api, "run", "configs/toy.yaml", "--until", "caption", f"--set=root={small_disk / 'store'}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no space left" in done.stderr


def test_a_damaged_part_is_named_and_made_again(prefect_api: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    settings = [f"--set=root={store}", "--set=caption.count=30", "--set=unit_size=10"]
    assert bootpig(prefect_api, "run", "configs/toy.yaml", "--until", "caption", *settings).returncode == 0
    payload = next(store.glob("caption/*/part-00001-*.tar"))
    before = payload.read_bytes()
    payload.write_bytes(before[:-1] + b"x")
    checked = bootpig(prefect_api, "verify", "configs/toy.yaml", *settings)
    assert checked.returncode == 1
    assert checked.stderr.startswith(f"caption unit 1: caption/{payload.parent.name}/{payload.name} does not match")
    again = bootpig(prefect_api, "run", "configs/toy.yaml", "--until", "caption", *settings)
    assert "1 made, 2 cached" in again.stdout
    assert payload.read_bytes() == before
