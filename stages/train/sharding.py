"""Shards weights, gradients and optimizer state over the ranks with FSDP2, for full training of large bases."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from bootpig.models.core.bootpig import BootPIG


def shard(objective: nn.Module, model: BootPIG) -> None:
    """Shard a model over all ranks, in place: each block of both UNets, the rest of each UNet, and what is left.

    A block's weights are gathered while it runs. All parameters must be float32 and on their device, and all ranks must
    call the same networks in the same order afterwards. Needs an initialised process group.

    Args:
        objective: the module that training calls; contains `model`.
        model: the model in training.
    """
    for unet in (model.reference_unet, model.unet):
        for block in _blocks(unet):
            fully_shard(block)
        fully_shard(unet)
    if model.train_reference:
        _connect(model)
    model.zero_gradients = False  # `fill_gradients` sets them
    fully_shard(objective)


def _connect(model: BootPIG) -> None:
    """Let the prediction depend on the Reference UNet's output, with a factor of zero.

    FSDP gathers a block's weights for the backward pass when a gradient reaches its output. The features leave the
    Reference UNet in another way, so without this its last blocks would not be gathered.
    """
    outputs: list[Tensor] = []

    def keep(module: nn.Module, arguments: object, output: tuple[Tensor]) -> None:
        outputs.append(output[0])

    def connect(module: nn.Module, arguments: object, prediction: Tensor) -> Tensor:
        while outputs:
            prediction = prediction + 0.0 * outputs.pop().sum().to(prediction.dtype)
        return prediction

    model.reference_unet.register_forward_hook(keep)
    model.register_forward_hook(connect)


def _blocks(unet: UNet2DConditionModel) -> Iterator[nn.Module]:
    yield from unet.down_blocks
    if unet.mid_block is not None:
        yield unet.mid_block
    yield from unet.up_blocks


def whole(tensor: Tensor) -> Tensor:
    """A tensor without its graph; of a sharded one, all of it, on the CPU. All ranks must call this."""
    return (tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor).detach()


def like(full: Tensor, own: Tensor) -> Tensor:
    """A full tensor sharded like `own` on its device. All ranks must call this, with equal tensors."""
    if isinstance(own, DTensor):
        return distribute_tensor(full.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
    return full.to(own.device)


def fill_gradients(parameters: list[nn.Parameter]) -> None:
    """Set missing gradients to zero, as DDP does for parameters that an update did not use."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def gather(model: BootPIG) -> None:
    """Replace all sharded parameters by full ones on the CPU. All ranks must call this; the model can then no longer be
    trained, only saved."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                setattr(module, name, nn.Parameter(whole(parameter), requires_grad=parameter.requires_grad))
