"""Converts config values to torch devices and dtypes."""

from __future__ import annotations

import torch

from bootpig.models.pretrained.source import ModelError


def torch_device(field: str, name: str) -> torch.device:
    """The device called `name`: `auto` (torch's current GPU, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.

    The index of a GPU is in the result: torch's current GPU is another one in each thread.

    Raises:
        ModelError: this machine has no such device; `field` is the config field for the message.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type, 1)
    if (device.index or 0) >= count:
        raise ModelError(f"{field}: this machine has no device {name!r}; use 'auto' or 'cpu'")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype for `float32`, `float16` or `bfloat16`."""
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]
