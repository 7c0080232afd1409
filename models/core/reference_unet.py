"""The Reference UNet: a copy of the base UNet that returns features of a reference, cut off after the last feature."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from bootpig.models.core.rsa import (
    PLAIN,
    ReferenceFeatures,
    TextAttentionProcessor,
    is_a,
    self_attention_blocks,
    uncompiled,
)


class FeatureRecorder:
    """Collects the inputs of the self-attention layers during one forward pass."""

    def __init__(self, layers: int) -> None:
        self.slots: list[Tensor | None] | None = [None] * layers

    def put(self, layer: int, hidden_states: Tensor) -> None:
        # Gradient checkpointing runs a block again in the backward pass, after the features were taken.
        if self.slots is not None:
            self.slots[layer] = hidden_states

    def take(self) -> list[Tensor]:
        """The features in layer order. After this call the recorder ignores further inputs.

        Raises:
            ValueError: a layer recorded nothing because its processor was replaced.
        """
        slots, self.slots = self.slots, None
        assert slots is not None
        features = [slot for slot in slots if slot is not None]
        if len(features) < len(slots):
            raise ValueError(
                f"{len(slots) - len(features)} of {len(slots)} self-attention layers of the Reference UNet recorded "
                "nothing: their attention processors were replaced; reload the pipeline"
            )
        return features


class RecordingProcessor(AttnProcessor2_0):
    """Plain self-attention that first passes its input to the recorder."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def __call__(  # type: ignore[override]
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        reference: FeatureRecorder | None = None,
    ) -> Tensor:
        if reference is not None:
            reference.put(self.layer, hidden_states)
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


class LastFeature(nn.Module):
    """Replaces the last transformer block: keeps only norm1, whose output is the last feature."""

    def __init__(self, norm1: nn.Module, layer: int) -> None:
        super().__init__()
        self.norm1 = norm1
        self.layer = layer

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        recorder = (cross_attention_kwargs or {}).get("reference")
        if recorder is not None:
            recorder.put(self.layer, self.norm1(hidden_states))
        return hidden_states


def is_truncated(unet: nn.Module) -> bool:
    """Whether `truncate` was applied to this UNet."""
    return any(is_a(module, LastFeature) for module in unet.modules())


def truncate(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Turn an ordinary UNet into a Reference UNet, in place. Everything after the input of its last self-attention
    layer is removed, and the other self-attention layers record their input. `forward` remains that of diffusers.

    Raises:
        ValueError: the last self-attention layer is not in an up block, or there is no self-attention.
    """
    if is_truncated(unet):
        return unet
    blocks = self_attention_blocks(unet)
    last_name, last = blocks[-1]
    place = last_name.split(".")
    if place[0] != "up_blocks" or place[2] != "attentions":
        raise ValueError(f"incompatible UNet: its last self-attention layer, {last_name}.attn1, is not in an up block")
    _set_recorders([block for _, block in blocks[:-1]])
    unet.set_submodule(last_name, LastFeature(last.norm1, len(blocks) - 1))

    up = int(place[1])
    unet.up_blocks = unet.up_blocks[: up + 1]
    unet.up_blocks[up].upsamplers = None
    # Shapes still match: the output is the last block's input, which is not used.
    unet.up_blocks[up].attentions[int(place[3])].proj_out = nn.Identity()
    unet.conv_norm_out = None
    unet.conv_out = nn.Identity()
    return unet


def keep_recorders(reference_unet: nn.Module) -> None:
    """Let the layers of a truncated UNet record again where diffusers has put its plain processors, as it does when
    attention slicing or xformers are undone.

    Raises:
        ValueError: attention slicing or xformers are in use.
    """
    # the last layer is the one that `truncate` replaced
    blocks = [m for m in uncompiled(reference_unet).modules() if isinstance(m, BasicTransformerBlock)]
    held = [block.attn1.processor for block in blocks]
    replaced = [type(p).__name__ for p in held if type(p) not in PLAIN and not is_a(p, RecordingProcessor)]
    if replaced:
        raise ValueError(
            f"{len(replaced)} self-attention layers of the Reference UNet have {replaced[0]} in place of "
            "RecordingProcessor: attention slicing and xformers do not work with references; undo it or reload the "
            "pipeline"
        )
    if any(type(each) in PLAIN for each in held):
        _set_recorders([block for _, block in self_attention_blocks(reference_unet)])


def _set_recorders(blocks: Sequence[BasicTransformerBlock]) -> None:
    for layer, block in enumerate(blocks):
        block.attn1.set_processor(RecordingProcessor(layer))
        if block.attn2 is not None:
            block.attn2.set_processor(TextAttentionProcessor())


def copy_as_reference(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A Reference UNet with the base UNet's weights, the starting point of training (BootPIG, section 3.2)."""
    return truncate(copy.deepcopy(unet))


def sharing_weights(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy of the modules around the same parameters and buffers."""
    tensors = [*unet.parameters(), *unet.buffers()]
    return copy.deepcopy(unet, {id(tensor): tensor for tensor in tensors})


def record_features(
    reference_unet: UNet2DConditionModel,
    references: Tensor,
    timesteps: Tensor,
    prompt_embeds: Tensor,
    attends: Sequence[Sequence[int]],
    added_cond_kwargs: dict[str, Tensor] | None = None,
) -> ReferenceFeatures:
    """Run the Reference UNet and return its features.

    Args:
        reference_unet: a truncated UNet.
        references: (R, C, h, w), noised to `timesteps`.
        timesteps: scalar or (R,).
        prompt_embeds: (R, S, D), the embeds of each reference's caption.
        attends: for each row of the base batch, the references that it will attend to.
        added_cond_kwargs: SDXL's pooled embeds and time ids, R rows each.
    """
    recorder = FeatureRecorder(feature_count(reference_unet))
    reference_unet(
        references,
        timesteps,
        encoder_hidden_states=prompt_embeds,
        cross_attention_kwargs={"reference": recorder},
        added_cond_kwargs=added_cond_kwargs,
        return_dict=False,
    )
    return ReferenceFeatures(recorder.take(), attends)


def feature_count(reference_unet: nn.Module) -> int:
    """The number of features that a truncated UNet returns: one per self-attention layer of the base."""
    return sum(
        isinstance(module, BasicTransformerBlock) or is_a(module, LastFeature) for module in reference_unet.modules()
    )


def restore(
    reference_unet: UNet2DConditionModel, base: UNet2DConditionModel, dtype: torch.dtype | None = None
) -> UNet2DConditionModel:
    """The Reference UNet as an ordinary, complete UNet. The removed part, on which no feature depends, comes from
    `base`. Weights are shared with the Reference UNet unless `dtype` is another one.

    Raises:
        ValueError: the two UNets have different architectures.
    """
    config = {name: value for name, value in reference_unet.config.items() if not name.startswith("_")}
    with torch.device("meta"):
        full = UNet2DConditionModel.from_config(config)
    state = {**base.state_dict(), **reference_unet.state_dict()}
    state = {name: tensor.to(dtype or reference_unet.dtype) for name, tensor in state.items()}
    wanted = full.state_dict()
    wrong = wanted.keys() ^ state.keys() or {name for name in wanted if wanted[name].shape != state[name].shape}
    if wrong:
        raise ValueError(f"the Reference UNet and the base UNet must have the same architecture; {min(wrong)} differs")
    full.load_state_dict(state, assign=True)
    return full
