"""The arguments of one call of a BootPIG pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from bootpig.models.pipelines.references import PreparedReferences, ReferencesOfPrompts


@dataclass(frozen=True, eq=False)
class Sizes:
    """SDXL's micro-conditioning: (height, width), or (top, left) for `crop`, in pixels."""

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Request:
    """The arguments of one call, with the names that diffusers' pipelines use."""

    prompt: str | list[str] | None
    reference_images: ReferencesOfPrompts | PreparedReferences | None
    reference_prompt: str | list[str] | None
    negative_prompt: str | list[str] | None
    height: int | None
    width: int | None
    num_inference_steps: int
    timesteps: list[int] | None
    sigmas: list[float] | None
    guidance_scale: float
    reference_guidance_scale: float
    reference_refresh_steps: int
    num_images_per_prompt: int
    eta: float
    generator: torch.Generator | list[torch.Generator] | None
    latents: Tensor | None
    prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None
    reference_prompt_embeds: Tensor | None
    output_type: str
    return_dict: bool
    cross_attention_kwargs: dict[str, Any] | None
    guidance_rescale: float
    clip_skip: int | None
    callback_on_step_end: Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks | None
    callback_on_step_end_tensor_inputs: Sequence[str]

    # SDXL only
    prompt_2: str | list[str] | None = None
    negative_prompt_2: str | list[str] | None = None
    pooled_prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None
    reference_pooled_prompt_embeds: Tensor | None = None
    original_size: tuple[int, int] | None = None
    crops_coords_top_left: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    negative_original_size: tuple[int, int] | None = None
    negative_crops_coords_top_left: tuple[int, int] = (0, 0)
    negative_target_size: tuple[int, int] | None = None

    def prompts(self) -> list[str] | None:
        """The prompts as a list.

        Raises:
            ValueError: the prompt is neither a text nor a list of texts.
        """
        if self.prompt is None or (
            isinstance(self.prompt, list) and all(isinstance(text, str) for text in self.prompt)
        ):
            return self.prompt
        if not isinstance(self.prompt, str):
            raise ValueError(f"prompt: give a text or a list of texts, not {type(self.prompt).__name__}")
        return [self.prompt]

    def count(self) -> int:
        """The number of prompts."""
        prompts = self.prompts()
        if prompts is not None:
            return len(prompts)
        if self.prompt_embeds is None:
            raise ValueError("prompt: give prompt or prompt_embeds")
        return len(self.prompt_embeds)

    def sizes(self, size: tuple[int, int]) -> tuple[Sizes, Sizes]:
        """SDXL's size conditions for the prompt and for the negative prompt.

        Args:
            size: (height, width) of the result in pixels. The default for the original and the target size.
        """
        positive = Sizes(self.original_size or size, self.crops_coords_top_left, self.target_size or size)
        if self.negative_original_size is None or self.negative_target_size is None:
            return positive, positive
        return positive, Sizes(
            self.negative_original_size, self.negative_crops_coords_top_left, self.negative_target_size
        )

    def tensor_inputs(self) -> Sequence[str]:
        """Names of the tensors that the callback asks for."""
        callback = self.callback_on_step_end
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            asked: Sequence[str] = callback.tensor_inputs
            return asked
        return self.callback_on_step_end_tensor_inputs
