"""LoRA weights of a UNet as plain tensors: their names, whether they fit, and how they are merged into the layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # settings are read by commands that need no torch, such as status
    from torch import Tensor, nn

ADAPTER = "bootpig"
"""The name of BootPIG's adapter in a network. Those of users have other names."""


@dataclass(frozen=True)
class Lora:
    """How the LoRA weights of a model are shaped. A layer computes W x + alpha / rank * B A x (LoRA, section 4.1)."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Ends of the names of the layers, such as `to_q`."""
    networks: tuple[str, ...] = ("reference", "base")
    """The networks that have LoRA weights. The others are the frozen base."""

    def scale(self) -> float:
        return self.alpha / self.rank

    def as_json(self) -> dict[str, Any]:
        """The entry `lora` of `bootpig.json`."""
        return {
            "rank": self.rank,
            "alpha": self.alpha,
            "targets": list(self.targets),
            "networks": list(self.networks),
        }

    @classmethod
    def from_json(cls, entry: object) -> Lora:
        """Read what `as_json` returned. Raises ValueError, one line, if it is anything else."""
        values: dict[str, Any] = entry if isinstance(entry, dict) else {}
        rank: Any
        alpha: Any
        rank, alpha = values.get("rank"), values.get("alpha")
        targets, networks = values.get("targets"), values.get("networks")
        if type(rank) is not int or rank < 1:
            raise ValueError(f"lora.rank: {rank!r} is not a whole number above 0; give the files of one trained model")
        if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
            raise ValueError(f"lora.alpha: {alpha!r} is not a number above 0; give the files of one trained model")
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            raise ValueError(f"lora.targets: {targets!r} is not a list of names; give the files of one trained model")
        if networks not in (["reference"], ["base"], ["reference", "base"]):
            raise ValueError(
                f"lora.networks: {networks!r} is not a list of reference and base; give the files of one trained model"
            )
        return cls(rank, alpha, tuple(targets), tuple(networks))


Widths = Mapping[str, tuple[int, int]]
"""Name of a layer → its numbers of outputs and inputs. A convolution has one input per channel and place of its kernel.
"""


def layer_widths(unet: nn.Module) -> dict[str, tuple[int, int]]:
    """The widths of all layers that can have LoRA weights: linear layers and convolutions."""
    from torch import nn

    layers = [(name, module) for name, module in unet.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return {name: (layer.weight.shape[0], math.prod(layer.weight.shape[1:])) for name, layer in layers}


def target_layers(unet: nn.Module, targets: Iterable[str], *, self_attention: bool = False) -> list[str]:
    """The names of the layers that end in one of `targets`, in the UNet's order.

    Args:
        self_attention: only those in self-attention layers, the RSA layers of a base UNet.
    """
    ends = tuple(f".{target}" for target in targets)
    return [
        name
        for name in layer_widths(unet)
        if f".{name}".endswith(ends) and (not self_attention or ".attn1." in f".{name}")
    ]


def too_high(rank: int, names: Iterable[str], widths: Widths) -> str | None:
    """What is wrong with a rank for these layers. Above its width, a layer's LoRA would only be a larger copy of it."""
    narrowest = min(names, key=lambda name: min(widths[name]))
    if rank > min(widths[narrowest]):
        return f"{rank} is above the width of {narrowest}, {min(widths[narrowest])}"
    return None


def misfit(lora: Lora, shapes: Mapping[str, tuple[int, ...]], widths: Widths) -> str | None:
    """How LoRA weights differ from the network that they are for, or None if they fit.

    Args:
        lora: their settings.
        shapes: name → shape of the tensors `<layer>.lora_A.weight` and `<layer>.lora_B.weight`.
        widths: the network's, from `layer_widths`.
    """
    layers = {name.rpartition(".lora_")[0] for name in shapes}
    wanted = {f"{layer}.lora_{part}.weight" for layer in layers for part in "AB"}
    if wrong := wanted ^ shapes.keys():
        return f"its tensor {min(wrong)!r} is missing or unknown"
    if not layers:
        return "it has no LoRA weights"
    for layer in sorted(layers):
        down, up = shapes[f"{layer}.lora_A.weight"], shapes[f"{layer}.lora_B.weight"]
        if not down or len(up) < 2 or down[0] != lora.rank or up[1] != lora.rank:
            return f"the LoRA weights of {layer!r} do not have rank {lora.rank}, which bootpig.json names"
        if (up[0], math.prod(down[1:])) != widths.get(layer):
            return f"it was trained on a base with another architecture: {layer!r} differs; use its own base"
    problem = too_high(lora.rank, layers, widths)
    return problem and f"its rank {problem}; train it again with a lower rank"


def merge(unet: nn.Module, tensors: Mapping[str, Tensor], scale: float) -> None:
    """Add LoRA weights to the layers of a UNet, in place. They must fit, see `misfit`."""
    import torch

    with torch.no_grad():
        for layer in {name.rpartition(".lora_")[0] for name in tensors}:
            weight: Any = unet.get_submodule(layer).weight
            down, up = (tensors[f"{layer}.lora_{part}.weight"].to(weight.device, torch.float32) for part in "AB")
            change = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            weight.copy_(weight.float() + scale * change)


def adapter_state(unet: nn.Module) -> dict[str, Tensor]:
    """The weights of BootPIG's adapter in a network, by the names that `misfit` describes. Not copied."""
    return {
        name.replace(f".{ADAPTER}.", "."): tensor.detach()
        for name, tensor in unet.named_parameters()
        if ".lora_" in name and f".{ADAPTER}." in name
    }
