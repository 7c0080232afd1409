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

    A `StableDiffusionPipeline` with one component more, the `reference_unet`. `from_pretrained(base)` of an ordinary
    Stable Diffusion folder starts with a copy of the base's UNet; `load_bootpig` brings what was trained.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder,
        requires_safety_checker: as in `StableDiffusionPipeline`. The UNet's attention processors are replaced.
        reference_unet: an ordinary UNet of the same make, truncated here; None: a copy of `unet`.
        key_scale, pooling: see `bootpig.models.core.rsa.RSAProcessor`.
        reference_caption: "caption" or "object": what the Reference UNet reads if `reference_prompt` does not say it.
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
        """Generate.

        Args:
            prompt: one caption or a list.
            reference_images: pictures of the subject. An image or a flat list belongs to the one prompt; a list of
                lists has one list per prompt; or what `prepare_references` gave. PIL RGB (subject on white) or RGBA
                (cut out here), numpy HWC or torch CHW. None: the base alone, with plain classifier-free guidance.
            reference_prompt: what the Reference UNet reads; None goes by the model's `reference_caption`.
            negative_prompt: takes the place of the empty prompt everywhere.
            height, width: pixels, of the result only.
            num_inference_steps, timesteps, sigmas, eta, num_images_per_prompt, latents, prompt_embeds,
            negative_prompt_embeds, output_type, return_dict, cross_attention_kwargs, guidance_rescale, clip_skip,
            callback_on_step_end, callback_on_step_end_tensor_inputs: as in `StableDiffusionPipeline`; the embeds have
                one row a prompt, and a callback sees them with one row an image.
            guidance_scale: eta_text+im of eq. 4; no value switches guidance off.
            reference_guidance_scale: eta_im of eq. 4.
            reference_refresh_steps: run the Reference UNet every N steps and reuse its features in between: faster,
                less faithful (docs/benchmarks.md has figures). 1, the paper's way, runs it at every step.
            generator: one for all, or a list with one an image. References draw their noise from the prompt's (its
                first image's), after the latents.
            reference_prompt_embeds: (prompts, S, D) in place of `reference_prompt`.

        Returns:
            `StableDiffusionPipelineOutput`, or (images, nsfw_content_detected).

        Raises:
            ValueError: inputs that contradict each other or do not match in number, an unusable reference, or
                attention processors that something has replaced.
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
