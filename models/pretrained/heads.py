"""Linear heads on CLIP's picture embeddings, such as an aesthetic predictor: read from a file, checked, applied."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bootpig.models.pretrained.snapshots import complete_folder
from bootpig.models.pretrained.source import ModelError, ModelSource, loading
from bootpig.models.pretrained.weight_files import DamagedFile, is_safetensors, read_json

_FIX = "give a file with one weight of shape (1, width), and perhaps a bias of one number"
_PROJECTION = 512
"""The default width of a CLIP in transformers."""


@dataclass(frozen=True)
class LinearHead:
    """Maps an embedding to one number."""

    weight: NDArray[np.float64]
    """(d,)"""
    bias: float

    def __call__(self, embeddings: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """N×d, normalised to length 1 → N."""
        return embeddings.astype(np.float64) @ self.weight + self.bias


def read_head(source: ModelSource, path: Path) -> LinearHead:
    """Read a head.

    Args:
        source: for messages.
        path: a .safetensors file, or one of torch, of which only weights are loaded.

    Raises:
        ModelError: the file is damaged, or holds anything but one linear layer with one output.
    """
    with loading(source.field, str(path)):
        if is_safetensors(path):
            from safetensors.numpy import load_file

            tensors: dict[str, Any] = dict(load_file(path))
        else:
            import torch

            found = torch.load(path, map_location="cpu", weights_only=True)
            found = found.get("state_dict", found) if isinstance(found, dict) else {}
            tensors = {name: value.float().numpy() for name, value in found.items() if isinstance(value, torch.Tensor)}
    weights = [tensor for tensor in tensors.values() if tensor.ndim == 2]
    biases = [tensor for tensor in tensors.values() if tensor.ndim < 2]
    if len(weights) != 1 or len(weights[0]) != 1 or len(biases) > 1 or any(bias.size != 1 for bias in biases):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors.values()) or "no tensors"
        raise ModelError(f"{source.field}: {source.source!r} holds {shapes[:200]}, not one linear layer; {_FIX}")
    head = LinearHead(weights[0][0].astype(np.float64), float(biases[0].reshape(-1)[0]) if biases else 0.0)
    if not (np.isfinite(head.weight).all() and np.isfinite(head.bias)):
        raise ModelError(f"{source.field}: {source.source!r} holds NaN or infinity; give another file")
    return head


def head_problems(source: ModelSource, clip: ModelSource) -> list[str]:
    """What would prevent a head from being used with a CLIP, in one line. A file that is not downloaded yet has no
    problems."""
    path = Path(source.path)
    if not path.is_file():
        return []
    try:
        head = read_head(source, path)
        width = clip_width(clip)
    except ModelError as error:
        return [str(error)]
    return [] if width is None else width_problems(source, head, clip, width)


def width_problems(source: ModelSource, head: LinearHead, clip: ModelSource, width: int) -> list[str]:
    """The mismatch of a head and a CLIP whose embeddings have `width` numbers, in one line."""
    if len(head.weight) == width:
        return []
    return [
        f"{source.field}: {source.source!r} reads embeddings of width {len(head.weight)}, but those of {clip.field} "
        f"{clip.source!r} have {width}; give the head of this CLIP, or the CLIP of this head"
    ]


def clip_width(clip: ModelSource) -> int | None:
    """The width of a CLIP's embeddings, from its config.json. None if it is not downloaded yet, or cannot be read,
    which other checks report."""
    folder = complete_folder(clip)
    if folder is None:
        return None
    try:
        width = read_json(folder / "config.json").get("projection_dim", _PROJECTION)
    except DamagedFile:
        return None
    return width if isinstance(width, int) else None
