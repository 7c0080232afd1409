"""Stores frozen weights in bfloat16 while a training runs under bfloat16 autocast."""

from __future__ import annotations

import torch
from torch import nn

LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)
"""What autocast computes in bfloat16."""


class FrozenInBfloat16:
    """The frozen weights of a model's linear and convolution layers in bfloat16: half the memory, the same results.

    Autocast makes the same copy of them at each use. Norms and the first layer keep their dtype: autocast computes
    norms in float32, and diffusers takes the dtype of a whole model, and of the latents it samples, from its first
    parameter.
    """

    def __init__(self, *models: nn.Module) -> None:
        self._originals: list[tuple[nn.Parameter, torch.Tensor]] = []
        for model in models:
            first = next(model.parameters())
            for module in model.modules():
                if not isinstance(module, LAYERS):
                    continue
                for parameter in module.parameters(recurse=False):
                    if parameter is first or parameter.requires_grad or parameter.dtype != torch.float32:
                        continue
                    self._originals.append((parameter, parameter.data.cpu()))
                    parameter.data = parameter.data.to(torch.bfloat16)

    def restore(self) -> None:
        """Give back the original weights, bit for bit, on the device where the model is."""
        for parameter, original in self._originals:
            parameter.data = original.to(parameter.device)
        self._originals.clear()
