"""`BootPIGPipeline`: subject-driven text-to-image with a Stable Diffusion 1.x or 2.x base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from bootpig.models.pipelines.references import PreparedReferences, ReferencesOfPrompts
from bootpig.models.pipelines.request import Request
from bootpig.models.pipelines.stable_diffusion import StableDiffusionParts


class BootPIGPipeline(StableDiffusionParts, StableDiffusionPipeline):
    """Generates a given subject in a described scene, zero-shot (BootPIG).

    A `StableDiffusionPipeline` with one more component, the `reference_unet`. `from_pretrained(base)` on an ordinary
    Stable Diffusion folder starts with a copy of the base's UNet. `load_bootpig` loads trained weights.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder,
        requires_safety_checker: as in `StableDiffusionPipeline`. The UNet's attention processors are replaced.
        reference_unet: an ordinary UNet of the same architecture, which is truncated in place. None: a copy of `unet`.
        key_scale, pooling: see `bootpig.models.core.rsa.RSAProcessor`.
        reference_caption: what the Reference UNet reads if no `reference_prompt` is given: "caption", the prompt, or
            "object", the part of the prompt that names the object.
        reference_timestep: "same": references are noised to the timestep of the step (paper). "zero": they are read
            without noise, once per call. Must be as in training.
    """

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        reference_images: ReferencesOfPrompts | PreparedReferences | None = None,
        reference_prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
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
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Generate pictures.

        Args:
            prompt: one caption or a list.
            reference_images: pictures of the subject: an image or a flat list for a single prompt, a list with one list
                per prompt, or the result of `prepare_references`. PIL RGB (subject on white) or RGBA (cut out by its
                alpha), numpy HWC or torch CHW. None: the base model alone, with plain classifier-free guidance.
            reference_prompt: text for the Reference UNet. None: depends on the model's `reference_caption`.
            negative_prompt: replaces the empty prompt in all branches.
            height, width: size of the result in pixels. References keep their own size.
            num_inference_steps, timesteps, sigmas, eta, num_images_per_prompt, latents, prompt_embeds,
            negative_prompt_embeds, output_type, return_dict, cross_attention_kwargs, guidance_rescale, clip_skip,
            callback_on_step_end, callback_on_step_end_tensor_inputs: as in `StableDiffusionPipeline`. Embeds have one
                row per prompt; a callback sees them with one row per image.
            guidance_scale: eta_text+im of eq. 4. No value disables guidance.
            reference_guidance_scale: eta_im of eq. 4.
            reference_refresh_steps: run the Reference UNet every N steps and reuse its features in between. Faster but
                less faithful (docs/benchmarks.md has figures). 1 runs it at every step, as in the paper. Has no effect
                on a model with `reference_timestep` zero.
            generator: one for all images, or a list with one per image. The noise of references is seeded from the
                generator of the prompt's first image, after the latents are drawn.
            reference_prompt_embeds: (prompts, S, D), instead of `reference_prompt`.

        Returns:
            `StableDiffusionPipelineOutput`, or (images, nsfw_content_detected).

        Raises:
            ValueError: arguments contradict each other or differ in number, a reference is unusable, or attention
                processors were replaced.
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
        return self._generate(r)
