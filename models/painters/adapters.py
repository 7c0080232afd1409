"""Adapters for text-to-image pipelines: IP-Adapters, LoRA weights and learned embeddings (Textual Inversion).

Each has a check from the headers of its files, before anything is loaded, and is loaded with diffusers' own functions.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bootpig.models.painters.family import Configs
from bootpig.models.pretrained.source import ModelError, first_line
from bootpig.models.pretrained.structure import on_meta
from bootpig.models.pretrained.weight_files import DamagedFile, read_json, read_safetensors

LORA_FILE = "pytorch_lora_weights.safetensors"
EMBEDDING_FILE = "learned_embeds.safetensors"


@dataclass(frozen=True)
class IPAdapterFiles:
    """Where the files of an IP-Adapter are, in the terms of diffusers' `load_ip_adapter`."""

    folder: Path
    subfolder: str
    """Empty: the top of `folder`."""
    weight_name: str
    image_encoder: str | None
    """The argument `image_encoder_folder`. None: the pipeline has an image encoder."""

    @property
    def weights(self) -> Path:
        return self.folder / self.subfolder / self.weight_name

    @property
    def encoder_folder(self) -> Path | None:
        if self.image_encoder is None:
            return None
        inside = self.folder if "/" in self.image_encoder else self.folder / self.subfolder
        return inside / self.image_encoder


def find_ip_adapter(
    field: str, folder: Path, subfolder: str | None, weight_name: str | None, image_encoder: str | None, own: bool
) -> IPAdapterFiles:
    """The files of an IP-Adapter in a local folder.

    Args:
        field: the config field that names the folder, for messages.
        subfolder, weight_name, image_encoder: as given by the user; None: the only ones there are.
        own: whether the pipeline has an image encoder, which is then used unless another is named.

    Raises:
        ModelError: a file is missing, or there are several to choose from.
    """
    inside = folder / (subfolder or "")
    if not inside.is_dir():
        raise ModelError(f"{field}: {str(folder)!r} has no folder {subfolder}; set subfolder to the one of its weights")
    names = sorted(file.name for file in inside.iterdir() if file.suffix in (".safetensors", ".bin"))
    if weight_name is None and len(names) != 1:
        there = f"has {len(names)} files of weights ({', '.join(names[:6])})" if names else "has no file of weights"
        raise ModelError(f"{field}: {str(inside)!r} {there}; set weight_name, and subfolder if they are in one")
    if weight_name is not None and weight_name not in names:
        there = f"; it has {', '.join(names[:6])}" if names else ", nor other weights"
        raise ModelError(f"{field}: {str(inside)!r} has no {weight_name}{there}")
    found = IPAdapterFiles(
        folder, subfolder or "", weight_name or names[0], image_encoder or (None if own else "image_encoder")
    )
    encoder = found.encoder_folder
    if encoder is not None and not (encoder / "config.json").is_file():
        raise ModelError(
            f"{field}: its CLIP image encoder is not in {str(encoder)!r}; set image_encoder to its folder, or give a "
            "model that has one"
        )
    return found


def ip_adapter_problem(files: IPAdapterFiles, unet: Path, encoder: Mapping[str, Any] | None) -> str | None:
    """Why an IP-Adapter does not fit a UNet or an image encoder, in one line, or None.

    Args:
        unet: the folder of the UNet.
        encoder: the config of the pipeline's own image encoder. None: that of the adapter.
    """
    try:
        shapes = _ip_adapter_shapes(files.weights)
        encoder = encoder if files.encoder_folder is None else read_json(files.encoder_folder / "config.json")
    except DamagedFile as error:
        return str(error)
    layers = {int(match[1]): shape for name, shape in shapes.items() if (match := _KEY.fullmatch(name))}
    if not layers or not any(name.startswith("image_proj.") for name in shapes):
        return f"the file {str(files.weights)!r} holds no IP-Adapter; give one that diffusers loads"
    own = [tuple(layer.shape) for layer in _cross_attention(unet)]
    if (made := [layers[place] for place in sorted(layers)]) != own:
        what = f"{len(own)} layers" if len(own) != len(made) else f"text of width {own[0][1]}"
        other = f"{len(made)}" if len(own) != len(made) else f"{made[0][1]}"
        return (
            f"the file {str(files.weights)!r} was made for another base: {other} where this one has {what}; give the "
            "IP-Adapter of this base"
        )
    for name, setting in (("image_proj.proj.weight", "projection_dim"), ("image_proj.proj_in.weight", "hidden_size")):
        width = None if encoder is None else _width(encoder, setting)
        if name in shapes and width is not None and shapes[name][-1] != width:
            return (
                f"the file {str(files.weights)!r} needs an image encoder of width {shapes[name][-1]}, not {width}; set "
                "image_encoder to the folder of its own"
            )
    return None


_KEY = re.compile(r"ip_adapter\.(\d+)\.to_k_ip\.weight")


def load_ip_adapter(pipeline: Any, files: IPAdapterFiles, scale: float) -> None:
    """Load an IP-Adapter with its image encoder into a pipeline.

    Raises:
        ModelError: it cannot be loaded.
    """
    try:
        pipeline.load_ip_adapter(
            str(files.folder),
            subfolder=files.subfolder,
            weight_name=files.weight_name,
            image_encoder_folder=files.image_encoder,
            local_files_only=True,
        )
        pipeline.set_ip_adapter_scale(scale)
    except Exception as error:
        raise ModelError(f"{str(files.weights)!r} cannot be loaded ({first_line(error)}); give another") from error
    pipeline.to(pipeline.unet.device)


def adapter_file(path: Path, usual: str) -> Path:
    """The file of a LoRA or an embedding: `path` itself, or the file `usual` or the only .safetensors file in it.

    Raises:
        DamagedFile: there is none, or it is of another format.
    """
    file = path
    if path.is_dir():
        names = sorted(each.name for each in path.glob("*.safetensors") if not each.name.startswith("."))
        if usual not in names and len(names) != 1:
            raise DamagedFile(path / usual, "does not exist", "train it, or give the file")
        file = path / (usual if usual in names else names[0])
    if file.suffix != ".safetensors":
        raise DamagedFile(file, "is not safetensors", "convert it: a pickle may run code")
    return file


def lora_file_problem(path: Path, unet: Path | None) -> str | None:
    """Why the LoRA weights of a file or folder do not fit a base, in one line, or None.

    Args:
        unet: the folder of the base's UNet. None: a base of another kind, for which only the file is checked.
    """
    try:
        file = adapter_file(path, LORA_FILE)
        shapes = {name: info.shape for name, info in read_safetensors(file).items()}
    except DamagedFile as error:
        return str(error)
    if not any("lora" in name for name in shapes):
        return f"the file {str(file)!r} holds no LoRA; give one that diffusers loads"
    if unet is None:
        return None
    own = {name: tuple(weight.shape) for name, weight in _network(unet).named_parameters()}
    for name, shape in shapes.items():
        match = re.fullmatch(r"unet\.(.+)\.(?:lora_A|lora\.down|lora_down)\.weight", name)
        width = None if match is None else own.get(f"{match[1]}.weight", (0, 0))[1]
        if match is not None and len(shape) == 2 and width != shape[1]:
            return (
                f"the file {str(file)!r} was made for another base: {match[1]!r} differs; give the base it was made for"
            )
    return None


def load_lora(pipeline: Any, path: Path) -> None:
    """Load LoRA weights into a pipeline. `unload_lora` removes them.

    Raises:
        ModelError: they cannot be loaded, or are for other networks.
    """
    try:
        file = adapter_file(path, LORA_FILE)
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
        loaded = any(pipeline.get_list_adapters().values())
    except Exception as error:
        raise ModelError(
            f"{str(path)!r} cannot be loaded ({first_line(error)}); give the base it was made for"
        ) from error
    if not loaded:  # diffusers only warns
        raise ModelError(f"{str(path)!r} has no weights for this {type(pipeline).__name__}; give its own base")


def unload_lora(pipeline: Any) -> None:
    pipeline.unload_lora_weights()


def embedding_problem(path: Path, token: str, configs: Configs, folder: Path) -> str | None:
    """Why a learned embedding does not fit a base, in one line, or None.

    Args:
        configs: the settings of the base pipeline.
        folder: its folder.
    """
    try:
        file = adapter_file(path, EMBEDDING_FILE)
        shapes = {name: info.shape for name, info in read_safetensors(file).items()}
    except DamagedFile as error:
        return str(error)
    for part, key in _encoders(configs, shapes):
        width = _width(configs.get(part, {}), "hidden_size")
        if key is None or key not in shapes:
            return f"the file {str(file)!r} has no embedding for {part}; give one that was learned with this base"
        if width is not None and shapes[key][-1] != width:
            return (
                f"the file {str(file)!r} was made for another base: an embedding of {shapes[key][-1]} numbers where "
                f"this one has {width}; give the base it was made for"
            )
    if (known := _vocabulary(str(folder / "tokenizer"))) is not None and token in known:
        return f"the token {token!r} is a word of the base already; give the one that was learned, such as <sks>"
    return None


class Embeddings:
    """Puts learned embeddings into a pipeline's text encoders, one after the other."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        parts = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
        self._own = {
            encoder: (tokenizer, copy.deepcopy(getattr(pipeline, tokenizer)), _rows(getattr(pipeline, encoder)))
            for encoder, tokenizer in parts.items()
            if getattr(pipeline, encoder, None) is not None and getattr(pipeline, tokenizer, None) is not None
        }

    def load(self, path: Path, token: str) -> None:
        """Put in an embedding in place of the one before.

        Raises:
            ModelError: it cannot be loaded.
        """
        from safetensors.torch import load_file

        pipeline = self._pipeline
        try:
            found = load_file(adapter_file(path, EMBEDDING_FILE))
            pairs = _encoders(self._own, found)
            for encoder, key in pairs:
                name, tokenizer, rows = self._own[encoder]
                network = getattr(pipeline, encoder)
                # diffusers' own way back leaves the further tokens of an embedding of several vectors
                setattr(pipeline, name, copy.deepcopy(tokenizer))
                network.resize_token_embeddings(rows)
                pipeline.load_textual_inversion(
                    found[str(key)], token=token, text_encoder=network, tokenizer=getattr(pipeline, name)
                )
        except Exception as error:
            raise ModelError(
                f"{str(path)!r} cannot be loaded ({first_line(error)}); give the base it was made for"
            ) from error


def _rows(encoder: Any) -> int:
    return int(encoder.get_input_embeddings().weight.shape[0])


def _encoders(configs: Mapping[str, Any], tensors: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """The text encoders of a pipeline that take embeddings, and the name of each one's tensor."""
    if "text_encoder_2" in configs:  # SDXL's file has one tensor for each
        return [("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")]
    return [("text_encoder", next(iter(tensors)) if len(tensors) == 1 else None)]


def _width(config: Mapping[str, Any], name: str) -> int | None:
    value = config.get(name)
    return value if isinstance(value, int) else None


def _vocabulary(folder: str) -> Mapping[str, int] | None:
    from transformers import CLIPTokenizer

    try:
        known: Mapping[str, int] = CLIPTokenizer.from_pretrained(folder).get_vocab()
    except Exception:  # another kind of tokenizer, or damaged, which other checks report
        return None
    return known


def _ip_adapter_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of an IP-Adapter as `image_proj.…` and `ip_adapter.…`. Raises DamagedFile."""
    if file.suffix == ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in on_meta(read_safetensors(file)).items()}
    try:
        parts = torch.load(file, map_location="meta", weights_only=True)  # no code of the file is run
        return {f"{part}.{name}": tuple(t.shape) for part, tensors in parts.items() for name, t in tensors.items()}
    except Exception as error:
        raise DamagedFile(file, f"cannot be loaded ({first_line(error)})", "give an IP-Adapter") from None


def _network(unet: Path) -> Any:
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel

    with init_empty_weights():
        return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(str(unet)))


def _cross_attention(unet: Path) -> list[torch.Tensor]:
    """The key weights of a UNet's cross-attention layers, in the order of an IP-Adapter's file."""
    network = _network(unet)
    names = [name for name in network.attn_processors if not name.endswith("attn1.processor")]
    return [network.get_submodule(name.removesuffix(".processor")).to_k.weight for name in names]
