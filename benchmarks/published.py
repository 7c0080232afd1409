"""The inference baseline: a plain reimplementation of what BootPIG's published release does in each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from bootpig.models.core.reference_unet import FeatureRecorder, RecordingProcessor
from bootpig.models.core.rsa import TextAttentionProcessor, pool, self_attention_blocks
from bootpig.models.pipelines.guidance import Denoiser


@dataclass
class PublishedFeatures:
    """Reference features, one copy for each branch that reads them."""

    references: list[list[Tensor]]
    """For the first, second, … reference of every image: a tensor (2 × images, tokens, channels) for each layer."""


class PublishedProcessor(AttnProcessor2_0):
    """Full self-attention for all three branches, then full attention again for each reference in two of them."""

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
        reference: PublishedFeatures | None = None,
    ) -> Tensor:
        own = super().__call__(attn, hidden_states)
        if reference is None:
            return own
        images = len(hidden_states) // 3
        guided = hidden_states[images:]
        outputs = [
            super(PublishedProcessor, self).__call__(attn, guided, torch.cat([guided, layers[self.layer]], dim=1))
            for layers in reference.references
        ]
        pooled = outputs[0] if len(outputs) == 1 else pool(own[images:], outputs, "softmax")
        return torch.cat([own[:images], pooled])


def use_published_attention(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Set the published attention processors on a base UNet, in place."""
    for layer, (_, block) in enumerate(self_attention_blocks(unet)):
        block.attn1.set_processor(PublishedProcessor(layer))
        block.attn2.set_processor(TextAttentionProcessor())
    return unet


def record_whole(reference_unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Make a complete UNet record its features, in place. It also computes its (unused) prediction."""
    for layer, (_, block) in enumerate(self_attention_blocks(reference_unet)):
        block.attn1.set_processor(RecordingProcessor(layer))
        block.attn2.set_processor(TextAttentionProcessor())
    return reference_unet


def whole_pass(reference_unet: UNet2DConditionModel, *args: Any) -> tuple[Tensor, list[Tensor]]:
    """The (unused) prediction and the features of a `record_whole` UNet."""
    recorder = FeatureRecorder(len(self_attention_blocks(reference_unet)))
    prediction = reference_unet(*args, cross_attention_kwargs={"reference": recorder}, return_dict=False)[0]
    return prediction, recorder.take()


def published_step(
    denoiser: Denoiser, latents: Tensor, timestep: Tensor, step: int, eta: float, eta_im: float
) -> Tensor:
    """The guided prediction (eq. 4) of `denoiser.predict`, computed as in the published release.

    Args:
        denoiser: its `unet` must come from `use_published_attention` and its `reference_unet` from `record_whole`. All
            images must have the same number of references.
    """
    rows = denoiser.references
    assert rows is not None
    noised = rows.noised(denoiser.scheduler, timestep, step)
    references = []
    for slot in zip(*rows.attends, strict=True):  # once per image, even if images share a reference
        chosen = list(slot)
        _, layers = whole_pass(denoiser.reference_unet, noised[chosen], timestep, rows.prompt_embeds[chosen])
        references.append([layer.repeat(2, 1, 1) for layer in layers])
    prediction = denoiser.unet(
        torch.cat([latents] * 3),
        timestep,
        torch.cat([denoiser.negative_prompt_embeds, denoiser.negative_prompt_embeds, denoiser.prompt_embeds]),
        cross_attention_kwargs={"reference": PublishedFeatures(references)},
        return_dict=False,
    )[0]
    alone, reference, text = prediction.chunk(3)
    guided: Tensor = alone + eta_im * (reference - alone) + eta * (text - reference)
    return guided
