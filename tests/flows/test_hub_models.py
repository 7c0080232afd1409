"""Hub models are downloaded before the first stage, only the files that are loaded, and then opened like local ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.test_preflight import TOY, call
from tests.models.hub import Hub, Repository, hub
from tests.models.tiny import save_vit
from tests.stages.train.training_data import save_base

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
from bootpig.flows.loading import load_config
from bootpig.models.pretrained.source import ModelError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.preflight import fetch_models, preflight
engine = Engine(load_config(sys.argv[1], sys.argv[3:]))
stages = sys.argv[2].split(",")
print("before", preflight(engine, stages))
try:
    fetch_models(engine, stages, lambda line: print("told", line))
except ModelError as error:
    print("refused", error)
"""


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub() as running:
        yield running


def fetch(server: Hub, folder: Path, stages: str, *overrides: str, offline: bool = False) -> list[str]:
    """The lines of preflight and downloads."""
    program = "import os; os.environ['HF_HUB_OFFLINE'] = '1'\n" + PROGRAM if offline else PROGRAM
    done = call(server, folder, "-c", program, TOY, stages, f"root={folder / 'store'}", *overrides)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def downloads(server: Hub) -> set[str]:
    """The files that were downloaded since the last call."""
    found = {word.partition("/resolve/")[2].partition("/")[2] for word in server.asked if word.startswith("GET ")}
    server.asked.clear()
    return found - {""}


def test_only_what_is_loaded_is_downloaded_and_once(server: Hub, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    (base / "vae" / "diffusion_pytorch_model.safetensors").rename(
        base / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    )
    for extra in ("sd.ckpt", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors"):
        (base / extra).write_bytes(b"not loaded")
    (base / "unet" / "flax_model.msgpack").write_bytes(b"not loaded")
    repository = server.repositories["a/model"] = Repository.of(base)
    models = ("encode.model=a/model", "train.model=a/model")
    told = f"told encode.model: downloading a/model at {repository.commit[:8]}"
    assert fetch(server, tmp_path, "encode", *models) == ["before []", told]
    found = downloads(server)
    assert "vae/diffusion_pytorch_model.fp16.safetensors" in found and "text_encoder/model.safetensors" in found
    assert not any(name.startswith(("unet/", "sd.")) or name.endswith((".bin", ".msgpack")) for name in found)
    told = told.replace("encode", "train")
    assert fetch(server, tmp_path, "encode,train", *models) == ["before []", told]
    assert downloads(server) >= {"unet/diffusion_pytorch_model.safetensors", "unet/config.json"}
    assert fetch(server, tmp_path, "encode,train", *models) == ["before []"]
    assert downloads(server) == set()

    # a download that was interrupted is completed; without a connection, what lacks is named
    (snapshot,) = (tmp_path / "hf" / "hub" / "models--a--model" / "snapshots").iterdir()
    (snapshot / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    models += (f"encode.revision={repository.commit}", f"train.revision={repository.commit}")
    (before, *_) = fetch(server, tmp_path, "train", *models, offline=True)
    assert "train.model: " in before and str(snapshot / "unet") in before
    assert fetch(server, tmp_path, "train", *models) == ["before []", told]
    assert fetch(server, tmp_path, "train", *models, offline=True) == ["before []"]


def test_what_the_hub_sends_is_opened_before_any_stage(server: Hub, tmp_path: Path) -> None:
    vit = save_vit(tmp_path / "vit")
    weights = (vit / "model.safetensors").read_bytes()
    (vit / "model.safetensors").write_bytes(weights[:-1000])
    server.repositories["a/dino"] = Repository.of(vit)
    before, told, refused = fetch(server, tmp_path, "evaluate", "evaluate.dino=a/dino")
    assert before == "before []" and told.startswith("told evaluate.dino: downloading a/dino at ")
    assert refused.startswith("refused evaluate.dino: the file ") and "model.safetensors' is cut off" in refused
    # the damaged file is in the cache now: plan names it
    (before, *_) = fetch(server, tmp_path, "evaluate", "evaluate.dino=a/dino")
    assert "is cut off" in before


def test_a_judge_published_as_a_pickle(server: Hub, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    vit = save_vit(tmp_path / "vit")
    torch.save(load_file(vit / "model.safetensors"), vit / "pytorch_model.bin")
    (vit / "model.safetensors").unlink()
    (vit / "tf_model.h5").write_bytes(b"not loaded")
    repository = server.repositories["a/dino"] = Repository.of(vit)
    assert json.loads(repository.files["config.json"])["model_type"] == "vit"
    before, told = fetch(server, tmp_path, "evaluate", "evaluate.dino=a/dino")
    assert (before, told) == ("before []", f"told evaluate.dino: downloading a/dino at {repository.commit[:8]}")
    assert downloads(server) == {"config.json", "preprocessor_config.json", "pytorch_model.bin"}
