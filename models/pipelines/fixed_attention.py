"""Refuses diffusers' switches that would replace the attention processors of reference self-attention."""

from __future__ import annotations

from typing import Any


class FixedAttention:
    """Mixin before a diffusers pipeline class. Each switch is refused before it changes anything; undoing one works."""

    def set_attention_slice(self, slice_size: int | str | None) -> None:
        """Raises ValueError unless `slice_size` is None, which undoes slicing."""
        if slice_size is not None:
            raise _replaces("enable_attention_slicing")
        super().set_attention_slice(slice_size)  # type: ignore[misc]

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: Any = None) -> None:
        """Raises ValueError if `valid` is true."""
        if valid:
            raise _replaces("enable_xformers_memory_efficient_attention")
        super().set_use_memory_efficient_attention_xformers(valid, attention_op)  # type: ignore[misc]

    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """As in diffusers, for the VAE. Raises ValueError for the UNet."""
        if unet:
            raise _replaces("fuse_qkv_projections(unet=True)")
        super().fuse_qkv_projections(unet, vae)  # type: ignore[misc]

    def load_ip_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError."""
        raise _replaces("load_ip_adapter")


def _replaces(switch: str) -> ValueError:
    return ValueError(
        f"{switch}: replaces the processors of reference self-attention, which already needs no more memory than "
        "PyTorch's own attention; leave it out"
    )
