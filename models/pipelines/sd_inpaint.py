"""`BootPIGInpaintPipeline`: paints a given subject into a given picture, with a Stable Diffusion 1.x or 2.x base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from bootpig.models.pipelines.known_region import Pictures
from bootpig.models.pipelines.references import PreparedReferences, ReferencesOfPrompts
from bootpig.models.pipelines.request import Request
from bootpig.models.pipelines.stable_diffusion import StableDiffusionParts


class BootPIGInpaintPipeline(StableDiffusionParts, StableDiffusionPipeline):
    """Subject-driven inpainting. Needs no training of its own: make it with `from_pipe` from a `BootPIGPipeline`."""

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        reference_images: ReferencesOfPrompts | PreparedReferences | None = None,
        image: Pictures = None,
        mask_image: Pictures = None,
        reference_prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
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
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Repaint the masked part of a picture. Arguments not listed here are as in `BootPIGPipeline`.

        Args:
            image: the picture as PIL image, or a list with one per prompt.
            mask_image: a mask of the same size, or a list with one per prompt. White is repainted.
            height, width: size in pixels at which the network sees the picture. The result has the picture's own size,
                and its pixels outside the mask do not change.
            padding_mask_crop: crop the network's view to the mask plus this margin in pixels, and enlarge it.
            strength: in (0, 1]. Below 1, denoising starts from the noised picture and skips the first steps.

        Returns:
            `InpaintOutput`, or (images, nsfw_content_detected).

        Raises:
            ValueError: as in `BootPIGPipeline`, and as in `bootpig.models.pipelines.known_region.InpaintTask.read`.
        """
        r = Request(
            prompt=prompt,
            reference_images=reference_images,
            reference_prompt=reference_prompt,
            negative_prompt=negative_prompt,
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
            output_type=output_type,
            return_dict=return_dict,
            cross_attention_kwargs=cross_attention_kwargs,
            guidance_rescale=guidance_rescale,
            clip_skip=clip_skip,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        return self._inpaint(r, image, mask_image, strength, padding_mask_crop)
