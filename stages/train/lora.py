"""LoRA in the train stage: its settings, what would prevent it, and starting from a model that was trained with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootpig.models.core.lora import Lora
from bootpig.models.pretrained.inspection import target_problems
from bootpig.models.pretrained.source import ModelSource
from bootpig.stages.train.config import TrainConfig
from bootpig.storage.jsonio import parse_json

if TYPE_CHECKING:
    from bootpig.models.core.bootpig import BootPIG


def lora_of(config: TrainConfig) -> Lora | None:
    """The settings of LoRA, or None if the weights themselves are trained."""
    if config.method != "lora":
        return None
    networks = {"reference": config.trainable.reference, "base": config.trainable.base != "none"}
    alpha = config.lora_rank if config.lora_alpha is None else config.lora_alpha
    return Lora(config.lora_rank, alpha, config.lora_targets, tuple(name for name, has in networks.items() if has))


def lora_problems(config: TrainConfig, base: ModelSource) -> list[str]:
    """What is wrong with the settings of LoRA for a base, without its weights; nothing if it is not on this disk."""
    lora = lora_of(config)
    return [] if lora is None else target_problems("train", base, lora, whole_base=config.trainable.base == "all")


def start_problem(config: TrainConfig, info: Mapping[str, Any]) -> str | None:
    """Why a training cannot start from a model because of how that was trained, in one line, or None.

    Args:
        info: the content of the model's `bootpig.json`.
    """
    method = info.get("method", "full")
    if method != config.method:
        return (
            f"train.method: {config.method}, but train.init_from was trained with {method}; set method to {method}, or "
            "start from another model"
        )
    wanted = lora_of(config)
    if wanted is None:
        return None
    try:
        found = Lora.from_json(info.get("lora"))
    except ValueError:
        return None  # the check of its files says more
    for name, own, other in (
        ("lora_rank", wanted.rank, found.rank),
        ("lora_alpha", wanted.alpha, found.alpha),
        ("lora_targets", list(wanted.targets), list(found.targets)),
    ):
        if own != other:
            return f"train.{name}: {own}, but train.init_from has {other}; set {name} to {other}, or start from another"
    if lacking := [name for name in found.networks if name not in wanted.networks]:
        return (
            f"train.trainable: the {lacking[0]} is not trained, but train.init_from has LoRA weights for it; train it "
            "too, or start from another model"
        )
    return None


def start_from(model: BootPIG, folder: Path) -> None:
    """Copy the LoRA weights of a trained model into the adapters of a model that is trained.

    Raises:
        ValueError: they do not fit.
        OSError, SafetensorError: a file cannot be read.
        ModelError: a weight is NaN or infinite.
    """
    from bootpig.models.core.adapters import load_adapter
    from bootpig.models.pipelines.lora_files import read_lora_files
    from bootpig.models.pretrained.finite import check_trained

    _, files = read_lora_files(folder, parse_json((folder / "bootpig.json").read_bytes()))
    networks = {"reference": model.reference_unet, "base": model.unet}
    for name, tensors in files.items():
        load_adapter(networks[name], tensors)
    check_trained("train.init_from", folder, model)
