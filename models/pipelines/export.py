"""Saves and loads the folder of a trained model: the weights that training changed, and settings for inference."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bootpig.models.core.lora import Lora
from bootpig.models.core.reference_unet import restore, truncate
from bootpig.models.core.rsa import self_attention_blocks, uncompiled
from bootpig.models.pipelines.card import CARD_FILE, model_card
from bootpig.models.pipelines.lora_files import load_lora_files, save_lora_files

FORMAT = 1
REFERENCE_FOLDER = "reference_unet"
RSA_FILE = "rsa.safetensors"
INFO_FILE = "bootpig.json"

_PACKAGE = __name__.partition(".")[0] + "."


def save_trained(
    folder: str | Path,
    unet: UNet2DConditionModel,
    reference_unet: UNet2DConditionModel,
    info: Mapping[str, Any],
    *,
    whole_base: bool = False,
    dtype: torch.dtype | None = None,
    lora: Lora | None = None,
) -> None:
    """Write `reference_unet/` (an ordinary UNet folder), `rsa.safetensors` (the base's attn1), `bootpig.json` and the
    model card. With `lora`, the files of its LoRA weights instead of the first two.

    Args:
        folder: created if missing.
        unet: the base UNet.
        reference_unet: the truncated Reference UNet.
        info: JSON values, see `BootPIGPipeline.save_bootpig`.
        whole_base: write the whole base instead of its attn1 (`train_base: all`).
        dtype: dtype of the written weights. None keeps the current one.
        lora: the settings of the LoRA adapters in the UNets, if these were trained.

    Raises:
        ValueError: the two UNets have different architectures, or an adapter is missing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    unet, reference_unet = uncompiled(unet), uncompiled(reference_unet)
    if lora is not None:
        save_lora_files(folder, {"reference": reference_unet, "base": unet}, lora, dtype)
        info = {**info, "method": "lora", "lora": lora.as_json()}
    else:
        restore(reference_unet, unet, dtype).save_pretrained(folder / REFERENCE_FOLDER)
        state = unet.state_dict()
        names = list(state) if whole_base else rsa_names(unet)
        save_file({name: state[name].detach().to("cpu", dtype).contiguous() for name in names}, folder / RSA_FILE)
    text = json.dumps({"format": FORMAT, **info}, indent=2, sort_keys=True)
    (folder / INFO_FILE).write_text(text + "\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(model_card(info), encoding="utf-8")


def load_trained(folder: str | Path, unet: UNet2DConditionModel) -> tuple[UNet2DConditionModel, dict[str, Any]]:
    """Load a folder written by `save_trained`. The trained attn1 weights are loaded into `unet`, in place. LoRA weights
    are merged into `unet` and a copy of it.

    Returns:
        The truncated Reference UNet, with the base's dtype and device, and the content of `bootpig.json`.

    Raises:
        ValueError: a part is missing or damaged, or the model was trained on a base with another architecture, or it
            has LoRA weights and `unet` is no longer the base. `unet` is then unchanged.
    """
    folder = Path(folder)
    if _method(folder) == "lora":
        return _load_lora(folder, uncompiled(unet))
    for name in (INFO_FILE, RSA_FILE, f"{REFERENCE_FOLDER}/config.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: {name} is missing; give the folder of a trained BootPIG model")
    try:
        info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
        state = load_file(folder / RSA_FILE)
        reference_unet = UNet2DConditionModel.from_pretrained(
            folder / REFERENCE_FOLDER, dtype=unet.dtype, use_safetensors=True
        )
    except (OSError, SafetensorError, json.JSONDecodeError, RuntimeError) as error:
        raise ValueError(f"{folder}: cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise ValueError(f"{folder}/{INFO_FILE}: this version of BootPIG reads only format {FORMAT}")
    unet = uncompiled(unet)
    own = unet.state_dict()
    wrong = (set(rsa_names(unet)) - state.keys()) | {
        name for name, tensor in state.items() if name not in own or own[name].shape != tensor.shape
    }
    if not wrong:
        other = reference_unet.state_dict()
        wrong = own.keys() ^ other.keys() or {name for name in own if own[name].shape != other[name].shape}
    if wrong:
        raise ValueError(f"{folder}: trained on a UNet with another architecture than this one; {min(wrong)} differs")
    unet.load_state_dict(state, strict=False)
    unet.bootpig_trained = True
    return truncate(reference_unet.to(unet.device)), info


def _method(folder: Path) -> str:
    """How the model in a folder was trained. "full" also if `bootpig.json` cannot be read, which is noticed later.

    Raises:
        ValueError: this version of BootPIG does not know the method.
    """
    try:
        info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "full"
    method = info.get("method", "full") if isinstance(info, dict) else "full"
    if method not in ("full", "lora"):
        raise ValueError(f"{folder}/{INFO_FILE}: this version of BootPIG knows the methods full and lora, not {method}")
    return str(method)


def _load_lora(folder: Path, unet: Any) -> tuple[UNet2DConditionModel, dict[str, Any]]:
    info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    if info.get("format") != FORMAT:
        raise ValueError(f"{folder}/{INFO_FILE}: this version of BootPIG reads only format {FORMAT}")
    if getattr(unet, "bootpig_trained", False):
        raise ValueError(
            f"{folder}: LoRA weights are added to those of the base, but this pipeline already holds a trained model; "
            "load the base again"
        )
    if getattr(unet, "peft_config", None):
        raise ValueError(f"{folder}: another LoRA is loaded; call unload_lora_weights first, and load it again after")
    try:
        reference_unet = load_lora_files(folder, unet, info)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder}: cannot be read: {str(error).splitlines()[0]}") from error
    unet.bootpig_trained = True
    return reference_unet, info


def rsa_names(unet: UNet2DConditionModel) -> list[str]:
    """Names of the base's RSA weights, in the order in which the UNet runs the layers."""
    return [
        f"{name}.attn1.{weight}" for name, block in self_attention_blocks(unet) for weight in block.attn1.state_dict()
    ]


def standalone_source(pipeline_class: type) -> str:
    """The source of a pipeline class and of everything that it imports from this package, as one file that depends only
    on diffusers. It becomes the `pipeline.py` of a saved pipeline."""
    module = sys.modules[pipeline_class.__module__]
    parts: dict[str, str] = {}
    _collect(module, parts)
    if len(parts) == 1:
        # The module is such a file itself: a pipeline loaded without this package is saved again.
        return inspect.getsource(module)
    taken: dict[str, str] = {}
    for name, source in parts.items():
        for defined in _defined(source):
            assert defined not in taken, f"{defined} is in {taken[defined]} and in {name}"
            taken[defined] = name
    title = f'"""{pipeline_class.__name__} in one file, made from {", ".join(parts)}."""'
    return "\n".join([title, "", "from __future__ import annotations", "", *parts.values()])


def _defined(source: str) -> Iterator[str]:
    """The names that a module defines at its top level."""
    for node in ast.parse(source).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _collect(module: ModuleType, parts: dict[str, str]) -> None:
    """Add to `parts` the modules of this package that a module imports, and then itself, without those imports."""
    source = inspect.getsource(module)
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ImportFrom) or node.module is None or node.end_lineno is None:
            continue
        if node.module.startswith(_PACKAGE) and node.module not in parts:
            _collect(sys.modules[node.module], parts)
        if node.module.startswith(_PACKAGE) or node.module == "__future__":
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    parts[module.__name__] = "\n".join(lines).strip() + "\n\n"
