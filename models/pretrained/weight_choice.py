"""Chooses among the weight files of a folder: safetensors, in one file or in shards, in a variant such as fp16."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bootpig.models.pretrained.weight_files import DamagedFile, Header, check_archive, read_json, read_safetensors

Library = Literal["diffusers", "transformers"]

STEMS: dict[Library, str] = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
_PICKLES: dict[Library, str] = {"diffusers": "diffusion_pytorch_model", "transformers": "pytorch_model"}

_VARIANTS = ("fp16", "bf16", "fp32")
"""In order of preference, where a folder has several and no plain weights. Any other name is taken if it is alone."""


@dataclass(frozen=True)
class WeightChoice:
    """The weights that are loaded from a folder."""

    file: str
    """A weight file, or the index of its shards."""
    variant: str | None = None
    """The part of the name between stem and suffix; None for plain weights."""
    pickled: bool = False
    """A .bin file, which is only loaded where a model's authors publish nothing else (judges), as weights only."""

    @property
    def is_index(self) -> bool:
        return self.file.endswith(".json")


def choose_weights(names: Collection[str], library: Library, *, pickles: bool = False) -> WeightChoice | None:
    """The weights that are loaded from a folder with the files `names`: plain ones, else those of a variant.

    Args:
        library: whose names are looked for. Diffusers prefers an index to a single file, transformers the reverse.
        pickles: also accept .bin files.

    Returns:
        None if there are none, or several variants among which none is preferred.
    """
    stem = STEMS[library]
    single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    order = (index, single) if library == "diffusers" else (single, index)
    for name in order:
        if name in names:
            return WeightChoice(name)
    if pickles:
        for name in (f"{_PICKLES[library]}.bin", f"{_PICKLES[library]}.bin.index.json"):
            if name in names:
                return WeightChoice(name, pickled=True)
    variants = list(variants_of(names, library))
    preferred = [variant for variant in _VARIANTS if variant in variants] or variants
    if not preferred or (preferred == variants and len(variants) > 1 and variants[0] not in _VARIANTS):
        return None
    variant = preferred[0]
    single, index = f"{stem}.{variant}.safetensors", f"{stem}.safetensors.index.{variant}.json"
    order = (index, single) if library == "diffusers" else (single, index)
    return WeightChoice(next(name for name in order if name in names), variant)


def variants_of(names: Iterable[str], library: Library) -> list[str]:
    """The variants of which a folder has weights in safetensors, sorted."""
    stem = re.escape(STEMS[library])
    pattern = re.compile(rf"{stem}\.(?:safetensors\.index\.([\w-]+)\.json|([\w-]+)\.safetensors)")
    found = {match[1] or match[2] for name in names if (match := pattern.fullmatch(name))}
    # `fp16-00001-of-00002` is a shard, not a variant
    return sorted(variant for variant in found if not re.search(r"-\d{5}-of-\d{5}$", variant))


def shard_files(folder: Path, choice: WeightChoice) -> list[Path]:
    """The weight files of a choice, one, or those that its index lists.

    Raises:
        DamagedFile: the index is damaged.
    """
    if not choice.is_index:
        return [folder / choice.file]
    index = folder / choice.file
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise DamagedFile(index, "has no weight_map", "download it again")
    return [folder / name for name in sorted(set(weight_map.values()))]


def read_weights(folder: Path, choice: WeightChoice) -> Header | None:
    """The tensors of a choice in safetensors: all its shards are there, whole, and hold what the index says.

    Returns:
        None for .bin files, whose archives alone are checked.

    Raises:
        DamagedFile: a file is missing or damaged.
    """
    files = shard_files(folder, choice)
    if choice.pickled:
        for file in files:
            check_archive(file)
        return None
    shards = {file.name: read_safetensors(file) for file in files}
    if choice.is_index:
        index = folder / choice.file
        for tensor, name in read_json(index)["weight_map"].items():
            if tensor not in shards[Path(name).name]:
                raise DamagedFile(
                    folder / name, f"lacks {tensor!r}, which {index.name} places in it", "download both again"
                )
    return {tensor: info for header in shards.values() for tensor, info in header.items()}


def why_none(folder: Path, names: Collection[str], library: Library, loader: str) -> str:
    """What is wrong with a folder in which `choose_weights` finds nothing, and what to do.

    Args:
        loader: import path of the class that could load its .bin files, such as `transformers.CLIPTextModel`.
    """
    stem = STEMS[library]
    wanted = f"{stem}.safetensors"
    shown = repr(str(folder))
    if variants := variants_of(names, library):
        return f"{shown} has weights only in the variants {', '.join(variants)}; rename those to load to {wanted}"
    if bins := sorted(name for name in names if name.endswith((".bin", ".bin.index.json", ".pt", ".pth", ".ckpt"))):
        module, _, kind = loader.rpartition(".")
        command = f"from {module} import {kind} as M; p={str(folder)!r}; M.from_pretrained(p, use_safetensors=False)"
        how = f'convert it: python -c "{command}.save_pretrained(p)"'
        if bins[0].endswith((".pt", ".pth", ".ckpt")):
            how = "give it in safetensors"
        return f"{shown} has its weights only in {bins[0]}, a pickle, which is not loaded; {how}"
    if others := sorted(name for name in names if name.lower().endswith((".safetensors", ".index.json"))):
        return f"{shown} has {others[0]}, but weights are loaded from {wanted}; rename it, or give the right folder"
    return f"{shown} has no {wanted}; complete the folder, or download the model again"
