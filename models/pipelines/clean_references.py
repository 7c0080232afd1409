"""References that are read without noise, at timestep 0: their features are computed once, and kept between calls."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

ReferenceTimestep = Literal["same", "zero"]
"""The timestep at which the Reference UNet reads a reference. "same": noised to the timestep of the target, as in the
paper. "zero": without noise, at timestep 0."""


@dataclass(eq=False)
class KeptFeatures:
    """The keys and values that the RSA layers attend to, of references that are read without noise.

    They depend on the references, their captions and the weights, but not on the step, the noise, the scheduler or the
    guidance. So they are computed once per call, and used again in the next call if nothing of that has changed.
    """

    key: Hashable = None
    """Identifies what the features were computed from."""
    layers: Sequence[Tensor] = ()
    """The features, until all layers have projected them."""
    projected: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """See `bootpig.models.core.rsa.ReferenceFeatures`."""

    def valid(self, key: Hashable) -> bool:
        """Whether the features were computed from what `key` identifies. If not, they are removed."""
        if key != self.key:
            self.key, self.layers, self.projected = None, (), {}
        return self.key is not None


def weights_key(*modules: nn.Module) -> Hashable:
    """Identifies the current weights of networks: changes if a weight is changed in place, replaced, moved or cast, or
    if a LoRA adapter is added, removed or scaled. Reads no weight, and so does not wait for a device."""
    return tuple(part for module in modules for part in _weights(module))


def _weights(module: nn.Module) -> Iterator[Hashable]:
    for tensor in (*module.parameters(), *module.buffers()):
        version = 0 if tensor.is_inference() else tensor._version
        yield tensor.data_ptr(), version, tensor.dtype, tensor.device
    layers: list[Any] = list(module.modules())
    for layer in layers:
        if hasattr(layer, "active_adapters") and hasattr(layer, "scaling"):  # a layer of peft
            yield tuple(layer.active_adapters), tuple(sorted(layer.scaling.items())), bool(layer.disable_adapters)


def content_key(*tensors: Tensor) -> Hashable:
    """Identifies the contents of small tensors."""
    return tuple(hashlib.sha256(_bytes(tensor)).hexdigest() for tensor in tensors)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
