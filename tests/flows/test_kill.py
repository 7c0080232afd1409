"""SIGKILL at random moments in every stage, then resume: the data set must come out byte for byte the same.

`BOOTPIG_KILLS=100` (as `make soak` sets it) kills more often.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from bootpig.flows.loading import load_config
from bootpig.models.pretrained.source import PROJECT
from bootpig.stages.engine.survey import graph_of

KILLS = int(os.environ.get("BOOTPIG_KILLS", "9"))
MARK = "BOOTPIG_TEST_MARK"
GRAPH = graph_of(load_config(PROJECT / "configs" / "toy.yaml"))


def command(root: Path, subjects: Path) -> list[str]:
    small = {
        "root": root,
        "threads": 1,
        "caption.count": 24,
        "unit_size": 8,
        "synthesize.steps": 4,
        "synthesize.batch_size": 4,
        "segment.min_score": 0.0,
        "segment.min_sam_iou": 0.0,
        "segment.detection_threshold": 0.0,
        "select.min_caption_score": "null",
        "select.min_sharpness": "null",
        "select.min_outline": "null",
        "select.max_detections": "null",
        "min_yield": 0.0,
        "train.steps": 6,
        "train.warmup_steps": 0,
        "train.global_batch_size": 4,
        "train.checkpoint_every": 2,
        "train.sample_every": 0,
        "evaluate.subjects": subjects,
        "evaluate.steps": 2,
    }
    sets = [f"--set={key}={value}" for key, value in small.items()]
    return [sys.executable, "-c", "from bootpig.flows.cli.main import entry; entry()", "run", "configs/toy.yaml", *sets]


def environment(home: Path) -> tuple[dict[str, str], str]:
    mark = uuid.uuid4().hex
    return {**os.environ, "PREFECT_HOME": str(home), MARK: mark}, mark


def marked(mark: str) -> list[psutil.Process]:
    """The processes started with `mark`, including all descendants."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def markers(root: Path, stage: str) -> int:
    pattern = "*/part-*.parquet" if GRAPH.is_map(stage) else "*/stage.json"
    return len(list((root / stage).glob(pattern)))


def kill_within(stage: str, root: Path, subjects: Path, home: Path, dice: random.Random) -> str:
    """Start a run and kill it somewhere in `stage`. Returns `killed`, or `finished` if it was too quick."""
    env, mark = environment(home)
    begun = markers(root, stage)
    run = subprocess.Popen(
        command(root, subjects), cwd=PROJECT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wanted = begun + dice.choice((0, 1, 2)) if GRAPH.is_map(stage) else 1
    deadline = time.monotonic() + 180
    above = GRAPH.upstream[stage]
    while run.poll() is None and time.monotonic() < deadline:
        started = all(markers(root, name) > 0 for name in above)
        if started and markers(root, stage) >= min(wanted, 3):
            break
        time.sleep(0.01)
    time.sleep(dice.uniform(0.0, 0.6))
    finished = run.poll() is not None
    run.send_signal(signal.SIGKILL)
    assert run.stderr is not None
    errors = run.stderr.read().decode() if finished else ""
    run.wait()
    assert not finished or run.returncode in (0, -signal.SIGKILL), errors
    for _ in range(100):
        left = marked(mark)
        if not left:
            return "finished" if finished else "killed"
        time.sleep(0.1)
    raise AssertionError(f"left behind: {[process.cmdline() for process in left]}")


def identity(root: Path) -> dict[str, bytes]:
    """Everything that must be the same in equal runs: the parts and the trained model."""
    made = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("part-*") if path.is_file()}
    for model in root.glob("train/*/result/*/model"):  # below the digest of all files, of which the log tells speeds
        files = (path for path in model.rglob("*") if path.is_file())
        made |= {path.relative_to(model.parent).as_posix(): path.read_bytes() for path in files}
    return made


@pytest.mark.slow
@pytest.mark.timeout(60 * KILLS + 600)
def test_killed_anywhere_the_data_set_is_byte_identical(tmp_path: Path) -> None:
    subjects = tmp_path / "subjects"
    source = PROJECT / "models/toy/subjects_held_out"
    names = sorted(path.name for path in source.iterdir() if path.is_dir())[:2]
    for name in names:
        shutil.copytree(source / name, subjects / name)
    listing = source / "subjects.yaml"
    if listing.exists():
        import yaml

        kept = {name: facts for name, facts in yaml.safe_load(listing.read_text()).items() if name in names}
        (subjects / "subjects.yaml").write_text(yaml.safe_dump(kept))
    home = tmp_path / "prefect"
    env, _ = environment(home)
    whole = tmp_path / "whole"
    done = subprocess.run(command(whole, subjects), cwd=PROJECT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = identity(whole)
    assert sum(name.endswith(".tar") for name in expected) == 18 and any("model" in name for name in expected)

    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    dice = random.Random(seed)
    stages = list(GRAPH.stages)
    plan = [stage for _ in range(-(-KILLS // len(stages))) for stage in stages][: max(KILLS, len(stages))]
    kills, root = 0, tmp_path / "killed-0"
    for turn, stage in enumerate(plan):
        if stage == "caption" and turn:
            root = tmp_path / f"killed-{turn}"  # the stages in order again, on a fresh store
        kills += kill_within(stage, root, subjects, home, dice) == "killed"
    assert kills >= 0.7 * len(plan), "too many runs ended before they could be killed"
    for store in sorted(tmp_path.glob("killed-*")):
        done = subprocess.run(command(store, subjects), cwd=PROJECT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert identity(store) == expected
