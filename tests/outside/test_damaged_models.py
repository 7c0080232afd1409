"""Every kind of damage to a model's files, in every field that takes a model, is one line before any work."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bootpig.flows.cli.main import main
from bootpig.flows.runs.plan import plan
from bootpig.models.pretrained.embedders import ClipEmbedder
from bootpig.models.pretrained.segmenters import BoxSegmenter
from bootpig.models.pretrained.source import ModelError, ModelSource
from bootpig.models.pretrained.sources import resolve_file
from bootpig.stages.engine.preflight import preflight
from tests.outside.model_files import FIELDS, PAGE, POINTER, TOY, WEIGHTS, copy_model, engine_for, problems, replace

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


def copy_for(field: str, folder: Path) -> tuple[Path, Path]:
    """A copy of a field's model as the config names it, and one of its weight files."""
    _, name, file = FIELDS[field]
    copy = copy_model(name, folder)
    return (copy / file if field == "segment.sam" else copy), copy / file


@pytest.mark.parametrize("field", FIELDS)
def test_whole_models_have_no_problems(field: str, tmp_path: Path) -> None:
    model, _ = copy_for(field, tmp_path)
    assert problems(field, model, tmp_path / "store") == []


@pytest.mark.parametrize("field", FIELDS)
def test_damaged_weights_are_one_line(field: str, tmp_path: Path) -> None:
    model, weights = copy_for(field, tmp_path)
    whole = TOY / FIELDS[field][1] / FIELDS[field][2]
    for damage, (spoil, words) in WEIGHTS.items():
        weights.unlink()
        shutil.copy(whole, weights)
        spoil(weights)
        if field == "segment.sam" and damage in ("a tensor is missing", "another shape", "integers"):
            # its format has no config.json: the setting beside it says which weights are needed
            words = "does not contain the weights of a vit_toy; give another checkpoint or the sam_type"
        (line,) = problems(field, model, tmp_path / "store")
        assert line.startswith(f"{field}: ") and str(weights) in line, damage
        assert words in line, damage
        assert line.count("; ") >= 1 and "Error" not in line, f"{damage}: a fix, and no words of a library"


DOCUMENTS = [
    (b"\xef\xbb\xbf{}", "begins with a byte order mark"),
    ('{"a": 1}'.encode("utf-16"), "begins with a byte order mark"),
    (b"{'a': 1}", "is not JSON"),
    (b"", "is empty"),
    (b"[1, 2]", "holds a list in place of a JSON object"),
    (b'{"a":' * 100_000, "is nested too deeply"),
    (POINTER, "is a Git LFS pointer"),
    (PAGE, "is not JSON (it is a web page)"),
    (b'{"model_type": "no such"}', ""),
]


@pytest.mark.parametrize(
    ("field", "file"),
    [
        ("encode.model", "model_index.json"),
        ("encode.model", "vae/config.json"),
        ("encode.model", "tokenizer/tokenizer_config.json"),
        ("synthesize.model", "scheduler/scheduler_config.json"),
        ("segment.detector", "processor_config.json"),
        ("evaluate.clip", "tokenizer.json"),
        ("evaluate.dino", "config.json"),
    ],
)
def test_damaged_json_is_one_line(field: str, file: str, tmp_path: Path) -> None:
    model, _ = copy_for(field, tmp_path)
    for content, words in DOCUMENTS:
        replace(model / file, content)
        found = problems(field, model, tmp_path / "store")
        if not words and file in ("scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"):
            continue  # defaults are used, as the libraries do
        (line,) = found
        assert line.startswith(f"{field}: ") and words in line
        assert not words or str(model / file) in line


@pytest.mark.parametrize("text", ['{"extra": NaN, ', '{"sample_size": 1, "sample_size": 16, '])
def test_json_that_the_libraries_read_is_read(text: str, tmp_path: Path) -> None:
    model, _ = copy_for("encode.model", tmp_path)
    config = (model / "vae" / "config.json").read_text()
    replace(model / "vae" / "config.json", (text + config.lstrip()[1:]).encode())
    assert problems("encode.model", model, tmp_path / "store") == []


def shard(model: Path, stem: str) -> None:
    """Split a file of weights into three shards with an index."""
    from safetensors.torch import save_file

    tensors = load_file(model / f"{stem}.safetensors")
    (model / f"{stem}.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number in range(3):
        file = f"{stem}-{number + 1:05d}-of-00003.safetensors"
        own = names[number::3]
        save_file({name: tensors[name] for name in own}, model / file)
        weight_map |= dict.fromkeys(own, file)
    (model / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def pointer(folder: Path, stem: str) -> None:
    (folder / f"{stem}-00002-of-00003.safetensors").write_bytes(POINTER)


def lost(folder: Path, stem: str) -> None:
    (folder / f"{stem}-00003-of-00003.safetensors").unlink()


def swapped(folder: Path, stem: str) -> None:
    first, second = (folder / f"{stem}-0000{number}-of-00003.safetensors" for number in (1, 2))
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def unmapped(folder: Path, stem: str) -> None:
    (folder / f"{stem}.safetensors.index.json").write_text('{"metadata": {}}')


def cut_index(folder: Path, stem: str) -> None:
    file = folder / f"{stem}.safetensors.index.json"
    file.write_text(file.read_text()[:100])


def partly_mapped(folder: Path, stem: str) -> None:
    file = folder / f"{stem}.safetensors.index.json"
    index = json.loads(file.read_text())
    kept = {name: shard for name, shard in index["weight_map"].items() if "-00002-" not in shard}
    file.write_text(json.dumps({**index, "weight_map": kept}))


def of_own_names(folder: Path, stem: str) -> None:
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(index.read_text().replace(f"{stem}-", f"{stem}.safetensors-"))
    for file in folder.glob(f"{stem}-*"):
        file.rename(file.with_name(file.name.replace(f"{stem}-", f"{stem}.safetensors-")))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder, stem: None, None),
        (of_own_names, None),
        (partly_mapped, " weights of a "),
        (pointer, "-00002-of-00003.safetensors' is a Git LFS pointer"),
        (lost, "-00003-of-00003.safetensors' is missing; complete the folder"),
        (swapped, ".safetensors.index.json places in it; download both again"),
        (unmapped, ".safetensors.index.json' has no weight_map"),
        (cut_index, ".safetensors.index.json' is not JSON"),
    ],
)
@pytest.mark.parametrize("field", ["synthesize.model", "segment.detector", "evaluate.dino"])
def test_shards_are_complete(
    field: str, damage: Callable[[Path, str], None], words: str | None, tmp_path: Path
) -> None:
    model, weights = copy_for(field, tmp_path)
    shard(weights.parent, weights.stem)
    damage(weights.parent, weights.stem)
    found = problems(field, model, tmp_path / "store")
    assert ([] if words is None else [True]) == [words in line for line in found if words is not None]
    assert all(line.startswith(f"{field}: ") for line in found)


def test_weights_of_another_component_and_size(tmp_path: Path) -> None:
    model = copy_model("stable-diffusion", tmp_path)
    unet, vae = model / "unet", model / "vae"
    config = json.loads((unet / "config.json").read_text())
    replace(unet / "config.json", json.dumps({**config, "cross_attention_dim": 4 * 17}).encode())
    replace(vae / "diffusion_pytorch_model.safetensors", (unet / "diffusion_pytorch_model.safetensors").read_bytes())
    of_unet, of_vae = sorted(problems("train.model", model, tmp_path / "store"))
    assert "unet" in of_unet and "its config.json asks for" in of_unet and "UNet2DConditionModel" in of_unet
    assert "vae" in of_vae and "weights of a AutoencoderKL, such as" in of_vae


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (["diffusers", "UNetOfTomorrow"], "needs diffusers.UNetOfTomorrow, unknown to diffusers"),
        (["own", "UNet"], "needs own.UNet, unknown to diffusers"),
        (["transformers", "CLIPTextModel"], "unet"),
        (["diffusers"], "not a library and a class"),
    ],
)
def test_classes_of_an_index_are_known(entry: list[str], words: str, tmp_path: Path) -> None:
    model = copy_model("stable-diffusion", tmp_path)
    index = json.loads((model / "model_index.json").read_text())
    replace(model / "model_index.json", json.dumps({**index, "unet": entry}).encode())
    (line,) = problems("train.model", model, tmp_path / "store")
    assert words in line
    for name in ("PipelineOfTomorrow", ["pipeline", "Own"]):
        replace(model / "model_index.json", json.dumps({**index, "_class_name": name}).encode())
        (line,) = problems("encode.model", model, tmp_path / "store")
        assert "model_index.json' names " in line


def test_components_and_small_files_are_there(tmp_path: Path) -> None:
    model = copy_model("stable-diffusion", tmp_path)
    shutil.rmtree(model / "scheduler")
    for file in (model / "tokenizer").iterdir():
        file.unlink()
    lines = problems("train.model", model, tmp_path / "store")
    assert [re.findall("scheduler|tokenizer", line)[0] for line in lines] == ["scheduler", "tokenizer"]
    clip = copy_model("clip", tmp_path)
    (clip / "processor_config.json").unlink()
    (line,) = problems("evaluate.clip", clip, tmp_path / "store")
    assert line.startswith("evaluate.clip: ") and "preprocessor_config.json" in line


def test_sam_in_torchs_format(tmp_path: Path) -> None:
    tensors = load_file(TOY / "sam" / "sam_vit_toy.safetensors")
    for name in ("sam.pth", "sam.PT", "sam"):
        torch.save(tensors, tmp_path / name)
        assert problems("segment.sam", tmp_path / name, tmp_path / "store") == []
        BoxSegmenter(resolve_file("segment.sam", str(tmp_path / name)), "vit_toy", **CPU)
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert problems("segment.sam", tmp_path / "old.pth", tmp_path / "store") == []
    whole = (tmp_path / "sam.pth").read_bytes()
    cases = {
        "cut.pth": (whole[:-1000], "is cut off or damaged: its zip directory cannot be read"),
        "page.pth": (PAGE, "is not a checkpoint of torch.save (it is a web page)"),
        "pointer.pth": (POINTER, "is a Git LFS pointer"),
        "empty.pth": (b"", "is empty"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        (line,) = problems("segment.sam", tmp_path / name, tmp_path / "store")
        assert line.startswith(f"segment.sam: the file '{tmp_path / name}' ") and words in line
    torch.save({"model": tensors}, tmp_path / "nested.pth")
    (line,) = problems("segment.sam", tmp_path / "nested.pth", tmp_path / "store")
    assert "does not contain the weights of a vit_toy" in line


def test_the_type_that_fits_a_sam_is_named(tmp_path: Path) -> None:
    engine = engine_for("segment.sam", TOY / "sam" / "sam_vit_toy.safetensors", tmp_path)
    config = engine.config.segment.model_copy(update={"sam_type": "vit_b"})
    stage = type(engine.make("segment"))(config, 0)
    (line,) = stage.check_models()
    assert "does not contain the weights of a vit_b" in line and line.endswith("the sam_type that matches it (vit_toy)")


def test_a_damaged_judge_stops_a_run_before_its_first_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dino = copy_model("dino", tmp_path)
    WEIGHTS["cut in the tensors"][0](dino / "model.safetensors")
    engine = engine_for("evaluate.dino", dino, tmp_path / "store")
    (line,) = preflight(engine, engine.graph.stages)
    assert line.startswith("evaluate.dino: ") and "is cut off" in line
    assert plan(engine.config)["missing"] == [line]
    toy = str(Path(__file__).parents[2] / "configs" / "toy.yaml")
    sets = [word for value in (f"root={tmp_path / 'store'}", f"evaluate.dino={dino}") for word in ("--set", value)]
    assert main(["plan", toy, *sets]) == 0
    assert f"missing: {line}" in capsys.readouterr().out.replace("\n", " ").replace("  ", " ") or "is cut off" in line
    assert main(["run", toy, *sets]) == 2
    assert capsys.readouterr().err == f"{line}\n"
    assert not (tmp_path / "store" / "caption").exists()


@pytest.mark.parametrize("damage", ["Git LFS pointer", "one byte less", "bytes after the end", "endless header"])
def test_what_is_refused_cannot_be_loaded(damage: str, tmp_path: Path) -> None:
    clip, weights = copy_for("evaluate.clip", tmp_path)
    WEIGHTS[damage][0](weights)
    with pytest.raises(Exception, match=r"header|Unable to load|git-lfs"):
        ClipEmbedder(clip)
    sam, weights = copy_for("segment.sam", tmp_path)
    WEIGHTS[damage][0](weights)
    with pytest.raises(ModelError, match=r"^segment\.sam: "):
        BoxSegmenter(ModelSource("segment.sam", str(sam), str(sam)), "vit_toy", **CPU)


def test_eight_bits_are_accepted(tmp_path: Path) -> None:
    model, weights = copy_for("train.model", tmp_path)
    from safetensors.torch import save_file

    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(weights).items()}
    weights.unlink()
    save_file(tensors, weights)
    assert struct.unpack("<Q", weights.read_bytes()[:8])[0] > 0
    assert problems("train.model", model, tmp_path / "store") == []
