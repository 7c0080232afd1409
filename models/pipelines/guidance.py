"""One denoising step with two guidance scales, for text and reference (BootPIG, eq. 4). Nothing is computed twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
from torch import Tensor

from bootpig.models.core.reference_unet import record_features
from bootpig.models.core.rsa import ReferenceFeatures, self_attention_blocks
from bootpig.models.pipelines.clean_references import KeptFeatures, content_key, weights_key

Branch = Literal["self", "reference", "text"]
"""self: neither caption nor reference. reference: the reference only. text: the caption, and the reference if any."""

Conditions = dict[str, Tensor]
"""SDXL's `added_cond_kwargs`: "text_embeds" (B, P) and "time_ids" (B, 6)."""


def branch_weights(guidance_scale: float, reference_guidance_scale: float | None) -> dict[Branch, float]:
    """The factor of each branch in the guided prediction. Branches with factor zero are left out.

    With eta_im = `reference_guidance_scale` and eta = `guidance_scale`, eq. 4 is
    (1 - eta_im) e_self + (eta_im - eta) e_reference + eta e_text. Without a reference (`None`) it is plain
    classifier-free guidance, (1 - eta) e_self + eta e_text. No value of a scale disables guidance.
    """
    weights: dict[Branch, float]
    if reference_guidance_scale is None:
        weights = {"self": 1 - guidance_scale, "text": guidance_scale}
    else:
        weights = {
            "self": 1 - reference_guidance_scale,
            "reference": reference_guidance_scale - guidance_scale,
            "text": guidance_scale,
        }
    return {branch: weight for branch, weight in weights.items() if weight != 0}


@dataclass(eq=False)
class ReferenceRows:
    """The batch of the Reference UNet at every step: each distinct (reference, caption, noise) once."""

    latents: Tensor
    """(R, C, h, w), clean."""
    prompt_embeds: Tensor
    """(R, S, D)."""
    noise_keys: Sequence[str]
    """R texts, which identify the reference. A row's noise depends only on its key and the step."""
    attends: Sequence[Sequence[int]]
    """For each image of the base batch, the rows that it attends to."""
    conditions: Conditions | None = None
    kept: KeptFeatures | None = None
    """The references are read without noise, and these are their features. None: they are noised."""

    def content_key(self) -> tuple[object, ...]:
        """Identifies everything that the features depend on besides the weights."""
        conditions = [tensor for _, tensor in sorted((self.conditions or {}).items())]
        return tuple(self.noise_keys), self.latents.dtype, content_key(self.prompt_embeds, *conditions)

    def noised(self, scheduler: SchedulerMixin, timestep: Tensor, step: int) -> Tensor:
        """The references noised to `timestep`, (R, C, h, w). The noise depends only on (noise key, step), not on the
        device or on the order or number of references."""
        noise = torch.cat([self._noise(key, step) for key in self.noise_keys])
        noise = noise.to(self.latents.device, self.latents.dtype)
        noised = scheduler.add_noise(self.latents, noise, timestep.expand(len(self.latents)))
        # Some schedulers (Euler) add noise without scaling the sum to unit variance.
        return scheduler.scale_model_input(noised, timestep) if hasattr(scheduler, "scale_model_input") else noised

    def _noise(self, key: str, step: int) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(f"{key}/{step}".encode()).digest()[:8], "big") >> 1
        return torch.randn((1, *self.latents.shape[1:]), generator=torch.Generator().manual_seed(seed))


@dataclass(eq=False)
class Denoiser:
    """Computes the guided prediction for one batch of images.

    The UNet runs once per step, on the concatenated branches with non-zero weight. With references, the Reference UNet
    also runs once per step, or only once for all steps if the references are read without noise; the branches that
    attend to its features share them.
    """

    unet: UNet2DConditionModel
    reference_unet: UNet2DConditionModel
    scheduler: SchedulerMixin
    prompt_embeds: Tensor
    """(B, S, D), one row per image."""
    negative_prompt_embeds: Tensor
    """(B, S, D), of the negative prompt or the empty prompt."""
    references: ReferenceRows | None = None
    conditions: Conditions | None = None
    negative_conditions: Conditions | None = None
    cross_attention_kwargs: Mapping[str, Any] | None = None
    reference_refresh_steps: int = 1
    """Run the Reference UNet every N steps and reuse its features in between."""
    guided: bool = True
    """False: no guidance, the prediction is that of the text branch alone."""
    _layers: Sequence[Tensor] = field(default=(), init=False, repr=False)
    _ready: bool = field(default=False, init=False, repr=False)
    """Whether the features of references that are read without noise are those of this call."""

    def predict(
        self,
        latents: Tensor,
        timestep: Tensor,
        step: int,
        guidance_scale: float,
        reference_guidance_scale: float,
        guidance_rescale: float = 0.0,
    ) -> Tensor:
        """The guided prediction (B, C, h, w).

        Args:
            latents: (B, C, h, w), before the scheduler's input scaling.
            timestep: scalar.
            step: index of the step, which seeds the noise of the references.
            guidance_scale: eta_text+im of eq. 4.
            reference_guidance_scale: eta_im of eq. 4. Ignored without references.
            guidance_rescale: phi of "Common Diffusion Noise Schedules and Sample Steps are Flawed", section 3.4.
        """
        weights: dict[Branch, float] = {"text": 1.0}
        if self.guided:
            weights = branch_weights(guidance_scale, reference_guidance_scale if self.references else None)
        scaled = latents
        if hasattr(self.scheduler, "scale_model_input"):
            scaled = self.scheduler.scale_model_input(latents, timestep)
        kwargs = dict(self.cross_attention_kwargs or {})
        if self.references and weights.keys() != {"self"}:
            kwargs["reference"] = self._features(timestep, step, list(weights))
        captioned = [branch == "text" for branch in weights]
        prediction = self.unet(
            torch.cat([scaled] * len(weights)),
            timestep,
            encoder_hidden_states=torch.cat(
                [self.prompt_embeds if text else self.negative_prompt_embeds for text in captioned]
            ),
            cross_attention_kwargs=kwargs or None,
            added_cond_kwargs=self._added_cond_kwargs(captioned),
            return_dict=False,
        )[0]
        branches = prediction.chunk(len(weights))
        guided = sum(weight * branch for weight, branch in zip(weights.values(), branches, strict=True))
        assert isinstance(guided, Tensor)
        return _rescaled(guided, branches[-1], guidance_rescale) if guidance_rescale > 0 and self.guided else guided

    def _features(self, timestep: Tensor, step: int, branches: list[Branch]) -> ReferenceFeatures:
        rows = self.references
        assert rows is not None
        nothing: list[tuple[int, ...]] = [()] * len(rows.attends)
        attends = [refs for branch in branches for refs in (nothing if branch == "self" else rows.attends)]
        # The branches have the same latents. Before the first RSA layer, only pooled text can make them differ.
        copies = len(branches) if self.unet.config.addition_embed_type is None else 1
        if rows.kept is not None:
            kept = self._clean_features(rows, rows.kept, timestep)
            return ReferenceFeatures(kept.layers, attends, kept.projected, copies)
        layers = self._layers
        if not layers or step % self.reference_refresh_steps == 0:
            noised = rows.noised(self.scheduler, timestep, step)
            layers = record_features(
                self.reference_unet, noised, timestep, rows.prompt_embeds, rows.attends, rows.conditions
            ).layers
        if self.reference_refresh_steps > 1:
            self._layers = layers
        return ReferenceFeatures(layers, attends, copies=copies)

    def _clean_features(self, rows: ReferenceRows, kept: KeptFeatures, timestep: Tensor) -> KeptFeatures:
        """The features of the references at timestep 0. Computed at the first step that needs them, unless an earlier
        call has computed them."""
        if self._ready:
            if len(kept.projected) == len(kept.layers):
                kept.layers = ()  # only their keys and values are still needed
            return kept
        attn1 = [block.attn1 for _, block in self_attention_blocks(self.unet)]
        scale = (self.cross_attention_kwargs or {}).get("scale")
        processors = tuple((attn.processor.key_scale, attn.processor.layer) for attn in attn1)
        kind = timestep.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (rows.content_key(), processors, scale, autocast, weights_key(self.reference_unet, *attn1))
        if not kept.valid(key):
            kept.layers = record_features(
                self.reference_unet,
                rows.latents,
                torch.zeros_like(timestep),
                rows.prompt_embeds,
                rows.attends,
                rows.conditions,
            ).layers
            kept.key = key
        self._ready = True
        return kept

    def _added_cond_kwargs(self, captioned: list[bool]) -> Conditions | None:
        if self.conditions is None or self.negative_conditions is None:
            return None
        parts = [self.conditions if text else self.negative_conditions for text in captioned]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _rescaled(guided: Tensor, text: Tensor, factor: float) -> Tensor:
    dims = list(range(1, guided.ndim))
    rescaled = guided * (text.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True))
    return factor * rescaled + (1 - factor) * guided
