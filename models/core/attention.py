"""Attention that also returns its log-sum-exp, so that the outputs for two sets of tokens can be merged."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention


def gives_lse(query: Tensor, key: Tensor) -> bool:
    """Whether `attention_with_lse` supports these inputs: on the CPU, or on a CUDA device that supports FlashAttention,
    and without gradients, because the log-sum-exp has none."""
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        return False
    if query.device.type in ("cpu", "meta"):
        return True
    if query.device.type != "cuda" or query.shape[-1] % 8:
        return False
    return can_use_flash_attention(SDPAParams(query, key, key, None, 0.0, False, False))


def attention_with_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(c)) v (B, heads, n, c), and the log of the softmax's denominator (B, heads, n, 1) in float32
    or wider. Calls the same PyTorch kernels as `scaled_dot_product_attention`, which does not return the second output.
    """
    if query.device.type == "cuda":
        output, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)
    else:
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    return output, lse.unsqueeze(-1)


def joined(own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """Attention over the union of two sets of tokens, from the `attention_with_lse` of each. (B, heads, n, c)."""
    share = torch.sigmoid(other[1] - own[1]).to(own[0].dtype)
    return torch.lerp(own[0], other[0], share.expand_as(own[0]))
