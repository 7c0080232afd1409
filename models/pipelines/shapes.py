"""Checks that the tensors and lists of a call fit each other and the networks, before any network runs."""

from __future__ import annotations

from torch import Tensor

from bootpig.models.pipelines.diffusers_parts import DiffusersParts
from bootpig.models.pipelines.request import Request

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "reference_prompt_embeds")


def check_shapes(pipeline: DiffusersParts, r: Request, size: tuple[int, int]) -> None:
    """Check what diffusers' `check_inputs` leaves out.

    Args:
        pipeline: for the sizes of its networks.
        r: the arguments of the call.
        size: (height, width) of the result in pixels.

    Raises:
        ValueError: a number, length or shape does not fit.
    """
    for name in ("prompt", "negative_prompt"):
        # diffusers' own message for it holds the whole tensor
        if getattr(r, name) is not None and getattr(r, f"{name}_embeds") is not None:
            raise ValueError(f"{name} and {name}_embeds: give only one of them")
    count, each = r.count(), r.num_images_per_prompt
    if count < 1:
        raise ValueError("prompt: an empty list; give at least one prompt")
    if not isinstance(each, int) or each < 1:
        raise ValueError(f"num_images_per_prompt: {each!r} is not a number from 1")
    if r.output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type: {r.output_type!r} is unknown; use one of {', '.join(OUTPUT_TYPES)}")
    if isinstance(r.generator, (list, tuple)) and len(r.generator) != count * each:
        raise ValueError(
            f"generator: {len(r.generator)} for {count * each} images; give one per image, or a single one"
        )

    width = pipeline.unet.config.cross_attention_dim
    width = width if isinstance(width, int) else width[0]
    for name in EMBEDS:
        embeds: Tensor | None = getattr(r, name)
        if embeds is not None and (embeds.ndim != 3 or embeds.shape[2] != width or len(embeds) != count):
            raise ValueError(
                f"{name}: shape {tuple(embeds.shape)}, but must be ({count}, length, {width}), one row per prompt"
            )
        pooled: Tensor | None = getattr(r, name.replace("prompt", "pooled_prompt"))
        if pooled is not None and embeds is None:
            raise ValueError(f"{name.replace('prompt', 'pooled_prompt')}: has no effect without {name}; give both")
        if pooled is not None and (pooled.ndim != 2 or len(pooled) != count):
            raise ValueError(
                f"{name.replace('prompt', 'pooled_prompt')}: shape {tuple(pooled.shape)}, but must be "
                f"({count}, width), one row per prompt"
            )

    sides = tuple(side // pipeline.vae_scale_factor for side in size)
    shape = (count * each, pipeline.unet.config.in_channels, *sides)
    if r.latents is not None and tuple(r.latents.shape) != shape:
        raise ValueError(
            f"latents: shape {tuple(r.latents.shape)}, but must be {shape} for {count * each} images of "
            f"{size[0]}x{size[1]} pixels (height x width)"
        )


def check_lengths(prompt: Tensor, negative: Tensor) -> None:
    """Check that both have the same number of tokens: the UNet sees them in one batch.

    Args:
        prompt: (prompts, S, D).
        negative: (prompts, S', D), of the negative or empty prompt.

    Raises:
        ValueError: S is not S'.
    """
    if prompt.shape != negative.shape:
        raise ValueError(
            f"negative_prompt_embeds: {negative.shape[1]} tokens beside prompt_embeds of {prompt.shape[1]}; pad the "
            "shorter, and give both as embeds"
        )
