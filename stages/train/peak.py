"""Computes the peak memory of a training update with fake tensors: no device, no weights, in seconds."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bootpig.models.core.bootpig import BootPIG
from bootpig.models.core.lora import Lora
from bootpig.stages.train.objective import Objective
from bootpig.stages.train.precision import FrozenInBfloat16

LARGEST = 1024
"""More samples at once than any device has memory for."""


@dataclass(frozen=True)
class Peak:
    """The memory of an update in bytes, of which only `activations` depends on the batch."""

    frozen: int
    """Frozen weights, and buffers."""
    trained: int
    """Trained weights, float32. Their gradients need as much again."""
    moments: dict[str, int]
    """The optimizer's state, by `train.optimizer`."""
    activations: list[tuple[int, int]]
    """What is allocated on top during the forward and backward pass: activations, temporary tensors, copies of weights
    in bfloat16, the batch. For b samples the most at any moment is the largest c + m · b of these pairs (c, m)."""

    def at(self, batch: int) -> int:
        """`activations` of a batch size."""
        return max(constant + each * batch for constant, each in self.activations)


class Allocated(TorchDispatchMode):
    """Adds up the bytes of all tensors that exist, real or fake, after each operation.

    `torch.distributed._tools.MemTracker` finds the largest sum, but visits all modules in every operation, which takes
    minutes for a UNet.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.totals: list[int] = []
        self._known: set[int] = set()

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that existed before, or that an operation returned."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            place = storage._cdata
            if place in self._known:
                continue
            size = storage.nbytes()
            self._known.add(place)
            weakref.finalize(storage, self._remove, place, size)
            self.now += size
        self.totals.append(self.now)

    def _remove(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


WIDE = (nn.LayerNorm, nn.GroupNorm, Upsample2D)
"""Modules that autocast to bfloat16 computes in float32 on a CUDA device, but not on a CPU."""


def _widen(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return arguments[0].float(), *arguments[1:]


class Part:
    """A model in training, and the forward and backward pass of a part of a batch with gradient accumulation.

    Both networks are those of `stages.train`, in bf16 autocast with frozen weights in bfloat16. All samples have a
    reference. Gradients exist from the start, as in each part of a batch but the first.
    """

    def __init__(
        self,
        unet: Mapping[str, Any],
        *,
        batch: int,
        latents: int,
        tokens: int = 77,
        lora: Lora | None = None,
        checkpointing: bool = False,
        cuda: bool = True,
    ) -> None:
        """
        Args:
            unet: the base's arguments of `UNet2DConditionModel`.
            batch: samples in the part.
            latents: the latents' side.
            tokens: length of a text.
            lora: train adapters, or None: the weights themselves.
            checkpointing: `train.gradient_checkpointing`.
            cuda: with the dtypes of a CUDA device. False: those of a CPU. All tensors are on the CPU.
        """
        with torch.device("meta"):
            base = UNet2DConditionModel(**unet)
            self.model = BootPIG.from_unet(base, lora=lora).train()
        for module in self.model.modules():
            if cuda and isinstance(module, WIDE):
                module.register_forward_pre_hook(_widen)
        if checkpointing:
            self.model.enable_gradient_checkpointing()
        scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
        self.objective = Objective(self.model, scheduler)
        self.batch, self.latents, self.tokens = batch, latents, tokens
        self.trained: list[nn.Parameter] = []
        self.inputs: dict[str, Any] = {}

    def allocate(self) -> None:
        """Make all tensors: weights and gradients of zeros, and the inputs."""
        made: dict[int, nn.Parameter] = {}
        for module in self.model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if id(parameter) not in made:  # shared ones stay shared
                    zeros = torch.zeros(parameter.shape, dtype=parameter.dtype)
                    made[id(parameter)] = nn.Parameter(zeros, requires_grad=parameter.requires_grad)
                module.register_parameter(name, made[id(parameter)])
        FrozenInBfloat16(self.model.unet, self.model.reference_unet)  # the originals are kept on the host
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)
        config: Any = self.model.unet.config
        shape = (self.batch, config.in_channels, self.latents, self.latents)
        texts = (self.batch, self.tokens, config.cross_attention_dim)
        self.inputs = {name: torch.randn(shape) for name in ("target", "reference", "noise", "reference_noise")}
        self.inputs |= {name: torch.randn(texts) for name in ("prompt_embeds", "reference_prompt_embeds")}
        if config.addition_embed_type == "text_time":
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            for name in ("pooled_prompt_embeds", "pooled_reference_prompt_embeds"):
                self.inputs[name] = torch.randn(self.batch, pooled)
        self.inputs["timesteps"] = torch.zeros(self.batch, dtype=torch.long)
        self.inputs["use_reference"] = (True,) * self.batch

    def __call__(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.objective(**self.inputs)
        loss.backward()


def peak(make: Callable[[int], Part]) -> Peak:
    """The memory that a part of a batch needs. Attention is counted as the fused kernels need it.

    Every tensor's size is a constant plus a multiple of the batch size, so two batch sizes give the sum of all tensors
    at each operation for all of them.

    Args:
        make: makes a part for a number of samples, not allocated yet.
    """
    parts = [make(2), make(3)]  # one sample is a special case: its tensors are views where others are copies
    (held, totals), (_, more) = (_totals(part) for part in parts)
    assert len(totals) == len(more), "the number of operations depends on the batch size"
    each = np.array(more) - totals
    trained = sum(parameter.nbytes for parameter in parts[0].trained)
    sizes = [parameter.numel() for parameter in parts[0].trained]
    moments = {"adamw": 8 * sum(sizes), "adamw_8bit": sum(_eight_bits(size) for size in sizes)}
    return Peak(held - 2 * trained, trained, moments, _highest(np.array(totals) - held - 2 * each, each))


def _totals(part: Part) -> tuple[int, list[int]]:
    """The bytes of weights and gradients, and those of all tensors after each operation."""
    # the noise schedule is a real tensor
    with FakeTensorMode(allow_non_fake_inputs=True):
        part.allocate()
        allocated = Allocated()
        allocated.add(part.model.parameters())
        allocated.add(parameter.grad for parameter in part.trained if parameter.grad is not None)
        held = allocated.now
        allocated.totals.clear()
        with allocated:
            allocated.add(value for value in part.inputs.values() if isinstance(value, Tensor))
            part()
    return held, allocated.totals


def _highest(constants: np.ndarray, slopes: np.ndarray) -> list[tuple[int, int]]:
    """The lines that are the highest for some batch size from 1 to `LARGEST`."""
    best = [int(np.argmax(constants + slopes * batch)) for batch in range(1, LARGEST + 1)]
    return [(int(constants[place]), int(slopes[place])) for place in dict.fromkeys(best)]


def _eight_bits(size: int) -> int:
    """Bytes of both moments of a parameter in bitsandbytes' 8 bits, see `optimizers.MOMENTS_8BIT`."""
    return 2 * size + 2 * 4 * math.ceil(size / 256) if size >= 4096 else 8 * size
