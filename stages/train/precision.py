"""Keeps frozen weights in bfloat16 during training with bfloat16 autocast."""

from __future__ import annotations

import torch
from torch import nn

LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)
"""The layers that autocast computes in bfloat16."""


class FrozenInBfloat16:
    """Converts the frozen weights of a model's linear and convolution layers to bfloat16. Halves their memory; results
    are the same, because autocast makes the same conversion at each use.

    Norms and the first parameter keep their dtype: autocast computes norms in float32, and diffusers takes the dtype of
    a whole model, and of the latents that it samples, from the first parameter.
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
        """Restore the original weights bit for bit, on the model's current device."""
        for parameter, original in self._originals:
            parameter.data = original.to(parameter.device)
        self._originals.clear()
