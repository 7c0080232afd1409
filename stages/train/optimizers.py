"""The optimizers of the train stage, and their state as named tensors."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bootpig.stages.engine.contract import InputError
from bootpig.stages.train.config import TrainConfig
from bootpig.stages.train.sharding import like, whole

MOMENTS = ("exp_avg", "exp_avg_sq")
"""The state of AdamW for one parameter, besides `step`."""
MOMENTS_8BIT = ("state1", "state2", "absmax1", "absmax2")
"""That of bitsandbytes' AdamW8bit: the moments as uint8, and the largest value of each block of 256. Parameters of less
than 4096 values have float32 moments and no blocks."""
CODES = {"qmap1": "dynamic", "qmap2": "udynamic"}
"""The values that the 256 codes of each moment stand for: the same for all parameters, so they are not saved."""


def make_optimizer(config: TrainConfig, groups: list[dict[str, Any]]) -> Optimizer:
    """The optimizer for the parameter groups of `BootPIG.parameter_groups`.

    Raises:
        InputError: its package is not installed.
    """
    settings: dict[str, Any] = {"betas": config.betas, "weight_decay": config.weight_decay, "eps": config.eps}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True, **settings)
    if problem := missing_package(config):
        raise InputError(problem)
    from bitsandbytes.optim import AdamW8bit

    optimizer: Optimizer = AdamW8bit(groups, **settings)
    return optimizer


def missing_package(config: TrainConfig) -> str | None:
    """The package that the optimizer lacks, in one line, or None."""
    if config.optimizer == "adamw" or importlib.util.find_spec("bitsandbytes") is not None:
        return None
    return f"train.optimizer: {config.optimizer} → its package is not installed; pip install 'bootpig[8bit]'"


def moments_of(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The state of a parameter as tensors by name, for a checkpoint; `step` too. Empty before its first update. A
    sharded one is gathered on the CPU: all ranks must then call this."""
    state = optimizer.state.get(parameter, {})
    return {
        name: whole(value) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.int64)
        for name, value in state.items()
        if name not in CODES
    }


def restore_moments(optimizer: Optimizer, parameter: nn.Parameter, saved: Mapping[str, Tensor]) -> None:
    """Give a parameter the state that `moments_of` returned for it. Entries of no optimizer are ignored."""
    if "exp_avg" in saved:
        state: dict[str, Any] = {name: like(saved[name], parameter) for name in MOMENTS}
        state["step"] = saved["step"].to(parameter.device)
    elif "state1" in saved:
        state = {name: saved[name].to(parameter.device) for name in MOMENTS_8BIT if name in saved}
        state["step"] = int(saved["step"])
        if state["state1"].dtype == torch.uint8:
            codes: dict[str, Tensor] = optimizer.name2qmap  # type: ignore[attr-defined]
            for name, code in CODES.items():
                codes[code] = codes[code].to(parameter.device)
                state[name] = codes[code]
    else:
        return
    optimizer.state[parameter] = state
