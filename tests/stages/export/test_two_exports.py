"""Two exports into one folder at the same time: the second is told of the first, and nothing is damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from bootpig.flows.cli.main import main
from bootpig.stages.export.run import export, open_target
from bootpig.stages.export.target import STATE
from bootpig.storage.errors import StoreError
from bootpig.storage.folder_lock import LOCK, locked_folder
from bootpig.storage.root import Root
from tests.servers.s3 import s3_bucket
from tests.stages.export.data import OPTIONS, data_set, exported, files

HOLD = (
    "import sys, time; sys.path.insert(0, {project!r})\n"
    "from pathlib import Path\n"
    "from bootpig.storage.folder_lock import locked_folder\n"
    "with locked_folder(Path({folder!r}), 'x'):\n"
    "    print('held', flush=True); time.sleep(600)\n"
)
PROJECT = Path(__file__).parents[3]


def test_a_folder_is_held_by_one_process_and_free_after_a_kill(
    made, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "to"
    folder.mkdir()
    code = HOLD.format(project=str(PROJECT), folder=str(folder))
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    command = ["export", made[1].id, "--root", made[0].root.url, "--to", str(folder)]
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        assert main(command) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"--to: {str(folder)!r} → process {first.pid} on ") and "wait for its end" in said
        assert [path.name for path in folder.iterdir()] == [LOCK]
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert (folder / LOCK).exists(), "a kill leaves the file"
    assert exported(data_set(*made), folder, "parquet").done
    assert files(folder) == files(whole / "parquet"), "and the lock is gone"


def test_a_lock_is_not_taken_on_a_file_that_its_owner_removes(tmp_path: Path) -> None:
    with locked_folder(tmp_path, "x"):
        inode = os.stat(tmp_path / LOCK).st_ino
        os.link(tmp_path / LOCK, tmp_path / "kept")  # so that the next file gets another number
    with locked_folder(tmp_path, "x"):
        assert os.stat(tmp_path / LOCK).st_ino != inode
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("place", ["memory", "s3"])
def test_on_an_object_store_the_second_goes_on_and_the_first_ends(
    made, whole: Path, tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    if place == "s3":
        bucket = s3_bucket()
        bucket.__enter__()
        request.addfinalizer(lambda: bucket.__exit__(None, None, None))
    url = f"{place}://data/{tmp_path.name}"
    begun: list[int] = []

    def second(done: int, total: int, text: str) -> None:
        if done == 12 and not begun:
            begun.append(done)
            exported(data_set(*made), url, "webdataset")

    target = open_target(data_set(*made), url, OPTIONS["webdataset"])
    with pytest.raises(StoreError, match="another export has finished there meanwhile") as caught:
        export(data_set(*made), target, OPTIONS["webdataset"], second)
    assert "\n" not in str(caught.value)
    fs, path = fsspec.url_to_fs(url)
    fs.invalidate_cache()
    found = {file.removeprefix(path).lstrip("/"): fs.cat_file(file) for file in fs.find(path)}
    assert found == files(whole / "webdataset")


@pytest.mark.parametrize("place", ["memory", "s3", "disk"])
def test_of_two_that_begin_at_once_one_is_first(tmp_path: Path, place: str, request: pytest.FixtureRequest) -> None:
    if place == "s3":
        bucket = s3_bucket()
        faults = bucket.__enter__()
        request.addfinalizer(lambda: bucket.__exit__(None, None, None))
    root = Root(str(tmp_path / "to") if place == "disk" else f"{place}://data/{tmp_path.name}-begin")
    assert root.create(STATE, b"one") and not root.create(STATE, b"two")
    assert root.read(STATE) == b"one"
    if place == "s3":
        puts = [call for call in faults.calls if call.method == "PUT" and STATE in call.path]
        heads = [call for call in faults.calls if call.method in ("HEAD", "GET") and STATE in call.path]
        assert len(puts) == 2 and len(heads) == 1, "the server decides"


def test_another_export_is_refused_where_one_has_begun(made, tmp_path: Path) -> None:
    url = f"memory://begun/{tmp_path.name}"
    first = open_target(data_set(*made), url, OPTIONS["webdataset"])
    other = open_target(data_set(*made), url, OPTIONS["parquet"])
    with first.held():
        with pytest.raises(ValueError, match=r"with --format webdataset"), other.held():
            raise AssertionError
        first.check()
        again = open_target(data_set(*made), url, OPTIONS["webdataset"])
        with again.held():
            again.check()
            with pytest.raises(StoreError, match=r"another export, since 20.*, is writing there"):
                first.check()
    assert json.loads(Root(url).read(STATE))["format"] == "webdataset"
