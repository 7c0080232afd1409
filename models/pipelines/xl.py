"""`BootPIGXLPipeline`: subject-driven text-to-image with an SDXL base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from bootpig.models.pipelines.references import PreparedReferences, ReferencesOfPrompts
from bootpig.models.pipelines.request import Request
from bootpig.models.pipelines.stable_diffusion_xl import StableDiffusionXLParts


class BootPIGXLPipeline(StableDiffusionXLParts, StableDiffusionXLPipeline):
    """`BootPIGPipeline` for an SDXL base."""

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        reference_images: ReferencesOfPrompts | PreparedReferences | None = None,
        reference_prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.5,
        reference_guidance_scale: float = 5.0,
        reference_refresh_steps: int = 1,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        reference_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        reference_pooled_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        negative_original_size: tuple[int, int] | None = None,
        negative_crops_coords_top_left: tuple[int, int] = (0, 0),
        negative_target_size: tuple[int, int] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Generate pictures. Arguments not listed here are as in `BootPIGPipeline`.

        Args:
            negative_prompt: None is SDXL's own empty prompt: zeros, if the base's config says so.
            prompt_2, negative_prompt_2: for the second text encoder. None: the same as for the first.
            pooled_prompt_embeds, negative_pooled_prompt_embeds, reference_pooled_prompt_embeds: (prompts, D), to be
                given along with the embeds of the same name.
            original_size, crops_coords_top_left, target_size, negative_original_size, negative_crops_coords_top_left,
            negative_target_size: (height, width) or (top, left) in pixels, as in `StableDiffusionXLPipeline`. The
                Reference UNet always gets the reference's own size.

        Returns:
            `StableDiffusionXLPipelineOutput`, or (images,).
        """
        r = Request(
            prompt=prompt,
            reference_images=reference_images,
            reference_prompt=reference_prompt,
            negative_prompt=negative_prompt,
            prompt_2=prompt_2,
            negative_prompt_2=negative_prompt_2,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            guidance_scale=guidance_scale,
            reference_guidance_scale=reference_guidance_scale,
            reference_refresh_steps=reference_refresh_steps,
            num_images_per_prompt=num_images_per_prompt,
            eta=eta,
            generator=generator,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            reference_prompt_embeds=reference_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            reference_pooled_prompt_embeds=reference_pooled_prompt_embeds,
            output_type=output_type,
            return_dict=return_dict,
            cross_attention_kwargs=cross_attention_kwargs,
            guidance_rescale=guidance_rescale,
            original_size=original_size,
            crops_coords_top_left=crops_coords_top_left,
            target_size=target_size,
            negative_original_size=negative_original_size,
            negative_crops_coords_top_left=negative_crops_coords_top_left,
            negative_target_size=negative_target_size,
            clip_skip=clip_skip,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        return self._generate(r)
