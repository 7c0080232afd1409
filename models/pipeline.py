"""`BootPIGPipeline`: subject-driven text-to-image with a Stable Diffusion 1.x or 2.x base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from models.guidance import Denoiser, ReferenceRows
from models.pipeline_common import BootPIGMixin, ReferenceCaption
from models.references import PreparedReferences
from models.rsa import Pooling, check_rsa


class BootPIGPipeline(BootPIGMixin, StableDiffusionPipeline):
    """Generates a given subject in a described scene, zero-shot (BootPIG).

    A `StableDiffusionPipeline` with one component more: the `reference_unet`. `from_pretrained(base)` of an ordinary
    Stable Diffusion folder starts with a copy of the base's UNet; `load_bootpig` brings what was trained.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder,
        requires_safety_checker: as in `StableDiffusionPipeline`. The UNet's attention processors are replaced.
        reference_unet: an ordinary UNet of the same make, truncated here; None: a copy of `unet`.
        key_scale, pooling: see `models.rsa.RSAProcessor`.
        reference_caption: what the Reference UNet reads if `reference_prompt` does not say it.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = [*StableDiffusionPipeline._optional_components, "reference_unet"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        reference_unet: UNet2DConditionModel | None = None,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        requires_safety_checker: bool = False,
        key_scale: float = 1.0,
        pooling: Pooling = "softmax",
        reference_caption: ReferenceCaption = "caption",
    ) -> None:
        super().__init__(
            vae,
            text_encoder,
            tokenizer,
            unet,
            scheduler,
            safety_checker,
            feature_extractor,
            image_encoder,
            requires_safety_checker,
        )
        self._register_bootpig(reference_unet, key_scale, pooling, reference_caption)

    @property
    def reference_guidance_scale(self) -> float:
        """eta_im of eq. 4, of the running call; callbacks may set `_reference_guidance_scale`."""
        return self._reference_guidance_scale

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        reference_images: Any = None,
        reference_prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.5,
        reference_guidance_scale: float = 5.0,
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
                lists has one list per prompt; or what `prepare_references` gave. PIL RGB (subject on white) or RGBA (cut
                out here), numpy HWC or torch CHW. None: the base alone, with plain classifier-free guidance.
            reference_prompt: what the Reference UNet reads; None goes by the model's `reference_caption`.
            negative_prompt: takes the place of the empty prompt everywhere.
            height, width: pixels, of the result only.
            num_inference_steps, timesteps, sigmas, eta, num_images_per_prompt, latents, prompt_embeds,
            negative_prompt_embeds, output_type, return_dict, cross_attention_kwargs, guidance_rescale, clip_skip,
            callback_on_step_end, callback_on_step_end_tensor_inputs: as in `StableDiffusionPipeline`; the embeds have
                one row a prompt, and a callback sees them with one row an image.
            guidance_scale: eta_text+im of eq. 4; no value switches guidance off.
            reference_guidance_scale: eta_im of eq. 4.
            generator: one for all, or a list with one an image. References draw their noise from the prompt's (the first
                of its images), after the latents.
            reference_prompt_embeds: (prompts, S, D) in place of `reference_prompt`.

        Returns:
            `StableDiffusionPipelineOutput`, or (images, nsfw_content_detected).

        Raises:
            ValueError: inputs that contradict each other or do not match in number, an unusable reference, or
                attention processors that something has replaced.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        sample_size = self.unet.config.sample_size
        sides = (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)
        height = height or sides[0] * self.vae_scale_factor
        width = width or sides[1] * self.vae_scale_factor
        self.check_inputs(
            prompt,
            height,
            width,
            None,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            None,
            None,
            callback_on_step_end_tensor_inputs,
        )
        check_rsa(self.unet)
        if reference_images is None and (reference_prompt is not None or reference_prompt_embeds is not None):
            raise ValueError("reference_prompt: there are no reference_images")
        if reference_prompt is not None and reference_prompt_embeds is not None:
            raise ValueError("reference_prompt and reference_prompt_embeds: give one of the two")
        self._guidance_scale = guidance_scale
        self._reference_guidance_scale = reference_guidance_scale
        self._guidance_rescale = guidance_rescale
        self._clip_skip = clip_skip
        self._cross_attention_kwargs = cross_attention_kwargs
        self._interrupt = False

        device = self._execution_device
        prompts = [prompt] if isinstance(prompt, str) else prompt
        count = len(prompts) if prompts is not None else len(prompt_embeds)  # type: ignore[arg-type]
        prepared = reference_images
        if prepared is not None and not isinstance(prepared, PreparedReferences):
            prepared = self.prepare_references(reference_images, count)
        captions = None
        if prepared is not None and reference_prompt_embeds is None:
            captions = self._reference_captions(prompts, reference_prompt, count)
        prompt_embeds, negative_prompt_embeds, caption_embeds = self._encode_all(
            prompts, negative_prompt, prompt_embeds, negative_prompt_embeds, captions, count
        )

        steps, num_inference_steps = retrieve_timesteps(self.scheduler, num_inference_steps, device, timesteps, sigmas)
        latents = self.prepare_latents(
            count * num_images_per_prompt,
            self.unet.config.in_channels,
            height,
            width,
            prompt_embeds.dtype,
            device,
            generator,
            latents,
        )
        references: ReferenceRows | None = None
        if prepared is not None:
            if reference_prompt_embeds is not None:
                if len(reference_prompt_embeds) != count:
                    raise ValueError(f"reference_prompt_embeds: {len(reference_prompt_embeds)} rows, {count} prompts")
                caption_embeds = reference_prompt_embeds
            names = captions or [str(row) for row in range(count)]
            references = self._reference_rows(prepared, caption_embeds, names, num_images_per_prompt, generator)
        denoiser = Denoiser(
            self.unet,
            self.reference_unet,
            self.scheduler,
            prompt_embeds.repeat_interleave(num_images_per_prompt, dim=0),
            negative_prompt_embeds.repeat_interleave(num_images_per_prompt, dim=0),
            references,
            cross_attention_kwargs=cross_attention_kwargs,
        )
        latents = self._denoise(
            denoiser,
            steps,
            num_inference_steps,
            latents,
            self.prepare_extra_step_kwargs(generator, eta),
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )

        if output_type == "latent":
            image, has_nsfw_concept = latents, None
        else:
            image = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False, generator=generator)[0]
            image, has_nsfw_concept = self.run_safety_checker(image, device, prompt_embeds.dtype)
        denormalize = [not nsfw for nsfw in has_nsfw_concept] if has_nsfw_concept else [True] * len(image)
        image = self.image_processor.postprocess(image, output_type=output_type, do_denormalize=denormalize)
        self.maybe_free_model_hooks()
        if not return_dict:
            return image, has_nsfw_concept
        return StableDiffusionPipelineOutput(images=image, nsfw_content_detected=has_nsfw_concept)

    def _denoise(
        self,
        denoiser: Denoiser,
        timesteps: Tensor,
        num_inference_steps: int,
        latents: Tensor,
        step_kwargs: dict[str, Any],
        callback: Callable[..., dict[str, Any]] | None,
        callback_inputs: Sequence[str],
    ) -> Tensor:
        warmup = len(timesteps) - num_inference_steps * self.scheduler.order
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=num_inference_steps) as progress:
            for step, timestep in enumerate(timesteps):
                if self.interrupt:
                    continue
                prediction = denoiser.predict(
                    latents,
                    timestep,
                    step,
                    self.guidance_scale,
                    self.reference_guidance_scale,
                    self.guidance_rescale,
                )
                latents = self.scheduler.step(prediction, timestep, latents, **step_kwargs, return_dict=False)[0]
                if callback is not None:
                    tensors = {
                        "latents": latents,
                        "prompt_embeds": denoiser.prompt_embeds,
                        "negative_prompt_embeds": denoiser.negative_prompt_embeds,
                    }
                    changed = callback(self, step, timestep, {name: tensors[name] for name in callback_inputs})
                    latents = changed.get("latents", latents)
                    denoiser.prompt_embeds = changed.get("prompt_embeds", denoiser.prompt_embeds)
                    denoiser.negative_prompt_embeds = changed.get(
                        "negative_prompt_embeds", denoiser.negative_prompt_embeds
                    )
                if step == len(timesteps) - 1 or (step + 1 > warmup and (step + 1) % self.scheduler.order == 0):
                    progress.update()
        return latents

    def _encode_all(
        self,
        prompts: list[str] | None,
        negative_prompt: str | list[str] | None,
        prompt_embeds: Tensor | None,
        negative_prompt_embeds: Tensor | None,
        captions: list[str] | None,
        count: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embeds (prompts, S, D) of the prompts, of the negative prompts, and of the reference captions; every distinct
        text goes through the text encoder once."""
        negatives = [negative_prompt or ""] * count if not isinstance(negative_prompt, list) else negative_prompt
        if len(negatives) != count:
            raise ValueError(f"negative_prompt: {len(negatives)} for {count} prompts")
        if negative_prompt_embeds is not None and len(negative_prompt_embeds) != count:
            raise ValueError(f"negative_prompt_embeds: {len(negative_prompt_embeds)} rows for {count} prompts")

        # As in diffusers, `clip_skip` is for the prompt alone.
        skipped = self._encode_texts((prompts or []) if self.clip_skip is not None else [], self.clip_skip)
        plain = [*((prompts or []) if self.clip_skip is None else []), *(captions or [])]
        encoded = self._encode_texts([*plain, *(negatives if negative_prompt_embeds is None else [])], None)
        device, dtype = self._execution_device, self.unet.dtype
        if prompts is not None:
            prompt_embeds = torch.stack([(skipped or encoded)[text] for text in prompts])
        if negative_prompt_embeds is None:
            negative_prompt_embeds = torch.stack([encoded[text] for text in negatives])
        assert prompt_embeds is not None
        caption_embeds = torch.stack([encoded[text] for text in captions]) if captions else prompt_embeds
        return (
            prompt_embeds.to(device, dtype),
            negative_prompt_embeds.to(device, dtype),
            caption_embeds.to(device, dtype),
        )

    def _encode_texts(self, texts: list[str], clip_skip: int | None) -> dict[str, Tensor]:
        unique = list(dict.fromkeys(texts))
        if not unique:
            return {}
        scale = (self.cross_attention_kwargs or {}).get("scale")
        embeds, _ = self.encode_prompt(
            unique, self._execution_device, 1, False, lora_scale=scale, clip_skip=clip_skip
        )
        return dict(zip(unique, embeds, strict=True))
