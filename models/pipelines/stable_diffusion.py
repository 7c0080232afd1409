"""Stable Diffusion 1.x and 2.x as a base of BootPIG: the code that its text-to-image and inpainting pipelines share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from bootpig.models.pipelines.generation import Encoded, GenerationMixin, Texts, no_text_encoder
from bootpig.models.pipelines.guidance import Conditions
from bootpig.models.pipelines.known_region import InpaintOutput, InpaintTask
from bootpig.models.pipelines.request import Request, Sizes
from bootpig.models.pipelines.vae import denormalised


class StableDiffusionParts(GenerationMixin):
    """Mixin for subclasses of `StableDiffusionPipeline`."""

    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    run_safety_checker: Callable[..., tuple[Tensor, list[bool] | None]]

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["safety_checker", "feature_extractor", "image_encoder", "reference_unet"]  # noqa: RUF012

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
        pooling: str = "softmax",
        reference_caption: str = "caption",
        reference_timestep: str = "same",
    ) -> None:
        super().__init__(  # type: ignore[call-arg]
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )
        self._register_bootpig(reference_unet, key_scale, pooling, reference_caption, reference_timestep)

    def _check(self, r: Request) -> None:
        self.check_inputs(
            r.prompt,
            r.height,
            r.width,
            None,
            r.negative_prompt,
            r.prompt_embeds,
            r.negative_prompt_embeds,
            callback_on_step_end_tensor_inputs=r.callback_on_step_end_tensor_inputs,
        )

    def _encode_texts(self, texts: list[Texts], clip_skip: int | None) -> dict[Texts, Encoded]:
        if self.text_encoder is None or self.tokenizer is None:
            raise no_text_encoder("")
        scale = (self.cross_attention_kwargs or {}).get("scale")
        first = [text for text, _ in texts]
        with self._without_last_layers(clip_skip or 0):
            embeds, _ = self.encode_prompt(first, self._execution_device, 1, False, lora_scale=scale)
        return {pair: Encoded(row) for pair, row in zip(texts, embeds, strict=True)}

    @contextmanager
    def _without_last_layers(self, skipped: int) -> Iterator[None]:
        """A context in which the text encoder lacks its last `skipped` layers but keeps its final norm. `encode_prompt`
        does the same with `clip_skip`, but uses an attribute that transformers' CLIP no longer has."""
        encoder = getattr(self.text_encoder, "text_model", self.text_encoder).encoder
        layers = encoder.layers
        if not 0 <= skipped <= len(layers):
            raise ValueError(f"clip_skip: {skipped} is not from 0 to {len(layers)}, the number of text encoder layers")
        encoder.layers = layers[: len(layers) - skipped]
        try:
            yield
        finally:
            encoder.layers = layers

    def _conditions(self, pooled: Tensor | None, sizes: Sizes) -> Conditions | None:
        return None

    def _output(self, r: Request, latents: Tensor, task: InpaintTask | None) -> Any:
        nsfw: list[bool] | None = None
        psnr: list[float] = []
        if r.output_type == "latent":
            images: Any = latents
        else:
            pixels = self.vae.decode(denormalised(self.vae, latents), return_dict=False, generator=r.generator)[0]
            pixels, nsfw = self.run_safety_checker(pixels, self._execution_device, latents.dtype)
            images, psnr = self._pictures(r, pixels, task, [not found for found in nsfw or [False] * len(pixels)])
        if task is not None:
            output: Any = InpaintOutput(images=images, nsfw_content_detected=nsfw, known_psnr_db=psnr)
        else:
            output = StableDiffusionPipelineOutput(images=images, nsfw_content_detected=nsfw)
        return output if r.return_dict else (images, nsfw)
