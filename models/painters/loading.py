"""Loads text-to-image pipelines and refiners, and replaces schedulers."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline

from bootpig.models.pretrained.encoders import load_pipeline
from bootpig.models.pretrained.finite import check_pipeline
from bootpig.models.pretrained.source import ModelError, ModelSource, loading

_OWN_NOISE = ("DPMSolverSDEScheduler", "FlowMatchLCMScheduler", "LTXEulerAncestralRFScheduler")
"""Schedulers whose noise does not come from the generators of a call."""


def load_text_to_image(
    source: ModelSource, *, device: torch.device, dtype: torch.dtype, scheduler: str | None = None
) -> DiffusionPipeline:
    """Load a diffusers text-to-image pipeline from safetensors to `device`.

    Args:
        scheduler: name of a diffusers scheduler class to use instead of the model's own, with the same settings.

    Raises:
        ModelError: the files are incomplete or damaged, or the scheduler does not exist or is not compatible.
    """
    pipeline = load_pipeline(source, dtype)
    if scheduler is not None:
        set_scheduler(pipeline, source, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    check_pipeline(source, pipeline)
    return pipeline


def set_scheduler(pipeline: Any, source: ModelSource, name: str) -> None:
    """Replace a pipeline's scheduler by another diffusers class with the same settings.

    Raises:
        ModelError: there is no such class, or it is not compatible.
    """
    if problem := scheduler_problem(source, type(pipeline.scheduler), name):
        raise ModelError(problem)
    with loading(source.field, source.source):
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)


def scheduler_problem(source: ModelSource, own: type, name: str) -> str | None:
    """Why a pipeline with a scheduler of class `own` cannot use the scheduler class `name`, in one line, or None.

    A scheduler for another kind of noise, such as DDIM for a flow-matching model, would draw noise without an error.
    """
    alike = sorted({each.__name__ for each in (own, *_compatibles(own)) if _kind(each) == _kind(own)})
    found = getattr(diffusers, name, None)
    if backends := getattr(found, "_backends", None):
        return f"{source.field}: the scheduler {name!r} needs more packages: {', '.join(backends)}; install them"
    if name in _OWN_NOISE:
        return f"{source.field}: the scheduler {name!r} draws noise that a sample's seed does not decide; use another"
    if found is None or not hasattr(found, "set_timesteps"):
        return f"{source.field}: diffusers has no scheduler {name!r}; choose one of {', '.join(alike)}"
    if _kind(found) != _kind(own):
        return (
            f"{source.field}: the scheduler {name!r} is for another kind of noise than the model's own "
            f"{own.__name__}; choose one of {', '.join(alike)}"
        )
    return None


def _compatibles(scheduler: Any) -> list[type]:
    compatibles: list[type] = scheduler._get_compatibles()
    return compatibles


def _kind(scheduler: type) -> str:
    """The kind of noise schedule: flow matching, EDM, or betas. Another scheduler is of a kind of its own."""
    name = scheduler.__name__
    if name.startswith(("FlowMatch", "EDM")):
        return name[:3]
    return "betas" if "beta_schedule" in inspect.signature(scheduler).parameters else name


def load_refiner(
    source: ModelSource, base: DiffusionPipeline, *, device: torch.device, dtype: torch.dtype
) -> DiffusionPipeline:
    """Load an SDXL image-to-image pipeline that continues from intermediate latents of `base`.

    Raises:
        ModelError: the files are incomplete or damaged, `base` cannot stop midway, or the refiner cannot start midway.
    """
    if problem := stopping_problem(source.field.replace("refiner", "model"), type(base)):
        raise ModelError(problem)
    pipeline = load_pipeline(source, dtype)
    if problem := starting_problem(source, type(pipeline)):
        raise ModelError(problem)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    check_pipeline(source, pipeline)
    return pipeline


def stopping_problem(field: str, base: type) -> str | None:
    """Why a pipeline of class `base` cannot stop midway for a refiner, in one line, or None."""
    if "denoising_end" in _arguments(base):
        return None
    return f"{field}: a {base.__name__} cannot stop midway for a refiner; use SDXL or no refiner"


def starting_problem(source: ModelSource, refiner: type) -> str | None:
    """Why a pipeline of class `refiner` cannot continue from intermediate latents, in one line, or None."""
    if "denoising_start" in _arguments(refiner):
        return None
    return (
        f"{source.field}: {source.source!r} is a {refiner.__name__}, which cannot start midway; "
        "use an SDXL image-to-image pipeline"
    )


def _arguments(pipeline: type) -> set[str]:
    return set(inspect.signature(pipeline.__call__).parameters)  # type: ignore[operator]
