"""`BootPIGXLInpaintPipeline`: put a given subject into a given picture, with an SDXL base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from bootpig.models.pipelines.generation import Request
from bootpig.models.pipelines.stable_diffusion_xl import StableDiffusionXLParts


class BootPIGXLInpaintPipeline(StableDiffusionXLParts, StableDiffusionXLPipeline):
    """Subject-driven inpainting, without training of its own: `from_pipe` of a `BootPIGXLPipeline` is enough."""

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        reference_images: Any = None,
        image: Any = None,
        mask_image: Any = None,
        reference_prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
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
        """Repaint: `image`, `mask_image`, `height`, `width`, `padding_mask_crop` and `strength` are as in
        `BootPIGInpaintPipeline`, all else as in `BootPIGXLPipeline`.

        Returns:
            `InpaintOutput`, or (images,).
        """
        r = Request.from_arguments(locals())
        return self._inpaint(r, image, mask_image, strength, padding_mask_crop)
