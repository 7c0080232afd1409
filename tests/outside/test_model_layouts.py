"""Models as they lie on disks: variants, shards, pickles, links into hub caches, the wrong folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from bootpig.models.painters.loading import load_text_to_image
from bootpig.models.pipelines.bases import load_base
from bootpig.models.pretrained.embedders import ClipEmbedder
from bootpig.models.pretrained.encoders import LatentEncoder
from bootpig.models.pretrained.segmenters import BoxSegmenter, ZeroShotDetector
from bootpig.models.pretrained.source import PIPELINE, TRANSFORMER, ModelError, content_digest
from bootpig.models.pretrained.sources import resolve, resolve_file
from tests.models.families import save_sd21
from tests.outside.model_files import TOY, copy_model, problems

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


def rename(folder: Path, stem: str, variant: str) -> None:
    (folder / f"{stem}.safetensors").rename(folder / f"{stem}.{variant}.safetensors")


def shard(folder: Path, stem: str, variant: str) -> None:
    """Weights in two shards of a variant, as save_pretrained(variant=…, max_shard_size=…) writes them."""
    tensors = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    weight_map = {}
    for number in range(2):
        file = f"{stem}.{variant}-{number + 1:05d}-of-00002.safetensors"
        own = sorted(tensors)[number::2]
        save_file({name: tensors[name] for name in own}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.{variant}.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "variants",
    [
        {"unet": (rename, "fp16"), "vae": (rename, "fp16"), "text_encoder": (rename, "fp16")},
        {"vae": (rename, "fp16")},
        {"unet": (rename, "fp16"), "vae": (rename, "bf16"), "text_encoder": (rename, "own")},
        {"unet": (shard, "fp16"), "text_encoder": (shard, "fp16")},
    ],
    ids=["all", "one", "mixed", "shards"],
)
def test_a_pipeline_in_variants_is_loaded(variants: dict[str, tuple[Callable[..., None], str]], tmp_path: Path) -> None:
    model = copy_model("stable-diffusion", tmp_path)
    for part, (change, variant) in variants.items():
        change(model / part, "model" if part == "text_encoder" else "diffusion_pytorch_model", variant)
    assert (
        problems("train.model", model, tmp_path / "store") == problems("encode.model", model, tmp_path / "store") == []
    )
    source = resolve("f", str(model), None, PIPELINE)
    plain = load_text_to_image(resolve("f", str(TOY / "stable-diffusion"), None, PIPELINE), **CPU)
    for loaded in (load_text_to_image(source, **CPU), load_base(source, torch.float32)):
        for part in variants:
            expected = getattr(plain, part).state_dict()
            for name, tensor in getattr(loaded, part).state_dict().items():
                assert torch.equal(tensor, expected[name]), (part, name)
    embeds = LatentEncoder(source, **CPU).prompt_embeds(["a mug"])["prompt_embeds"]
    assert torch.equal(
        embeds,
        LatentEncoder(resolve("f", str(TOY / "stable-diffusion")), **CPU).prompt_embeds(["a mug"])["prompt_embeds"],
    )


def test_plain_weights_come_before_a_variant(tmp_path: Path) -> None:
    model = copy_model("stable-diffusion", tmp_path)
    vae = model / "vae" / "diffusion_pytorch_model"
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load_file(f"{vae}.safetensors").items()}
    save_file(zeros, f"{vae}.fp16.safetensors")
    loaded = load_base(resolve("f", str(model), None, PIPELINE), torch.float32)
    assert loaded.vae.state_dict()["quant_conv.weight"].abs().sum() > 0


def test_detectors_and_judges_in_variants_are_loaded(tmp_path: Path) -> None:
    clip, owl = copy_model("clip", tmp_path), copy_model("owlvit", tmp_path)
    rename(clip, "model", "fp16")
    shard(owl, "model", "fp16")
    assert (
        problems("evaluate.clip", clip, tmp_path / "store")
        == problems("segment.detector", owl, tmp_path / "store")
        == []
    )
    expected = ClipEmbedder(TOY / "clip").model.state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in ClipEmbedder(clip).model.state_dict().items())
    ZeroShotDetector(resolve("f", str(owl), None, TRANSFORMER), **CPU)


def test_variants_among_which_none_is_preferred_are_named(tmp_path: Path) -> None:
    model = copy_model("stable-diffusion", tmp_path)
    file = model / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(file, file.with_name("diffusion_pytorch_model.ema.safetensors"))
    file.rename(file.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    (line,) = problems("train.model", model, tmp_path / "store")
    assert (
        "has weights only in the variants ema, non_ema; rename those to load to diffusion_pytorch_model.safet" in line
    )


def pickled(folder: Path, stem: str, name: str) -> None:
    tensors = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    torch.save(tensors, folder / name)


def test_pickles_are_named_with_the_command_that_converts_them(tmp_path: Path) -> None:
    model, owl = copy_model("stable-diffusion", tmp_path), copy_model("owlvit", tmp_path)
    pickled(model / "vae", "diffusion_pytorch_model", "diffusion_pytorch_model.bin")
    pickled(model / "text_encoder", "model", "pytorch_model.bin")
    pickled(owl, "model", "pytorch_model.bin")
    lines = [
        *problems("encode.model", model, tmp_path / "store"),
        *problems("segment.detector", owl, tmp_path / "store"),
    ]
    assert len(lines) == 3
    assert all("a pickle, which is not loaded; convert it: python -c" in line for line in lines)
    for line in lines:
        exec(line.partition('python -c "')[2].rpartition('"')[0], {})
    assert problems("encode.model", model, tmp_path / "store") == []
    assert problems("segment.detector", owl, tmp_path / "store") == []
    assert load_base(resolve("f", str(model), None, PIPELINE), torch.float32)


def test_judges_are_loaded_from_pickles_as_weights_only(tmp_path: Path) -> None:
    """Some are published in no other format. Their archives are checked like other files."""
    clip = copy_model("clip", tmp_path)
    pickled(clip, "model", "pytorch_model.bin")
    assert problems("evaluate.clip", clip, tmp_path / "store") == []
    assert ClipEmbedder(clip)
    file = clip / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-100])
    (line,) = problems("evaluate.clip", clip, tmp_path / "store")
    assert line.startswith(f"evaluate.clip: the file '{file}' is cut off or damaged")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Model.safetensors", "has Model.safetensors, but weights are loaded from model.safetensors; rename it"),
        ("pytorch.ckpt", "has its weights only in pytorch.ckpt, a pickle, which is not loaded; give it in safetensors"),
        ("weights.txt", "has no model.safetensors; complete the folder"),
    ],
)
def test_weights_of_other_names_are_named(name: str, words: str, tmp_path: Path) -> None:
    dino = copy_model("dino", tmp_path)
    (dino / "model.safetensors").rename(dino / name)
    (line,) = problems("evaluate.dino", dino, tmp_path / "store")
    assert words in line


def test_the_right_folder_is_named(tmp_path: Path) -> None:
    model = copy_model("stable-diffusion", tmp_path / "download")
    for given in (tmp_path / "download", model / "unet"):
        with pytest.raises(ModelError, match=rf"has no model_index\.json, which '{model}' has; give the folder of"):
            resolve("train.model", str(given), None, PIPELINE)
    clip = copy_model("clip", tmp_path / "judge")
    with pytest.raises(ModelError, match=rf"has no config\.json, which '{clip}' has"):
        resolve("evaluate.clip", str(tmp_path / "judge"), None, TRANSFORMER)
    (model / "model_index.json").rename(model / "Model_Index.json")
    with pytest.raises(ModelError, match=r"has Model_Index\.json but no model_index\.json; rename it"):
        resolve("train.model", str(model), None, PIPELINE)
    for name, kind in (("sd.safetensors", "StableDiffusionPipeline"), ("sd_XL.ckpt", "StableDiffusionXLPipeline")):
        (tmp_path / name).write_bytes(b"weights")
        with pytest.raises(ModelError, match=rf"is a single file; convert it to a folder: python -c .*import {kind} "):
            resolve("train.model", str(tmp_path / name), None, PIPELINE)
    with pytest.raises(ModelError, match=r"is a file; give the folder of a transformers model"):
        resolve("evaluate.dino", str(tmp_path / "sd.safetensors"), None, TRANSFORMER)


def hub_cache(folder: Path, model: Path) -> Path:
    """A model as a hub's cache holds it: links with names to files whose names are hashes."""
    snapshot = folder / "snapshots" / ("0" * 40)
    for number, file in enumerate(sorted(path for path in model.rglob("*") if path.is_file())):
        blob = folder / "blobs" / f"{number:064x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link = snapshot / file.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(link.relative_to(folder).parts) - 1), "blobs", blob.name))
    return snapshot


def test_a_sam_in_a_hub_cache_is_loaded(tmp_path: Path) -> None:
    file = hub_cache(tmp_path, TOY / "sam") / "sam_vit_toy.safetensors"
    weights = load_file(TOY / "sam" / "sam_vit_toy.safetensors")
    torch.save(weights, tmp_path / "sam.pth")
    (tmp_path / "link.pth").symlink_to("sam.pth")
    (tmp_path / "UPPER.SAFETENSORS").symlink_to(file)
    digest = content_digest(TOY / "sam" / "sam_vit_toy.safetensors")
    for path in (file, file.resolve(), tmp_path / "UPPER.SAFETENSORS"):
        source = resolve_file("segment.sam", str(path))
        assert source.as_json() == {"digest": digest}
        assert problems("segment.sam", path, tmp_path / "store") == []
        loaded = BoxSegmenter(source, "vit_toy", **CPU)._sam.state_dict()
        assert all(torch.equal(loaded[name], weights[name].float()) for name in weights)
    BoxSegmenter(resolve_file("segment.sam", str(tmp_path / "link.pth")), "vit_toy", **CPU)


def test_folders_of_links_are_loaded_and_have_the_same_digest(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path / "cache", TOY / "stable-diffusion")
    (tmp_path / "link").symlink_to(snapshot)
    assert content_digest(snapshot) == content_digest(TOY / "stable-diffusion")
    source = resolve("train.model", str(tmp_path / "link"), None, PIPELINE)
    assert source.as_json() == {"digest": content_digest(TOY / "stable-diffusion")}
    assert problems("train.model", tmp_path / "link", tmp_path / "store") == []
    load_base(source, torch.float32)
    (snapshot / "unet" / "above").symlink_to("..")  # a link without end
    assert content_digest(snapshot) == content_digest(TOY / "stable-diffusion")


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    for name, find in (("model", lambda p: resolve("f", p)), ("sam.pth", lambda p: resolve_file("f", p))):
        (tmp_path / name).symlink_to("gone")
        with pytest.raises(ModelError, match=rf"^f: '.*{name}' is a link to 'gone', which does not exist; restore the"):
            find(str(tmp_path / name))
    model = copy_model("dino", tmp_path / "dino")
    (model / "extra.json").symlink_to("gone")
    with pytest.raises(ModelError, match=r"^f: the file '.*extra\.json' cannot be read .*; restore it"):
        resolve("f", str(model)).as_json()


def test_weights_as_older_libraries_wrote_them_are_accepted(tmp_path: Path) -> None:
    model = save_sd21(tmp_path / "model")
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(model / "vae")
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in vae.state_dict().items():
        for new, old in older.items() if "attentions" in name else ():
            name = name.replace(f".{new}.", f".{old}.")
        tensors[name] = tensor.contiguous()
    assert any(".query." in name for name in tensors)
    file = model / "vae" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    save_file(tensors, file)
    text = model / "text_encoder" / "model.safetensors"
    tensors = load_file(text)
    name = next(name for name in tensors if name.endswith("position_embedding.weight"))
    ids = torch.arange(tensors[name].shape[0])[None]
    text.unlink()
    save_file({**tensors, name.replace("position_embedding.weight", "position_ids"): ids}, text)
    assert problems("encode.model", model, tmp_path / "store") == []
    load_base(resolve("f", str(model), None, PIPELINE), torch.float32)


def test_a_judge_without_what_is_not_used_is_accepted(tmp_path: Path) -> None:
    from tests.models.tiny import save_clip, save_vit

    for field, folder, spare in (
        ("evaluate.dino", save_vit(tmp_path / "vit"), "pooler."),
        ("evaluate.clip", save_clip(tmp_path / "clip"), "logit_scale"),
    ):
        tensors = load_file(folder / "model.safetensors")
        fewer = {name: tensor for name, tensor in tensors.items() if not name.startswith(spare)}
        assert len(fewer) < len(tensors)
        save_file(fewer, folder / "model.safetensors", metadata={"format": "pt"})
        assert problems(field, folder, tmp_path / "store") == []


@pytest.mark.parametrize("kind", ["ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer"])
def test_a_tokenizer_without_a_vocabulary_is_no_damage(kind: str, tmp_path: Path) -> None:
    """Its tokens are bytes or characters, as those of HunyuanImage's second text encoder."""
    model = copy_model("stable-diffusion", tmp_path)
    shutil.rmtree(model / "tokenizer")
    getattr(transformers, kind)(model_max_length=24).save_pretrained(model / "tokenizer")
    index = json.loads((model / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", kind]
    (model / "model_index.json").write_text(json.dumps(index))
    assert problems("train.model", model, tmp_path) == []
