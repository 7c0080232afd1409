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
from bootpig.storage.jsonio import parse_json

VERSION = 1
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""The state of AdamW for one parameter."""


@dataclass(frozen=True)
class Position:
    """The progress of a training run. The position in the data and all random draws follow from `step`."""

    step: int
    """Updates done."""
    loss_sum: float
    """Sum of the losses since the last log line."""
    loss_steps: int
    """Number of steps since the last log line."""


def save_state(
    folder: Path,
    model: BootPIG,
    optimizer: Optimizer,
    position: Position,
    identity: str,
    average: EMAModel | None = None,
) -> None:
    """Write the trained weights, the optimizer's moments, the position, and the average of the weights to `folder`.

    Args:
        folder: an existing folder.
        model: the model in training.
        optimizer: its optimizer.
        position: the progress.
        identity: digest of everything that determines the result; compared when loading.
        average: the moving average of the trained weights, if there is one.

    Raises:
        FatalError: a weight or a moment is not finite. Nothing is written.
    """
    moments = {
        f"{name}.{key}": value.detach().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    weights = {name: tensor.contiguous() for name, tensor in model.trained_state().items()}
    check_finite({**weights, **moments}, position.step)
    safetensors.torch.save_file(weights, folder / "weights.safetensors")
    safetensors.torch.save_file(moments, folder / "optimizer.safetensors")
    if average is not None:
        averaged = dict(zip(weights, average.shadow_params, strict=True))
        safetensors.torch.save_file(averaged, folder / "average.safetensors")
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
    hint = f"train: checkpoint {folder.name} %s; remove it to resume from an earlier checkpoint or start over"
    try:
        state = parse_json((folder / "state.json").read_text())
        weights = safetensors.torch.load_file(folder / "weights.safetensors")
        moments = safetensors.torch.load_file(folder / "optimizer.safetensors")
        averaged = {} if average is None else safetensors.torch.load_file(folder / "average.safetensors")
        position = Position(state["step"], state["loss_sum"], state["loss_steps"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(hint % f"is not readable ({error})") from None
    if (state["version"], state["identity"]) != (VERSION, identity):
        raise InputError(hint % "was made by another configuration or version")
    try:
        model.load_trained_state(weights)
    except ValueError as error:
        raise InputError(hint % f"is damaged ({error})") from None
    if average is not None:
        average.shadow_params = [averaged[name].to(own.device) for name, own in model.trained_state().items()]
        average.optimization_step = position.step
    for name, parameter in model.named_parameters():
        keys = [key for key in MOMENTS if f"{name}.{key}" in moments]
        if keys:
            optimizer.state[parameter] = {key: moments[f"{name}.{key}"].to(parameter.device) for key in keys}
    return position
