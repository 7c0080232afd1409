"""The command line finds all models of a run before any work, over HTTP from a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from huggingface_hub import constants

from bootpig.flows.loading import dump_config, load_config, parse_config
from bootpig.models.pretrained.source import ModelError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.preflight import fetch_models, pinned
from bootpig.stages.engine.survey import fingerprint_of
from tests.models.hub import Hub, Repository, hub
from tests.stages.train.training_data import save_base

PROJECT = Path(__file__).parents[2]
TOY = str(PROJECT / "configs" / "toy.yaml")


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub() as running:
        yield running


def call(server: Hub, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program with `server` as its hub and a temporary home."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    own = {"HF_ENDPOINT": server.url, "HF_HOME": str(folder / "hf"), "HOME": str(folder), "PYTHONPATH": str(PROJECT)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=PROJECT, env=environment | own, check=False
    )


def bootpig(server: Hub, folder: Path, command: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    sets = [word for override in (f"root={folder / 'store'}", *overrides) for word in ("--set", override)]
    return call(server, folder, "-m", "bootpig", command, TOY, *sets)


def test_run_ends_with_2_and_every_missing_model_plan_lists_them(server: Hub, tmp_path: Path) -> None:
    server.repositories["a/gated"] = Repository({"model_index.json": b"{}"}, gated=True)
    server.repositories["a/model"] = Repository({"model_index.json": b"{}"})
    server.files["sam.pth"] = b"weights"
    overrides = (
        "synthesize.model=a/gated",
        "segment.detector=a/gone",
        f"segment.sam={server.url}/sam.pth",
        "encode.model=a/model",
        "encode.revision=v9",
        "train.model=a/model",
        "train.revision=v9",
        "evaluate.clip=/nowhere",
        "evaluate.dino=a/model",
        "evaluate.subjects=./none",
    )
    expected = [
        "synthesize.model: 'a/gated' is gated",
        "segment.detector: 'a/gone' is neither",
        "segment.sam: 'http://127.0.0.1",
        "encode.model: 'a/model' has no revision 'v9'",
        "train.model: 'a/model' has no revision 'v9'",
        "evaluate.clip: '/nowhere' does not exist",
        "evaluate.dino: 'a/model' has no config.json",
        "evaluate.subjects: there is no folder './none'",
    ]
    planned = bootpig(server, tmp_path, "plan", *overrides)
    assert planned.returncode == 0, planned.stderr
    for beginning in expected:
        assert f"missing: {beginning}" in planned.stdout
    assert not (tmp_path / "store").exists()
    ran = bootpig(server, tmp_path, "run", *overrides)
    assert ran.returncode == 2, ran.stderr
    lines = ran.stderr.splitlines()
    assert len(lines) == len(expected)
    for line, beginning in zip(lines, expected, strict=True):
        assert line.startswith(beginning)
    assert not any("/resolve/" in question or "GET /sam.pth" in question for question in server.asked)


def test_pinned_revisions_hold_together_and_read_back(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = server.repositories["a/model"] = Repository({"model_index.json": b"{}", "config.json": b"{}"})
    models = [f"{field}=a/model" for field in ("encode.model", "train.model", "segment.detector", "evaluate.clip")]
    config = load_config(TOY, [f"root={tmp_path / 'store'}", *models, "evaluate.dino=/nowhere"])
    engine = Engine(config)
    for stage in ("encode", "train"):
        fixed = pinned(engine, [stage])
        assert fixed.encode.revision == fixed.train.revision == repository.commit
        assert fixed.segment.detector_revision is None, "what a run does not touch stays as it is"
        assert parse_config(dump_config(fixed)) == fixed
    fingerprints = [Engine(each).survey("encode").fingerprint for each in (config, fixed)]
    assert fingerprints[0] == fingerprints[1] != ""
    assert pinned(engine, ["segment"]).segment.detector_revision == repository.commit
    assert pinned(engine, ["caption"]) == config


def test_a_checkpoint_by_url_is_fetched_before_any_work(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # a checkpoint's content says what it is, not its name
    weights = server.files["sam.pth"] = (PROJECT / "models/toy/checkpoints/sam/sam_vit_toy.safetensors").read_bytes()
    said: list[str] = []
    sam = f"segment.sam={server.url}/sam.pth"
    wrong = load_config(TOY, [f"root={tmp_path / 'store'}", sam, f"segment.sam_sha256={'f' * 64}"])
    with pytest.raises(ModelError, match=r"^segment\.sam: .* has sha256 .*, not f+; fix segment\.sam_sha256"):
        fetch_models(Engine(wrong), ["caption", "segment"], said.append)
    right = load_config(TOY, [f"root={tmp_path / 'store'}", sam, f"segment.sam_sha256={sha256(weights).hexdigest()}"])
    fetch_models(Engine(right), ["caption"], said.append)
    for _ in range(2):
        fetch_models(Engine(right), ["segment"], said.append)
    assert said == [f"segment.sam: downloading {server.url}/sam.pth"] * 2, "the wrong one, and once the right one"


PROGRAM = """
import sys
from bootpig.flows.loading import dump_config, load_config
from bootpig.models.pretrained.source import ModelError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.preflight import pinned, preflight
config = load_config(sys.argv[1], sys.argv[2:])
engine = Engine(config)
assert preflight(engine, ["caption", "synthesize"]) == []
print(Engine(pinned(engine, ["caption", "synthesize"])).config.synthesize.revision)
print([engine.run_unit(stage, 0).rows for stage in ("caption", "synthesize")])
"""


@pytest.mark.slow
def test_a_model_is_loaded_from_the_hub_by_the_commit_that_its_branch_had(server: Hub, tmp_path: Path) -> None:
    repository = server.repositories["a/model"] = Repository.of(save_base(tmp_path / "base"))
    overrides = [
        f"root={tmp_path / 'store'}",
        "caption.count=2",
        "unit_size=2",
        "synthesize.model=a/model",
        "synthesize.steps=1",
        "synthesize.min_contrast=0",
    ]
    done = call(server, tmp_path, "-c", PROGRAM, TOY, *overrides)
    assert done.returncode == 0, done.stderr
    commit, rows = done.stdout.splitlines()
    assert commit == repository.commit
    assert rows.count("'ok': 2") == 2
    (stage,) = (tmp_path / "store" / "synthesize").glob("*/stage.json")
    identity = json.loads(stage.read_text())
    assert identity["models"] == {"model": {"id": "a/model", "commit": commit}}
    assert fingerprint_of(identity) == stage.parent.name

    # from the cache, with the hub gone
    server.repositories.clear()
    again = call(server, tmp_path, "-c", PROGRAM, TOY, *overrides, f"synthesize.revision={commit}")
    assert again.returncode == 0, again.stderr
    assert "{}" in again.stdout, "the unit is cached: a pinned revision is the same model"
