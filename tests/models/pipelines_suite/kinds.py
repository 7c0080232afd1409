"""The five pipelines that the suite runs on: random weights of the real classes, and one call that fits each."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bootpig.models.pipelines.export import standalone_source
from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.pipelines.sd_inpaint import BootPIGInpaintPipeline
from bootpig.models.pipelines.xl import BootPIGXLPipeline
from bootpig.models.pipelines.xl_inpaint import BootPIGXLInpaintPipeline
from tests.models.drawing import picture
from tests.models.networks import sd_pipeline, sdxl_pipeline, train_a_little

KINDS = ("sd", "sd-inpaint", "xl", "xl-inpaint", "alone")
INPAINTING = ("sd-inpaint", "xl-inpaint")
PROMPT = "a photo of a mug"
"""`alone` is the single file that a saved pipeline brings along."""


def standalone(folder: Path) -> ModuleType:
    """The module of a saved `BootPIGPipeline`."""
    file = folder / "bootpig_alone.py"
    file.write_text(standalone_source(BootPIGPipeline), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("bootpig_alone", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bootpig_alone"] = module
    spec.loader.exec_module(module)
    return module


def pipeline_class(kind: str, folder: Path) -> Any:
    if kind == "alone":
        return standalone(folder).BootPIGPipeline
    return {
        "sd": BootPIGPipeline,
        "sd-inpaint": BootPIGInpaintPipeline,
        "xl": BootPIGXLPipeline,
        "xl-inpaint": BootPIGXLInpaintPipeline,
    }[kind]


def build(kind: str, folder: Path) -> Any:
    """A new pipeline of this kind; equal at every call."""
    base = sdxl_pipeline(folder) if kind.startswith("xl") else sd_pipeline(folder)
    train_a_little(base)
    made = pipeline_class(kind, folder)
    if not isinstance(base, made):
        base = made(**base.components, **({"add_watermarker": False} if kind.startswith("xl") else {}))
    base.set_progress_bar_config(disable=True)
    return base


def arguments(pipeline: Any, **changes: Any) -> dict[str, Any]:
    """The arguments of a short call with one reference."""
    given: dict[str, Any] = {
        "prompt": PROMPT,
        "reference_images": picture(1),
        "num_inference_steps": 2,
        "generator": torch.Generator().manual_seed(3),
        "output_type": "latent",
    }
    if "Inpaint" in type(pipeline).__name__:
        mask = picture(0).convert("L").point(lambda _: 0)
        mask.paste(255, (16, 16, 48, 48))
        given |= {"image": picture(4), "mask_image": mask}
    return {**given, **changes}


def draw(pipeline: Any, **changes: Any) -> Tensor:
    """The images of a short call: latents, unless `output_type` says otherwise."""
    return pipeline(**arguments(pipeline, **changes)).images


def embeds_of(pipeline: Any, texts: list[str]) -> dict[str, Tensor]:
    """`prompt_embeds`, and for SDXL `pooled_prompt_embeds`."""
    encoded = pipeline.encode_prompt(
        prompt=texts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return {"prompt_embeds": encoded[0]} | ({"pooled_prompt_embeds": encoded[2]} if len(encoded) == 4 else {})
