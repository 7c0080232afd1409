"""Stable Diffusion XL as a base of BootPIG: the code that its text-to-image and inpainting pipelines share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_output import StableDiffusionXLPipelineOutput
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from bootpig.models.pipelines.generation import Encoded, GenerationMixin, Texts, no_text_encoder
from bootpig.models.pipelines.guidance import Conditions
from bootpig.models.pipelines.known_region import InpaintOutput, InpaintTask
from bootpig.models.pipelines.request import Request, Sizes
from bootpig.models.pipelines.vae import denormalised


class StableDiffusionXLParts(GenerationMixin):
    """Mixin for subclasses of `StableDiffusionXLPipeline`."""

    watermark: Any
    """diffusers' `StableDiffusionXLWatermarker`, or None."""
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer_2: CLIPTokenizer
    _get_add_time_ids: Callable[..., Tensor]

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _callback_tensor_inputs = [  # noqa: RUF012
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
        "add_text_embeds",
        "add_time_ids",
    ]
    _optional_components = [  # noqa: RUF012
        "tokenizer",
        "tokenizer_2",
        "text_encoder",
        "text_encoder_2",
        "image_encoder",
        "feature_extractor",
        "reference_unet",
    ]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        reference_unet: UNet2DConditionModel | None = None,
        image_encoder: Any = None,
        feature_extractor: Any = None,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
        key_scale: float = 1.0,
        pooling: str = "softmax",
        reference_caption: str = "caption",
        reference_timestep: str = "same",
    ) -> None:
        super().__init__(  # type: ignore[call-arg]
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=unet,
            scheduler=scheduler,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
            add_watermarker=add_watermarker,
        )
        self._register_bootpig(reference_unet, key_scale, pooling, reference_caption, reference_timestep)

    def _check(self, r: Request) -> None:
        self.check_inputs(
            r.prompt,
            r.prompt_2,
            r.height,
            r.width,
            None,
            r.negative_prompt,
            r.negative_prompt_2,
            r.prompt_embeds,
            r.negative_prompt_embeds,
            r.pooled_prompt_embeds,
            r.negative_pooled_prompt_embeds,
            callback_on_step_end_tensor_inputs=r.callback_on_step_end_tensor_inputs,
        )
        if r.reference_prompt_embeds is not None and r.reference_pooled_prompt_embeds is None:
            raise ValueError("reference_pooled_prompt_embeds: missing; give it along with reference_prompt_embeds")

    def _encode_texts(self, texts: list[Texts], clip_skip: int | None) -> dict[Texts, Encoded]:
        # an SDXL refiner has only the second one
        if self.text_encoder_2 is None or self.tokenizer_2 is None:
            raise no_text_encoder("_2")
        scale = (self.cross_attention_kwargs or {}).get("scale")
        embeds, _, pooled, _ = self.encode_prompt(
            [first for first, _ in texts],
            [first if second is None else second for first, second in texts],
            self._execution_device,
            1,
            False,
            lora_scale=scale,
            clip_skip=clip_skip,
        )
        return {pair: Encoded(*rows) for pair, *rows in zip(texts, embeds, pooled, strict=True)}

    def _conditions(self, pooled: Tensor | None, sizes: Sizes) -> Conditions | None:
        assert pooled is not None
        times = self._get_add_time_ids(
            tuple(sizes.original),
            tuple(sizes.crop),
            tuple(sizes.target),
            pooled.dtype,
            text_encoder_projection_dim=pooled.shape[-1],
        )
        return {"text_embeds": pooled, "time_ids": times.to(pooled.device).repeat(len(pooled), 1)}

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        with self._vae_without_overflow():
            encoded: Tensor = super()._encode_pixels(pixels)
        return encoded

    def _output(self, r: Request, latents: Tensor, task: InpaintTask | None) -> Any:
        psnr: list[float] = []
        if r.output_type == "latent":
            images: Any = latents
        else:
            with self._vae_without_overflow():
                pixels = self.vae.decode(denormalised(self.vae, latents), return_dict=False)[0]
            if self.watermark is not None:
                pixels = self.watermark.apply_watermark(pixels)
            images, psnr = self._pictures(r, pixels, task, [True] * len(pixels))
        if not r.return_dict:
            return (images,)
        if task is not None:
            return InpaintOutput(images=images, nsfw_content_detected=None, known_psnr_db=psnr)
        return StableDiffusionXLPipelineOutput(images=images)

    @contextmanager
    def _vae_without_overflow(self) -> Iterator[None]:
        """A context in which the VAE runs in float32 if its config says so: SDXL's first VAE overflows in float16."""
        upcast = self.vae.dtype == torch.float16 and self.vae.config.force_upcast
        if upcast:
            self.vae.to(dtype=torch.float32)
        try:
            yield
        finally:
            if upcast:
                self.vae.to(dtype=torch.float16)
