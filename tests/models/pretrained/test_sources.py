"""Finding and identifying models, and one-line errors that name field, value and fix."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from bootpig.models.pretrained.source import PROJECT, ModelError, content_digest, loading
from bootpig.models.pretrained.sources import resolve, resolve_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    (path / "unet").mkdir(parents=True)
    (path / "model_index.json").write_text('{"_class_name": "X"}')
    save_file({"weight": np.ones((64, 64), np.float32)}, path / "unet" / "model.safetensors")
    return path


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_identity_of_a_folder_is_its_content_whatever_its_path(folder: Path, tmp_path: Path):
    before = resolve("encode.model", str(folder)).as_json()
    folder.rename(tmp_path / "moved")
    (tmp_path / "moved" / "README.md").write_text("a card")
    (tmp_path / "moved" / ".cache").mkdir()
    (tmp_path / "moved" / ".cache" / "x").write_text("x")
    assert resolve("encode.model", str(tmp_path / "moved")).as_json() == before

    (tmp_path / "moved" / "unet" / "config.json").write_text("{}")
    assert resolve("encode.model", str(tmp_path / "moved")).as_json() != before


def test_digest_sees_a_file_rewritten_in_place(folder: Path):
    weights = folder / "unet" / "model.safetensors"
    before = content_digest(folder)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(1, 1))
    assert content_digest(folder) != before


def test_digest_of_renamed_file_differs(folder: Path):
    before = content_digest(folder)
    (folder / "unet").rename(folder / "vae")
    assert content_digest(folder) != before


def test_relative_paths_are_found_from_the_working_folder_then_the_project(folder: Path, monkeypatch):
    monkeypatch.chdir(folder)
    assert resolve("f", "unet").path == str(folder / "unet")
    assert resolve("f", "models/toy").path == str(PROJECT / "models" / "toy")


@pytest.mark.parametrize("source", ["/nowhere/at/all", "a/b/c", "weights/sam.pth", "../gone", "~nobody-here/x"])
def test_missing_path_names_field_value_and_fix(source: str):
    with pytest.raises(ModelError, match=r"segment\.sam: .*does not exist; give") as caught:
        resolve("segment.sam", source)
    assert source in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_folder_and_revision_of_a_folder_are_refused(tmp_path: Path, folder: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="is empty"):
        resolve("f", str(tmp_path / "empty"))
    with pytest.raises(ModelError, match="cannot have revision 'main'"):
        resolve("f", str(folder), "main")


@pytest.mark.parametrize(("source", "what"), [("someone/sam", "does not exist"), ("models", "is a folder")])
def test_checkpoint_file_is_no_folder_and_no_hub_id(source: str, what: str):
    with pytest.raises(ModelError, match=rf"segment\.sam: '{source}' {what}; give the path of a checkpoint file"):
        resolve_file("segment.sam", source)


def test_hub_id_is_resolved_from_the_cache(hub_cache: Path):
    commit = "0123456789" * 4
    repo = hub_cache / "models--someone--a-model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "snapshots" / commit / "model_index.json").write_text("{}")
    found = resolve("train.base", "someone/a-model")
    assert (found.path, found.revision) == ("someone/a-model", commit)
    assert found.as_json() == {"id": "someone/a-model", "commit": commit}
    assert resolve("train.base", "someone/a-model", commit).revision == commit


def test_unknown_hub_id_is_one_line(hub_cache: Path, monkeypatch):
    from huggingface_hub import HfApi

    def unreachable(*_args, **_kwargs):
        raise ConnectionError("no route to host\nsecond line")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    with pytest.raises(ModelError, match=r"train\.base: 'no-one/nothing' .*no route to host") as caught:
        resolve("train.base", "no-one/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["unet/model.safetensors", "model_index.json"])
def test_truncated_file_is_named(folder: Path, name: str):
    file = folder / name
    file.write_bytes(file.read_bytes()[:-8])
    message = r"encode\.model: the file '.*" + name + "' is damaged; restore it"
    with pytest.raises(ModelError, match=message), loading("encode.model", str(folder)):
        raise RuntimeError("whatever the library says")


def test_other_load_errors_become_one_line_and_out_of_memory_passes(folder: Path):
    message = r"f: '.*' cannot be loaded \(KeyError: 'x'\); give"
    with pytest.raises(ModelError, match=message) as caught, loading("f", str(folder)):
        raise KeyError("x")
    assert "\n" not in str(caught.value)
    with pytest.raises(torch.OutOfMemoryError), loading("f", str(folder)):
        raise torch.OutOfMemoryError("CUDA out of memory")
