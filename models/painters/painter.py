"""Calls a text-to-image pipeline in the way of its family: one caption and one seeded generator per picture."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bootpig.models.painters.families import BY_CLASS, REFINER
from bootpig.models.painters.family import Configs, Family
from bootpig.models.pretrained.source import ModelError

USUAL_GUIDANCE = 7.5
"""The guidance scale that counts as not set. It is not an error for a family without guidance."""

_GUIDANCE = ("guidance_scale", "true_cfg_scale", "distilled_guidance_scale")
_NEEDED = ("prompt", "height", "width", "num_inference_steps", "generator", "output_type")
_PICTURES = ("image", "images", "mask_image", "control_image", "input_images", "video", "gligen_images")
_OTHER_MEDIA = ("num_frames", "audio_length_in_s", "audio_end_in_s")


@dataclass(frozen=True, kw_only=True)
class Brush:
    """The settings that all pictures share."""

    steps: int
    guidance_scale: float
    negative_prompt: str
    """Empty: none."""
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Painted:
    """What a pipeline drew."""

    pictures: Any
    """One per caption: HWC float32 in [0, 1], or the latents that a refiner continues."""
    flagged: Sequence[bool]
    """Whether the safety checker flagged a picture."""


class Painter:
    """One loaded pipeline."""

    def __init__(self, field: str, pipeline: Any) -> None:
        """`field`: the config field that names the model, for messages.

        Raises:
            ModelError: the pipeline does not draw pictures from captions.
        """
        self.field = field
        self.pipeline = pipeline
        self.family = family_of(field, type(pipeline))
        parts = {name: getattr(part, "config", None) for name, part in pipeline.components.items()}
        configs = {name: config for name, config in parts.items() if isinstance(config, Mapping)}
        self.configs: Configs = {**configs, "": pipeline.config}

    def paint(
        self, captions: Sequence[str], generators: Sequence[torch.Generator], brush: Brush, **more: Any
    ) -> Painted:
        """Draw one picture per caption. A picture depends on its caption and generator, not on the others.

        Args:
            generators: on the CPU, so that the noise does not depend on the device.
            more: arguments for the pipeline, such as those of a refiner.

        Raises:
            ModelError: the pipeline draws another size than it was asked for.
        """
        if not self.family.batches and len(captions) > 1:
            ones = [self.paint([c], [g], brush, **more) for c, g in zip(captions, generators, strict=True)]
            return Painted([one.pictures[0] for one in ones], [one.flagged[0] for one in ones])
        arguments = {"output_type": "np", **self._arguments(len(captions), brush), **more}
        result = self.pipeline(prompt=list(captions), generator=list(generators), **arguments)
        pictures = getattr(result, self.family.output)
        if arguments["output_type"] == "np":
            pictures = _pictures(pictures)
            made = pictures[0].shape[:2]
            if made != (brush.height, brush.width):
                raise ModelError(
                    f"{self.field}: a {type(self.pipeline).__name__} draws {made[1]}x{made[0]} pixels where "
                    f"{brush.width}x{brush.height} are asked for; set width and height to that"
                )
        flagged = getattr(result, "nsfw_content_detected", None) or [False] * len(captions)
        return Painted(pictures, flagged)

    def _arguments(self, count: int, brush: Brush) -> dict[str, Any]:
        family, configs = self.family, self.configs
        arguments: dict[str, Any] = {"num_inference_steps": brush.steps, **family.fixed(configs)}
        arguments |= {"height": brush.height, "width": brush.width} if family is not REFINER else {}
        if family.guided(configs):
            arguments[family.guidance] = brush.guidance_scale
            self._set_guider(brush.guidance_scale)
        negative = brush.negative_prompt
        if not negative and family.empty is not None and brush.guidance_scale > family.off:
            negative = family.empty
        if negative and family.negated(configs):
            arguments["negative_prompt"] = [negative] * count
        return arguments

    def _set_guider(self, scale: float) -> None:
        """Some pipelines take the guidance scale from a component."""
        for name in ("guider", "ocr_guider"):
            guider = getattr(self.pipeline, name, None)
            if guider is not None and guider.guidance_scale != scale:
                setattr(self.pipeline, name, guider.new(guidance_scale=scale))


def family_of(field: str, pipeline: type) -> Family:
    """The family of a pipeline class. A class that is not known is called by its signature, one caption at a time.

    Raises:
        ModelError: the class does not draw pictures from captions.
    """
    name = pipeline.__name__
    if name == "StableDiffusionXLImg2ImgPipeline":
        return REFINER
    if name in BY_CLASS:
        return BY_CLASS[name]
    parameters = inspect.signature(pipeline.__call__).parameters  # type: ignore[operator]
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    required = [each.name for each in parameters.values() if each.default is each.empty and each.kind not in variable]
    besides = [each for each in (*_PICTURES, *required) if each in parameters and each not in ("self", "prompt")]
    reason = None
    if others := [each for each in _OTHER_MEDIA if each in parameters]:
        reason = f"draws no pictures (it has {others[0]})"
    elif besides:
        reason = f"needs {besides[0]} besides a caption"
    elif missing := [each for each in _NEEDED if each not in parameters]:
        reason = f"takes no {missing[0]}"
    if reason is not None:
        raise ModelError(f"{field}: a {name} {reason}; give a text-to-image pipeline (docs/models.md lists them)")
    guidance = next((each for each in _GUIDANCE if each in parameters), None)
    return Family(
        name,
        (name,),
        guidance=guidance or "",
        guided=lambda configs: guidance is not None,
        negated=lambda configs: "negative_prompt" in parameters,
        batches=False,
    )


def setting_problems(
    field: str, pipeline: type, configs: Configs, brush: Brush, sizes: Sequence[tuple[int, int]] = ()
) -> list[str]:
    """The settings that do not fit a pipeline or would have no effect, one line each.

    Args:
        field: the config field that names the model; the other settings are beside it.
        pipeline: the class of the pipeline.
        configs: see `Configs`; a component whose config is not known is missing.
        brush: the settings.
        sizes: each (height, width) that is drawn, if there are several; else the brush has the size.
    """
    try:
        family = family_of(field, pipeline)
    except ModelError as error:
        return [str(error)]
    stage, name = field.rpartition(".")[0], pipeline.__name__
    problems = []
    if not family.guided(configs) and brush.guidance_scale != USUAL_GUIDANCE:
        problems.append(f"{stage}.guidance_scale: {brush.guidance_scale:g} has no effect on this {name}; remove it")
    if brush.negative_prompt and not family.negated(configs):
        problems.append(f"{stage}.negative_prompt: has no effect on this {name}; remove it")
    elif brush.negative_prompt and brush.guidance_scale <= family.off:
        problems.append(
            f"{stage}.negative_prompt: has no effect at guidance_scale {brush.guidance_scale:g}; remove it, or raise "
            f"guidance_scale above {family.off:g}"
        )
    setting = f"{stage}.sizes" if sizes else f"{stage}.width and height"
    shown: Callable[[tuple[int, int]], object] = list if sizes else _width_by_height
    for size in sizes or [(brush.height, brush.width)]:
        multiple = family.multiple(configs)
        if family.sizes and size not in family.sizes:
            fits = ", ".join(str(shown(each)) for each in family.sizes)
            problems.append(f"{setting}: {shown(size)}, but a {name} draws only {fits}")
        elif any(side % multiple for side in size):
            height, width = (max(multiple, round(side / multiple) * multiple) for side in size)
            problems.append(
                f"{setting}: {shown(size)}, but a {name} draws multiples of {multiple}; "
                f"the nearest size is {shown((height, width))}"
            )
    return problems


def _width_by_height(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _pictures(drawn: Any) -> list[np.ndarray]:
    """HWC float32 pictures. A pipeline of the video kind gives one frame each."""
    return [np.asarray(each, np.float32).reshape(np.shape(each)[-3:]) for each in drawn]
