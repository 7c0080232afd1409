"""Adds trainable LoRA adapters to the two UNets, with peft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bootpig.models.core.lora import ADAPTER, Lora, adapter_state, layer_widths, target_layers, too_high


def check_targets(lora: Lora, unet: nn.Module, *, whole_base: bool) -> str | None:
    """What is wrong with the settings of LoRA for a base UNet, naming the field, or None.

    Args:
        unet: the complete UNet, on any device.
        whole_base: the base UNet gets LoRA weights on all targets, not only in its RSA layers.
    """
    widths = layer_widths(unet)
    for target in lora.targets:
        if not target_layers(unet, (target,)):
            return (
                f"lora_targets: {target!r} ends the name of no linear or convolution layer of the UNet; use such as "
                "to_q, to_k, to_v, to_out.0, ff.net.2"
            )
    if "base" in lora.networks and not whole_base and not target_layers(unet, lora.targets, self_attention=True):
        return (
            f"lora_targets: {', '.join(lora.targets)} are no layers of self-attention, which trainable.base rsa "
            "trains; add such as to_q, or set trainable.base to none or all"
        )
    everywhere = whole_base or "reference" in lora.networks
    names = target_layers(unet, lora.targets, self_attention=not everywhere)
    if problem := too_high(lora.rank, names, widths):
        return f"lora_rank: {problem}; use a lower rank or other lora_targets"
    return None


def add_adapter(unet: Any, lora: Lora, *, seed: int, self_attention: bool = False) -> None:
    """Add LoRA weights to a UNet's target layers, in float32. The network computes the same as before: B is zero, and A
    is drawn from `seed`. All other weights of the UNet are frozen.

    Args:
        self_attention: only in its self-attention layers.
    """
    from peft import LoraConfig

    names = target_layers(unet, lora.targets, self_attention=self_attention)
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(settings, ADAPTER)
    added = {name.rpartition(".lora_")[0] for name in adapter_state(unet)}
    assert added == set(names), f"peft adapted other layers: {sorted(added ^ set(names))[:3]}"


def load_adapter(unet: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy LoRA weights, named as in `adapter_state`, into the adapter of a UNet. Other layers keep theirs.

    Raises:
        ValueError: the adapter has no such layer, or another rank.
    """
    own = adapter_state(unet)
    wrong = sorted(name for name, tensor in tensors.items() if name not in own or own[name].shape != tensor.shape)
    if wrong:
        raise ValueError(f"the LoRA weights {wrong[0]!r} have no place in this model's adapter")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
