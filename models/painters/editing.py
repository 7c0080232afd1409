"""Calls a diffusers editing pipeline: a picture and an instruction, one picture per call."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bootpig.models.pretrained.source import ModelError

if TYPE_CHECKING:
    import torch

_NEEDED = ("image", "prompt", "num_inference_steps", "generator", "output_type")
_OTHER_TASKS = ("mask_image", "control_image", "strength", "num_frames")
"""Arguments of pipelines that paint into a picture, follow its edges or keep its composition."""


def editing_problem(kind: type) -> str | None:
    """Why a pipeline class cannot draw the subject of a picture in another scene, in one line, or None."""
    parameters = inspect.signature(kind.__call__).parameters  # type: ignore[operator]
    missing = [name for name in _NEEDED if name not in parameters]
    if missing:
        return f"a {kind.__name__} does not take {', '.join(missing)}, so it is no editing pipeline"
    other = [name for name in _OTHER_TASKS if name in parameters]
    if other:
        return f"a {kind.__name__} takes {', '.join(other)}: it keeps the composition of a picture and edits no scene"
    return None


class Editor:
    """One loaded editing pipeline (FLUX.1 Kontext, FLUX.2, Qwen-Image-Edit, …), called by its signature."""

    def __init__(self, field: str, pipeline: Any) -> None:
        """`field`: the config field that names the model, for messages.

        Raises:
            ModelError: the pipeline is for another task.
        """
        if problem := editing_problem(type(pipeline)):
            raise ModelError(f"{field}: {problem}; use an editing pipeline, such as FluxKontextPipeline")
        self.field = field
        self.pipeline = pipeline
        self.takes = frozenset(inspect.signature(type(pipeline).__call__).parameters)

    def edit(
        self, picture: Image.Image, prompt: str, generator: torch.Generator, *, steps: int, guidance_scale: float
    ) -> Image.Image | None:
        """Draw one picture of the size of `picture`, RGB. None if it is not finite.

        Args:
            picture: RGB.
            generator: on the CPU, so that the noise does not depend on the device.
        """
        height, width = picture.height, picture.width
        wanted: dict[str, Any] = {
            "height": height,
            "width": width,
            "max_area": height * width,  # Kontext draws a megapixel otherwise
            "_auto_resize": False,  # Kontext scales its input to sizes that it prefers
        }
        arguments = {name: value for name, value in wanted.items() if name in self.takes}
        if "true_cfg_scale" in self.takes and "QwenImage" in type(self.pipeline).__name__:
            # Qwen-Image's guidance acts only beside a negative prompt
            arguments |= {"true_cfg_scale": guidance_scale, "negative_prompt": " "}
        elif "guidance_scale" in self.takes:
            arguments["guidance_scale"] = guidance_scale
        result = self.pipeline(
            image=picture,
            prompt=prompt,
            num_inference_steps=steps,
            generator=generator,
            output_type="np",
            **arguments,
        )
        drawn = np.asarray(result.images[0], np.float32)
        if not np.isfinite(drawn).all():
            return None
        image = Image.fromarray((drawn.clip(0, 1) * 255).round().astype(np.uint8))
        return image if image.size == picture.size else image.resize(picture.size, Image.Resampling.LANCZOS)
