"""Calls the user's callback after a step, as diffusers does, and checks what it gives back."""

from __future__ import annotations

from diffusers.callbacks import IPAdapterScaleCutoffCallback, MultiPipelineCallbacks
from torch import Tensor

from bootpig.models.pipelines.diffusers_parts import DiffusersParts
from bootpig.models.pipelines.guidance import Denoiser
from bootpig.models.pipelines.request import Request

CONDITION_NAMES = {"add_text_embeds": "text_embeds", "add_time_ids": "time_ids"}
"""SDXL's conditions: diffusers' names in callbacks, and in the UNet's `added_cond_kwargs`."""


def check_callback(callback: object) -> None:
    """Refuse a callback that could only be without effect or fail within the call.

    Raises:
        ValueError: it sets the scale of an IP-Adapter, which a BootPIG pipeline does not have, or cannot be called.
    """
    callbacks = callback.callbacks if isinstance(callback, MultiPipelineCallbacks) else [callback]
    for each in callbacks:
        if isinstance(each, IPAdapterScaleCutoffCallback):
            raise ValueError(
                "callback_on_step_end: IPAdapterScaleCutoffCallback has no effect, because a BootPIG pipeline has no "
                "IP-Adapter; remove it"
            )
        if each is not None and not callable(each):
            raise ValueError(f"callback_on_step_end: {type(each).__name__} cannot be called; give a function")


def call_back(
    pipeline: DiffusersParts,
    r: Request,
    denoiser: Denoiser,
    step: int,
    timestep: Tensor,
    latents: Tensor,
    resizable: bool,
) -> Tensor:
    """Run the callback, and put the tensors that it returns into `denoiser`. Returns the latents.

    `resizable`: whether the callback may change the height and width of the latents, which the UNet does not mind.

    As in diffusers, a callback that sets the pipeline's `_guidance_scale` to 1 or less turns guidance off: from then
    on, the text branch runs alone, with the reference if there is one. Callbacks written for diffusers then also cut
    the negative half off the tensors; here there is none, so what they cut off stays.

    Raises:
        ValueError: it returns something else than a dict of tensors, or a tensor of another shape.
    """
    tensors = {
        "latents": latents,
        "prompt_embeds": denoiser.prompt_embeds,
        "negative_prompt_embeds": denoiser.negative_prompt_embeds,
    }
    conditions = denoiser.conditions or {}
    tensors |= {name: conditions[key] for name, key in CONDITION_NAMES.items() if key in conditions}
    given = {name: tensors[name] for name in r.callback_on_step_end_tensor_inputs}
    scale = pipeline.guidance_scale
    assert r.callback_on_step_end is not None
    returned = r.callback_on_step_end(pipeline, step, timestep, given)
    if not isinstance(returned, dict):
        raise ValueError(
            f"callback_on_step_end: returned {type(returned).__name__}; return a dict of tensors, which may be the one "
            "that it gets"
        )
    if pipeline.guidance_scale != scale:
        denoiser.guided = pipeline.guidance_scale > 1
    for name in tensors.keys() & returned.keys():
        if name == "latents" and resizable and _same_but_size(returned[name], latents):
            tensors[name] = returned[name]
        else:
            tensors[name] = _checked(name, returned[name], tensors[name], denoiser.guided)
    denoiser.prompt_embeds = tensors["prompt_embeds"]
    denoiser.negative_prompt_embeds = tensors["negative_prompt_embeds"]
    if conditions:
        denoiser.conditions = {**conditions, **{key: tensors[name] for name, key in CONDITION_NAMES.items()}}
    return tensors["latents"]


def _same_but_size(returned: object, given: Tensor) -> bool:
    return isinstance(returned, Tensor) and returned.ndim == 4 and returned.shape[:2] == given.shape[:2]


def _checked(name: str, returned: object, given: Tensor, guided: bool) -> Tensor:
    if not isinstance(returned, Tensor):
        raise ValueError(f"callback_on_step_end: {name} is {type(returned).__name__}; return a tensor")
    if returned.shape == given.shape:
        return returned
    part = len(returned) < len(given) and returned.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
    if name != "latents" and not guided and part:
        return given
    raise ValueError(
        f"callback_on_step_end: {name} has shape {tuple(returned.shape)}, but must have {tuple(given.shape)}, "
        "one row per image without the negative prompt's"
    )
