"""What a training run needs to go on exactly where it was: saved as safetensors and JSON, never pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch.optim import Optimizer

from bootpig.models.core.bootpig import BootPIG
from bootpig.stages.engine.contract import FatalError, InputError
from bootpig.storage.jsonio import parse_json

VERSION = 1
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps for a parameter."""


@dataclass(frozen=True)
class Position:
    """Where a run stands. The data's position and every draw follow from `step`."""

    step: int
    """Updates done."""
    loss_sum: float
    """Of the steps since the last line of the log."""
    loss_steps: int
    """How many those are."""


def save_state(folder: Path, model: BootPIG, optimizer: Optimizer, position: Position, identity: str) -> None:
    """Write the trained weights, the optimizer's moments and the position into `folder`.

    Args:
        identity: digest of all that determines the run, compared at load.

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
    state = {"version": VERSION, "identity": identity, **asdict(position)}
    (folder / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True))


def check_finite(tensors: Mapping[str, torch.Tensor], step: int) -> None:
    """Raises FatalError if a value is NaN or infinite: such weights are neither saved nor exported."""
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise FatalError(
                f"train: {name} holds NaN or infinity at step {step}; lower the learning rates and run again, "
                "which goes on from the last good checkpoint"
            )


def load_state(folder: Path, model: BootPIG, optimizer: Optimizer, identity: str) -> Position:
    """Put a saved state into `model` and `optimizer`, whose parameters are on their device already.

    Raises:
        InputError: the state is unreadable or belongs to another run.
    """
    hint = f"train: checkpoint {folder.name} %s; remove it to start from the one before, or anew"
    try:
        state = parse_json((folder / "state.json").read_text())
        weights = safetensors.torch.load_file(folder / "weights.safetensors")
        moments = safetensors.torch.load_file(folder / "optimizer.safetensors")
        position = Position(state["step"], state["loss_sum"], state["loss_steps"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(hint % f"is not readable ({error})") from None
    if (state["version"], state["identity"]) != (VERSION, identity):
        raise InputError(hint % "was made by another configuration or version")
    try:
        model.load_trained_state(weights)
    except ValueError as error:
        raise InputError(hint % f"is damaged ({error})") from None
    for name, parameter in model.named_parameters():
        keys = [key for key in MOMENTS if f"{name}.{key}" in moments]
        if keys:
            optimizer.state[parameter] = {key: moments[f"{name}.{key}"].to(parameter.device) for key in keys}
    return position
