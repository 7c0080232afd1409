"""Copies of the toy models, and damage to their files as users have it."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bootpig.flows.loading import load_config
from bootpig.stages.engine.engine import Engine

PROJECT = Path(__file__).parents[2]
TOY = PROJECT / "models" / "toy" / "checkpoints"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 1663032\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"

FIELDS = {
    "synthesize.model": ("synthesize", "stable-diffusion", "unet/diffusion_pytorch_model.safetensors"),
    "segment.detector": ("segment", "owlvit", "model.safetensors"),
    "segment.sam": ("segment", "sam", "sam_vit_toy.safetensors"),
    "encode.model": ("encode", "stable-diffusion", "text_encoder/model.safetensors"),
    "train.model": ("train", "stable-diffusion", "vae/diffusion_pytorch_model.safetensors"),
    "evaluate.clip": ("evaluate", "clip", "model.safetensors"),
    "evaluate.dino": ("evaluate", "dino", "model.safetensors"),
}
"""Field → stage, toy model, and one of its weight files."""


def copy_model(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(TOY / name, folder / name))


def replace(file: Path, content: bytes) -> None:
    file.unlink()  # caches tell files apart by inode, too
    file.write_bytes(content)


def engine_for(field: str, model: Path, store: Path) -> Engine:
    same = ("encode.model", "train.model")  # training needs the latents of its base
    settings = [f"{name}={model}" for name in (same if field in same else (field,))]
    return Engine(load_config(str(PROJECT / "configs" / "toy.yaml"), [f"root={store}", *settings]))


def problems(field: str, model: Path, store: Path) -> list[str]:
    """What the field's stage says before anything is loaded."""
    stage = engine_for(field, model, store).make(FIELDS[field][0])
    try:
        stage.models()
    except ValueError as error:
        return str(error).splitlines()
    return stage.check_models()


def rewritten(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    """Damage by another set of tensors in a whole file."""

    def damage(file: Path) -> None:
        tensors = load_file(file)
        change(tensors)
        file.unlink()
        save_file(tensors, file)

    return damage


def without_one(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[_matrix(tensors)]


def with_another_shape(tensors: dict[str, torch.Tensor]) -> None:
    name = _matrix(tensors)
    tensors[name] = torch.zeros(*tensors[name].shape[:-1], tensors[name].shape[-1] + 1)


def with_integers(tensors: dict[str, torch.Tensor]) -> None:
    name = _matrix(tensors)
    tensors[name] = tensors[name].to(torch.int8)


def _matrix(tensors: dict[str, torch.Tensor]) -> str:
    """A weight that is used: logit_scale and the like may be missing."""
    return sorted(name for name, tensor in tensors.items() if tensor.ndim >= 2)[-1]


def saved_by_torch(file: Path) -> None:
    tensors = load_file(file)
    file.unlink()
    torch.save(tensors, file)


def header_of(file: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(change: Callable[[dict[str, dict[str, object]]], None]) -> Callable[[Path], None]:
    """Damage by another header before the same tensors."""

    def damage(file: Path) -> None:
        header, tensors = header_of(file)
        change(header)
        text = json.dumps(header).encode()
        replace(file, struct.pack("<Q", len(text)) + text + tensors)

    return damage


def in_four_bits(header: dict[str, dict[str, object]]) -> None:
    next(entry for name, entry in header.items() if name != "__metadata__")["dtype"] = "F4"


def overlapping(header: dict[str, dict[str, object]]) -> None:
    first, second = [entry for name, entry in header.items() if name != "__metadata__"][:2]
    second["data_offsets"] = first["data_offsets"]
    second["shape"], second["dtype"] = first["shape"], first["dtype"]


def shortened(bytes_left: int | float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        data = file.read_bytes()
        replace(file, data[: bytes_left if isinstance(bytes_left, int) else int(len(data) * bytes_left)])

    return damage


def written(content: bytes) -> Callable[[Path], None]:
    return lambda file: replace(file, content)


def dangling(file: Path) -> None:
    file.unlink()
    file.symlink_to("../../blobs/0123abcd")


WEIGHTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "Git LFS pointer": (written(POINTER), "is a Git LFS pointer without the weights; run `git lfs pull`"),
    "web page": (written(PAGE), "is not a safetensors file (it is a web page); download it again"),
    "empty": (written(b""), "is empty; download it again"),
    "a few bytes": (shortened(5), "is not a safetensors file"),
    "cut in the header": (shortened(2000), "is cut off after 2000 bytes, within its header"),
    "cut in the tensors": (shortened(0.6), "is cut off: "),
    "one byte less": (lambda file: replace(file, file.read_bytes()[:-1]), "is cut off: "),
    "bytes after the end": (lambda file: replace(file, file.read_bytes() + b"\0" * 8), "has 8 bytes after its last"),
    "zeros": (
        lambda file: replace(file, bytes(file.stat().st_size)),
        "it begins with zeros, as an unfinished download",
    ),
    "endless header": (written(b"\xff" * 8 + b"{" + bytes(100)), "is not a safetensors file"),
    "header of other JSON": (written(struct.pack("<Q", 4) + b"[{}]"), "has a damaged header"),
    "deep header": (written(struct.pack("<Q", 100_000) + b"{" + b"[" * 99_999), "has a damaged header"),
    "overlapping tensors": (with_header(overlapping), "has a damaged header"),
    "four bits": (with_header(in_four_bits), "in F4, which cannot be loaded; give weights in float16 or float32"),
    "torch.save": (saved_by_torch, "is not a safetensors file (it is a zip archive, as torch.save writes)"),
    "GGUF": (written(b"GGUF\x03\0\0\0" + bytes(100)), "is not a safetensors file (it is a GGUF file)"),
    "gzip": (written(b"\x1f\x8b\x08\0" + bytes(100)), "is not a safetensors file (it is compressed with gzip)"),
    "dangling link": (dangling, "is a link to '../../blobs/0123abcd', which does not exist; restore the link"),
    "a tensor is missing": (rewritten(without_one), "lacks 1 weights of a "),
    "another shape": (rewritten(with_another_shape), "of shape "),
    "integers": (rewritten(with_integers), "in torch.int8, but a "),
}
"""Damage to a safetensors file, and words of the line that names it."""
