"""The timesteps that a call runs, and the line that names a scheduler which cannot run them."""

from __future__ import annotations

import inspect

import torch
from diffusers import SchedulerMixin
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from torch import Tensor

from bootpig.models.pipelines.request import Request


def run_schedule(
    scheduler: SchedulerMixin, r: Request, device: torch.device, strength: float | None, adds_noise: bool
) -> tuple[Tensor, int]:
    """Set the scheduler's timesteps and tell it where it starts, as diffusers' image-to-image pipelines do.

    Args:
        scheduler: any scheduler of diffusers.
        r: the call's `num_inference_steps`, `timesteps` and `sigmas`.
        device: where the timesteps are put.
        strength: of inpainting, in (0, 1]: the part of the schedule that is run. None: text-to-image.
        adds_noise: whether the call noises pictures: references, or the known part in inpainting.

    Returns:
        The timesteps, and the number of steps. A scheduler of order 2 has about two timesteps per step.

    Raises:
        ValueError: the scheduler does not sample a diffusion UNet in this way, or the settings do not fit it.
    """
    name = type(scheduler).__name__
    _check_kind(scheduler)
    if r.num_inference_steps < 1:
        raise ValueError(f"num_inference_steps: {r.num_inference_steps} is below 1; use 1 or more")
    try:
        timesteps, steps = retrieve_timesteps(scheduler, r.num_inference_steps, device, r.timesteps, r.sigmas)
    except (AttributeError, LookupError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"scheduler: {name} makes no timesteps for these settings ({type(error).__name__}: {error}); {_USE}"
        ) from error
    if r.timesteps is not None or r.sigmas is not None:
        steps = -(-len(timesteps) // scheduler.order)
    begin = 0
    if strength is not None:
        if timesteps[0] < timesteps[-1]:
            raise ValueError(f"scheduler: {name} runs from the picture to noise; {_USE}")
        begin = (steps - min(steps, max(1, int(steps * strength)))) * scheduler.order
        # Its Runge-Kutta steps take four timesteps each, which belong together.
        if begin and len(getattr(scheduler, "prk_timesteps", ())):
            raise ValueError(
                f"scheduler: {name} with prk steps cannot start within its schedule; set skip_prk_steps=True in its "
                "config, or strength=1"
            )
    # Without it, a scheduler looks for its first timestep, and takes another step if two round to the same timestep.
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    if adds_noise:
        sample = torch.zeros(1, 1, 1, 1, device=device)
        try:
            scheduler.add_noise(sample, sample, timesteps[begin : begin + 1])
        except (AttributeError, LookupError, TypeError, NotImplementedError) as error:
            raise ValueError(
                f"scheduler: {name} cannot add noise to a picture, which references and inpainting need; {_USE}"
            ) from error
    return timesteps[begin:], steps - begin // scheduler.order


_USE = "use one of Stable Diffusion, such as DDIMScheduler or UniPCMultistepScheduler"


def _check_kind(scheduler: SchedulerMixin) -> None:
    name = type(scheduler).__name__
    missing = [part for part in ("order", "init_noise_sigma", "step") if not hasattr(scheduler, part)]
    if missing:
        raise ValueError(f"scheduler: {name} has no {missing[0]}, it is for another kind of model; {_USE}")
    # the first three are the prediction, the timestep and the sample
    more = [p for p in list(inspect.signature(scheduler.step).parameters.values())[3:] if p.default is p.empty]
    needed = [p.name for p in more if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        raise ValueError(f"scheduler: each step of {name} needs {needed[0]}, it is for another kind of model; {_USE}")
