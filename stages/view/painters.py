"""Draws a cut-out subject in another scene: with a trained BootPIG, or with an editing pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from bootpig.models.devices import torch_device, torch_dtype
from bootpig.models.painters.editing import Editor
from bootpig.models.painters.loading import load_text_to_image
from bootpig.models.pipelines.bases import load_base
from bootpig.models.pipelines.references import prepare_picture
from bootpig.models.pretrained.finite import check_pipeline, check_trained
from bootpig.models.pretrained.source import ModelSource, loading
from bootpig.stages.sampling import Sampling, Seeds, draw_pictures
from bootpig.stages.view.config import ViewConfig


@dataclass(frozen=True, eq=False)
class Order:
    """A view to draw."""

    cut_out: Image.Image
    """RGBA: the target with its mask as alpha. The view has its size."""
    prompt: str
    seed: int


class ViewPainter(Protocol):
    """Draws views."""

    def paint(self, orders: Sequence[Order]) -> list[Image.Image | None]:
        """One RGB picture per order, None where it is not finite. A picture depends on its order alone."""


class BootPIGPainter:
    """Draws with a trained BootPIG model."""

    def __init__(self, config: ViewConfig, base: ModelSource, model: Path) -> None:
        self.config = config
        pipeline: Any = load_base(base, torch_dtype(config.dtype))
        check_pipeline(base, pipeline)
        with loading("view.model", str(model)):
            pipeline.load_bootpig(model)
            check_trained("view.model", model, pipeline)
        pipeline.to(torch_device("view.device", config.device))
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline

    def paint(self, orders: Sequence[Order]) -> list[Image.Image | None]:
        c = self.config
        sampling = Sampling(c.steps, c.guidance_scale, c.reference_guidance_scale, c.batch_size)
        drawn: dict[int, Image.Image | None] = {}
        for size in dict.fromkeys(order.cut_out.size for order in orders):
            places = [place for place, order in enumerate(orders) if order.cut_out.size == size]
            side = min(size)
            references = [prepare_picture(orders[place].cut_out, side) for place in places]

            def inputs(
                batch: Sequence[int], places: list[int] = places, references: list[Image.Image] = references
            ) -> dict[str, Any]:
                return {
                    "prompt": [orders[places[k]].prompt for k in batch],
                    "reference_images": [[references[k]] for k in batch],
                }

            seeds = [Seeds(orders[place].seed, orders[place].seed ^ 1) for place in places]
            pictures = draw_pictures(
                self._pipeline, seeds, inputs, sampling, setting="view.batch_size", size=(size[1], size[0])
            )
            made = [picture.image for batch in pictures for picture in batch]
            drawn |= dict(zip(places, made, strict=True))
        return [drawn[place] for place in range(len(orders))]


class EditingPainter:
    """Draws with a diffusers editing pipeline, which sees the subject on white."""

    def __init__(self, config: ViewConfig, source: ModelSource) -> None:
        self.config = config
        device = torch_device("view.device", config.device)
        pipeline = load_text_to_image(source, device=device, dtype=torch_dtype(config.dtype))
        self._editor = Editor("view.model", pipeline)

    def paint(self, orders: Sequence[Order]) -> list[Image.Image | None]:
        return [self._one(order) for order in orders]

    def _one(self, order: Order) -> Image.Image | None:
        canvas = Image.new("RGB", order.cut_out.size, "white")
        canvas.paste(order.cut_out, (0, 0), order.cut_out)
        generator = torch.Generator().manual_seed(order.seed)
        c = self.config
        return self._editor.edit(canvas, order.prompt, generator, steps=c.steps, guidance_scale=c.guidance_scale)
