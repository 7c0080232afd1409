"""Saves and loads the state that training needs to resume exactly: safetensors and JSON, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from torch.optim import Optimizer

from bootpig.models.core.bootpig import BootPIG
from bootpig.stages.engine.contract import FatalError, InputError
from bootpig.stages.train.optimizers import moments_of, restore_moments
from bootpig.stages.train.sharding import like, whole
from bootpig.storage.jsonio import parse_json

VERSION = 1

UNUSABLE = "train: checkpoint %s %s; remove it to resume from an earlier checkpoint or start over"


@dataclass(frozen=True)
class Position:
    """The progress of a training run. The position in the data and all random draws follow from `step`."""

    step: int
    """Updates done."""
    loss_sum: float
    """Sum of the losses since the last log line."""
    loss_steps: int
    """Number of steps since the last log line."""


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint holds, by parameter name. The tensors are not copied, unless the model is sharded."""

    weights: dict[str, torch.Tensor]
    """The trained weights."""
    moments: dict[str, torch.Tensor]
    """The optimizer's state, as `<parameter>.<key>`."""
    averaged: dict[str, torch.Tensor] | None
    """The moving average of the trained weights, if there is one."""


def collect_state(model: BootPIG, optimizer: Optimizer, average: EMAModel | None = None) -> TrainingState:
    """The state of a model in training. If it is sharded, all ranks must call this."""
    moments = {
        f"{name}.{key}": value.contiguous()
        for name, parameter in model.named_parameters()
        for key, value in moments_of(optimizer, parameter).items()
    }
    weights = {name: whole(tensor).contiguous() for name, tensor in model.trained_state().items()}
    averaged = None
    if average is not None:
        averaged = {name: whole(value) for name, value in zip(weights, average.shadow_params, strict=True)}
    return TrainingState(weights, moments, averaged)


def save_state(folder: Path, collected: TrainingState, position: Position, identity: str) -> None:
    """Write a state and the position to `folder`, which exists.

    Args:
        folder: an existing folder.
        collected: the state.
        position: the progress.
        identity: digest of everything that determines the result; compared when loading.

    Raises:
        FatalError: a weight or a moment is not finite. Nothing is written.
    """
    check_finite({**collected.weights, **collected.moments}, position.step)
    safetensors.torch.save_file(collected.weights, folder / "weights.safetensors")
    safetensors.torch.save_file(collected.moments, folder / "optimizer.safetensors")
    if collected.averaged is not None:
        safetensors.torch.save_file(collected.averaged, folder / "average.safetensors")
    state = {"version": VERSION, "identity": identity, **asdict(position)}
    (folder / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True))


def check_finite(tensors: Mapping[str, torch.Tensor], step: int) -> None:
    """Raises FatalError if a value is NaN or infinite, so that such weights are never saved or exported."""
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise FatalError(
                f"train: {name} contains NaN or infinity at step {step}; lower the learning rates and run again, "
                "which continues from the last good checkpoint"
            )


def load_state(
    folder: Path, model: BootPIG, optimizer: Optimizer, identity: str, average: EMAModel | None = None
) -> Position:
    """Load a saved state into `model`, `optimizer` and `average`. The parameters must already be on their device.

    Raises:
        InputError: the state cannot be read or belongs to another run.
    """
    try:
        state = parse_json((folder / "state.json").read_text())
        weights = safetensors.torch.load_file(folder / "weights.safetensors")
        moments = safetensors.torch.load_file(folder / "optimizer.safetensors")
        averaged = {} if average is None else safetensors.torch.load_file(folder / "average.safetensors")
        position = Position(state["step"], state["loss_sum"], state["loss_steps"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(UNUSABLE % (folder.name, f"is not readable ({error})")) from None
    if (state["version"], state["identity"]) != (VERSION, identity):
        raise InputError(UNUSABLE % (folder.name, "was made by another configuration or version"))
    try:
        own = model.trained_state()
        model.load_trained_state({name: like(value, own.get(name, value)) for name, value in weights.items()})
    except ValueError as error:
        raise InputError(UNUSABLE % (folder.name, f"is damaged ({error})")) from None
    if average is not None:
        average.shadow_params = [like(averaged[name], tensor) for name, tensor in own.items()]
        average.optimization_step = position.step
    by_parameter: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in moments.items():
        name, _, moment = key.rpartition(".")
        by_parameter.setdefault(name, {})[moment] = value
    for name, parameter in model.named_parameters():
        try:
            restore_moments(optimizer, parameter, by_parameter.get(name, {}))
        except KeyError as error:
            raise InputError(
                UNUSABLE % (folder.name, f"is damaged (the optimizer's {error} of {name} is missing)")
            ) from None
    return position
