"""Reference Self-Attention (RSA) as a diffusers attention processor (BootPIG, eq. 3 and 5-8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from bootpig.models.core.attention import attention_with_lse, gives_lse, joined

Pooling = Literal["softmax", "argmax", "average", "concat"]
"""How the outputs for several references are combined. The paper uses "softmax", the published code "argmax". The
others are for ablations."""


@dataclass(eq=False)
class ReferenceFeatures:
    """The reference features that the base UNet's RSA layers attend to, passed in `cross_attention_kwargs`.

    Each reference is in `layers` once, however many rows of the base batch attend to it.
    """

    layers: Sequence[Tensor]
    """One tensor (references, tokens, channels) per RSA layer, in the order in which the UNet runs them: the input of
    that layer in the Reference UNet, after norm1."""
    attends: Sequence[Sequence[int]]
    """For each row of the base batch, the references that it attends to. If empty: plain self-attention."""
    projected: dict[int, tuple[Tensor, Tensor]] | None = None
    """Where the layers keep the keys and values of the references, (references, heads, tokens, c) each, by index of the
    layer, for features that are the same at each step. None: they are not kept."""
    copies: int = 1
    """How many concatenated copies of the same rows the base batch consists of, at the input of the first RSA layer.
    Copies differ only after text or pooled text has entered the UNet, which happens after that layer."""
    runs: tuple[Run, ...] = field(init=False, repr=False)
    distinct: Distinct | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.runs = tuple(_runs(self.attends))
        self.distinct = None
        if self.copies > 1:
            period = len(self.attends) // self.copies
            keys = [(row % period, tuple(refs)) for row, refs in enumerate(self.attends)]
            firsts = {key: keys.index(key) for key in keys}
            rows = list(firsts.values())
            features = ReferenceFeatures(self.layers[:1], [self.attends[row] for row in rows], self.projected)
            self.distinct = Distinct(rows, features, [rows.index(firsts[key]) for key in keys])


@dataclass(frozen=True, eq=False)
class Distinct:
    """The rows of the first RSA layer's input that differ from each other, or attend to different references."""

    rows: list[int]
    features: ReferenceFeatures
    """The references that these rows attend to."""
    places: list[int]
    """For each row of the whole batch, its index in `rows`."""


@dataclass(frozen=True)
class Run:
    """Consecutive rows of the base batch with the same number of references: one attention call per slot."""

    start: int
    stop: int
    slots: tuple[tuple[int, ...], ...]
    """Slot i holds the index of reference i of each row."""


PLAIN = (AttnProcessor, AttnProcessor2_0)
"""The processors that diffusers sets by default, and again when another kind is undone."""


class RSAProcessor(AttnProcessor2_0):
    """Self-attention that also attends to references. Uses the layer's projections and has no parameters of its own.

    Args:
        layer: index among the UNet's RSA layers, in the order in which the UNet runs them. -1: not set. When diffusers
            loads an IP-Adapter, it replaces the processors by new ones with that default; `keep_rsa` detects this.
        key_scale: factor on the reference features before the key projection (1.1 in the published code). Values are
            not scaled.
        pooling: how the outputs for several references are combined, see `Pooling`.
    """

    def __init__(self, layer: int = -1, key_scale: float = 1.0, pooling: str = "softmax") -> None:
        super().__init__()
        self.layer = layer
        self.key_scale = key_scale
        self.pooling = pooling

    def __call__(  # type: ignore[override]
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        reference: ReferenceFeatures | None = None,
    ) -> Tensor:
        """Map `hidden_states` (B, n, d) to (B, n, d), output projection included.

        Raises:
            ValueError: `reference.attends` does not have one entry per row.
        """
        if reference is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        if self.layer == 0 and reference.distinct is not None:
            distinct = reference.distinct
            return self(attn, hidden_states[distinct.rows], reference=distinct.features)[distinct.places]
        if len(reference.attends) != hidden_states.shape[0]:
            raise ValueError(
                f"the reference features are for {len(reference.attends)} rows, the batch has {hidden_states.shape[0]}"
            )
        query = _heads(attn, attn.to_q(hidden_states))
        key = _heads(attn, attn.to_k(hidden_states))
        value = _heads(attn, attn.to_v(hidden_states))
        reference_key, reference_value = self._projected(attn, reference)

        outputs = []
        for run in reference.runs:
            rows = slice(run.start, run.stop)
            q, k, v = query[rows], key[rows], value[rows]
            slots = [(_select(reference_key, slot), _select(reference_value, slot)) for slot in run.slots]
            if len(slots) > 1 and self.pooling != "concat":
                own, others = _attend_to_each(attn, (q, k, v), slots)
                outputs.append(pool(own, others, self.pooling))
            elif len(slots) == 1 and q.device.type == "cpu" and gives_lse(q, k):
                # on the CPU, merging two outputs is cheaper than concatenating all keys and values
                joint = joined(attention_with_lse(q, k, v), attention_with_lse(q, *slots[0]))
                outputs.append(_project(attn, joint, q.dtype))
            else:
                outputs.append(_attend(attn, q, [k, *(rk for rk, _ in slots)], [v, *(rv for _, rv in slots)]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _projected(self, attn: Attention, reference: ReferenceFeatures) -> tuple[Tensor, Tensor]:
        """The keys and values of the references, (references, heads, tokens, c) each. Computed once for all rows: all
        guidance branches and all images of a prompt share them."""
        if reference.projected is not None and self.layer in reference.projected:
            return reference.projected[self.layer]
        features = reference.layers[self.layer]
        key = _heads(attn, attn.to_k(features if self.key_scale == 1.0 else features * self.key_scale))
        value = _heads(attn, attn.to_v(features))
        if reference.projected is not None:
            reference.projected[self.layer] = key, value
        return key, value


class TextAttentionProcessor(AttnProcessor2_0):
    """Plain attention that accepts `reference` and ignores it. diffusers passes `cross_attention_kwargs` to
    cross-attention too, and warns at each layer and step about arguments that a processor does not accept."""

    def __call__(  # type: ignore[override]
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        reference: object = None,
    ) -> Tensor:
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def pool(own: Tensor, outputs: Sequence[Tensor], pooling: str) -> Tensor:
    """Combine the RSA outputs for several references, pixel by pixel (BootPIG, eq. 5-8).

    Args:
        own: (B, n, d), the output of self-attention without references.
        outputs: one (B, n, d) tensor per reference.
        pooling: "softmax" weights each output by the softmax of ||o_i - own||, "argmax" takes the one with the largest
            norm, "average" weights all equally.
    """
    if pooling == "average":
        return torch.stack(list(outputs)).mean(0)
    # Norm over all channels, in float32 or wider: in half precision the square overflows.
    wide = torch.promote_types(own.dtype, torch.float32)
    norms = torch.stack([torch.linalg.vector_norm((o - own).to(wide), dim=-1, keepdim=True) for o in outputs])
    if pooling == "argmax":
        weights = F.one_hot(norms.argmax(0), len(outputs)).movedim(-1, 0)
    else:
        weights = norms.softmax(0)
    pooled = own
    for weight, output in zip(weights.to(own.dtype), outputs, strict=True):
        pooled = pooled + weight * (output - own)
    return pooled


def is_a(thing: object, kind: type) -> bool:
    """Whether `thing` is of class `kind`, or of its copy in the single file of a saved pipeline: one process
    can load both and let them share networks."""
    return type(thing).__name__ == kind.__name__


def uncompiled(module: nn.Module) -> Any:
    """The module inside a `torch.compile` wrapper, or `module` itself. The wrapper would prefix all names."""
    return getattr(module, "_orig_mod", module)


def self_attention_blocks(unet: nn.Module) -> list[tuple[str, BasicTransformerBlock]]:
    """The names and modules of the UNet's transformer blocks, whose `attn1` are the RSA layers, in the order in which
    the UNet runs them.

    Raises:
        ValueError: the UNet has no such block, or an `attn1` is not plain self-attention.
    """
    # A UNet registers its middle block last, but runs it between the down and the up blocks.
    parts = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    modules = uncompiled(unet).named_modules()
    blocks = [(name, module) for name, module in modules if isinstance(module, BasicTransformerBlock)]
    blocks.sort(key=lambda block: parts[block[0].split(".")[0]])
    for name, block in blocks:
        attn = block.attn1
        if attn.is_cross_attention or attn.group_norm is not None or attn.norm_q is not None:
            raise ValueError(f"incompatible UNet: {name}.attn1 is not plain self-attention as in Stable Diffusion")
    if not blocks:
        raise ValueError("incompatible UNet: it has no self-attention layer in a transformer block")
    return blocks


def install_rsa(unet: nn.Module, key_scale: float = 1.0, pooling: str = "softmax") -> None:
    """Install RSA in the base UNet by setting the processors of its attention layers. Weights do not change.

    Raises:
        ValueError: the pooling is unknown, the key scale is not positive, or the UNet is incompatible.
    """
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling: {pooling!r} is unknown; use one of {', '.join(get_args(Pooling))}")
    if not key_scale > 0:
        raise ValueError(f"key_scale: {key_scale} must be above 0")
    for layer, (_, block) in enumerate(self_attention_blocks(unet)):
        block.attn1.set_processor(RSAProcessor(layer, key_scale, pooling))
        if block.attn2 is not None:
            block.attn2.set_processor(TextAttentionProcessor())


def has_rsa(unet: nn.Module) -> bool:
    """Whether `install_rsa` was applied to this UNet."""
    return any(is_a(held, RSAProcessor) for held in uncompiled(unet).attn_processors.values())


def keep_rsa(unet: nn.Module, key_scale: float = 1.0, pooling: str = "softmax") -> None:
    """Install RSA again where diffusers has put its plain processors, as it does when attention slicing, xformers,
    fused projections or an IP-Adapter are undone, and where the settings are those of another pipeline on this UNet.

    Raises:
        ValueError: attention slicing, xformers, fused projections or an IP-Adapter are in use.
    """
    blocks = self_attention_blocks(unet)
    replaced = {}
    as_wanted = True
    for layer, (name, block) in enumerate(blocks):
        own, text = block.attn1.processor, block.attn2 and block.attn2.processor
        ours = is_a(own, RSAProcessor)
        if not ours and type(own) not in PLAIN:
            replaced[f"{name}.attn1"] = type(own).__name__
        elif ours and own.layer == -1 and not (type(text) in PLAIN or is_a(text, TextAttentionProcessor)):
            replaced[f"{name}.attn1"] = "an empty processor"
        settings = (own.layer, own.key_scale, own.pooling) if ours else None
        as_wanted &= settings == (layer, key_scale, pooling) and type(text) not in PLAIN
    if replaced:
        name, kind = next(iter(replaced.items()))
        raise ValueError(
            f"{name} and {len(replaced) - 1} more have {kind} in place of RSAProcessor: attention slicing, xformers, "
            "fused projections and IP-Adapters do not work with reference self-attention; undo them or load again"
        )
    if not as_wanted:
        install_rsa(unet, key_scale, pooling)


def _runs(attends: Sequence[Sequence[int]]) -> Iterator[Run]:
    start = 0
    for count, group in groupby(attends, key=len):
        rows = list(group)
        yield Run(start, start + len(rows), tuple(tuple(row[slot] for row in rows) for slot in range(count)))
        start += len(rows)


def _heads(attn: Attention, projected: Tensor) -> Tensor:
    """(B, n, heads * c) to (B, heads, n, c)."""
    return projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def _select(projected: Tensor, indices: tuple[int, ...]) -> Tensor:
    """The rows `indices` of `projected`, as a view if possible."""
    first, count = indices[0], len(indices)
    if indices == tuple(range(first, first + count)):
        return projected[first : first + count]
    if indices == (first,) * count:
        return projected[first : first + 1].expand(count, *projected.shape[1:])
    return torch.stack([projected[index] for index in indices])


def _attend(attn: Attention, query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """softmax(q [k_1; k_2; ...]^T / sqrt(c)) [v_1; v_2; ...], heads merged, output projection included."""
    key = keys[0] if len(keys) == 1 else torch.cat(keys, dim=2)
    value = values[0] if len(values) == 1 else torch.cat(values, dim=2)
    return _project(attn, F.scaled_dot_product_attention(query, key, value), query.dtype)


def _attend_to_each(
    attn: Attention, own: tuple[Tensor, Tensor, Tensor], slots: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """The output of self-attention alone, and for each slot that of self-attention with the slot's keys and values."""
    q, k, v = own
    if not gives_lse(q, k):
        return _attend(attn, q, [k], [v]), [_attend(attn, q, [k, rk], [v, rv]) for rk, rv in slots]
    # Attention to a row's own tokens is computed once and reused for every reference.
    alone = attention_with_lse(q, k, v)
    others = [joined(alone, attention_with_lse(q, rk, rv)) for rk, rv in slots]
    return _project(attn, alone[0], q.dtype), [_project(attn, other, q.dtype) for other in others]


def _project(attn: Attention, attended: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, heads, n, c) to (B, n, d), through the output projection."""
    return attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2).to(dtype)))
