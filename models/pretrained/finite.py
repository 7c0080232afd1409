"""Scans the weights of a loaded model for NaN and infinity, and names the first tensor that has any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bootpig.models.pretrained.source import ModelError, ModelSource

Named = Iterable[tuple[str, Tensor]]


def check_pipeline(source: ModelSource, pipeline: Any) -> None:
    """Check all networks of a diffusers pipeline, best after it was moved to a GPU, where a scan takes milliseconds.

    Raises:
        ModelError: a weight is NaN or infinite, or became infinite in the pipeline's dtype.
    """
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            check_weights(source.field, source.source, part, name, partial(_again, source, name, type(part)))


def check_trained(field: str, folder: Path, pipeline: Any) -> None:
    """Check the two UNets of a BootPIG pipeline after the trained weights in `folder` were loaded.

    Raises:
        ModelError: as in `check_pipeline`.
    """
    for name in ("unet", "reference_unet"):
        check_weights(field, str(folder), getattr(pipeline, name), name, partial(_stored, folder))


def check_weights(
    field: str, source: str, model: nn.Module, part: str = "", stored: Callable[[], Named] | None = None
) -> None:
    """Check the weights of one network.

    Args:
        field: the config field or argument that names the model.
        source: its value.
        model: the network.
        part: its name in a pipeline.
        stored: reads the weights again as they are in the files, or in float32. Called only after a problem was found,
            to tell a damaged file from weights that do not fit the dtype.

    Raises:
        ModelError: a weight is NaN or infinite. One line: field, value, part, tensor, what to do.
    """
    bad = first_not_finite(weights(model))
    if bad is None:
        return
    name, tensor = bad
    of = f" of its {part}" if part else ""
    half = tensor.dtype in (torch.float16, torch.bfloat16) and not bool(tensor.isnan().any())
    if half and stored is not None and _is_finite(stored):
        dtype = str(tensor.dtype).removeprefix("torch.")
        other = "bfloat16" if tensor.dtype == torch.float16 else "float32"
        raise ModelError(
            f"{field}: {source!r}: the weights {name!r}{of} do not fit {dtype}; set {_setting(field)} to {other}"
        )
    raise ModelError(
        f"{field}: {source!r}: the weights {name!r}{of} hold NaN or infinity; download or convert the model again"
    )


def weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A network's parameters and the buffers that are stored with them, with their names.

    Without tensors that cannot be scanned: integers, those without data (meta), and quantised ones, whose class is not
    torch's own.
    """
    for name, parameter in model.named_parameters():
        if _is_plain(parameter):
            yield name, parameter.detach()
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if _is_plain(buffer)]
    stored = model.state_dict().keys() if buffers else ()
    for name, buffer in buffers:
        if name in stored:
            # a mask for attention may be stored, with -inf in it
            yield name, buffer.masked_fill(buffer == -torch.inf, 0)


def _is_plain(tensor: Tensor) -> bool:
    floats = tensor.is_floating_point() or tensor.is_complex()
    return floats and not tensor.is_meta and type(tensor) in (Tensor, nn.Parameter)


def first_not_finite(tensors: Named) -> tuple[str, Tensor] | None:
    """The first tensor that holds NaN or infinity, with its name, or None. Exact.

    NaN and infinity stay in a sum, so a finite sum proves that all values are finite, at the speed of memory. The
    values themselves are looked at only where a sum is not finite, because it can overflow.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[tuple[str, Tensor, Tensor]]] = {}
    for name, tensor in tensors:
        total = _countable(tensor).sum()
        groups.setdefault((total.device, total.dtype), []).append((name, tensor, total))
    for group in groups.values():
        sums = torch.stack([total for *_, total in group]).isfinite().tolist()  # one transfer from a GPU
        for (name, tensor, _), finite in zip(group, sums, strict=True):
            if not finite and not bool(_countable(tensor).isfinite().all()):
                return name, tensor
    return None


def _countable(tensor: Tensor) -> Tensor:
    """In float32 if it is float8, which torch cannot add up."""
    return tensor.float() if tensor.dtype.itemsize == 1 else tensor


def _is_finite(stored: Callable[[], Named]) -> bool:
    try:
        return first_not_finite(stored()) is None
    except Exception:  # the files cannot be read a second time
        return False


def _again(source: ModelSource, name: str, kind: Any) -> Named:
    """The weights of a pipeline's component, loaded again in float32."""
    options: dict[str, Any] = {"revision": source.revision} if source.revision else {}
    options |= {"dtype": torch.float32, "use_safetensors": True}
    return weights(kind.from_pretrained(source.path, subfolder=name, **options))


def _stored(folder: Path) -> Named:
    """The tensors of all safetensors files in a folder."""
    return (pair for file in sorted(folder.rglob("*.safetensors")) for pair in load_file(file).items())


_OPTIONS: Mapping[str, str] = {"model": "--dtype", "evaluate: the trained model": "evaluate.dtype"}
"""Fields whose dtype is not in the same section of the config."""


def _setting(field: str) -> str:
    """The setting of the dtype in which a model is loaded, given the field that names the model."""
    section = field.partition(".")[0]
    return _OPTIONS.get(section, f"{section}.dtype")
