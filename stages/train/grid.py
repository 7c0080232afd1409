"""Draws sample pictures from a model during training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image

from bootpig.models.memory import free_memory
from bootpig.models.pipelines.references import PreparedReferences
from bootpig.models.pipelines.vae import denormalised
from bootpig.stages.sampling import Sampling, Seeds, draw_pictures
from bootpig.stages.train.dataset import EncodedSample, same_shapes

TEXTS = {
    "prompt_embeds": "prompt_embeds",
    "reference_prompt_embeds": "reference_prompt_embeds",
    "pooled_prompt_embeds": "pooled_prompt_embeds",
    "pooled_reference_prompt_embeds": "reference_pooled_prompt_embeds",
}
"""Tensor of a sample → argument of the pipeline. The last two are for SDXL."""


@contextmanager
def sampling(pipeline: Any) -> Iterator[None]:
    """A context in which a pipeline in training can sample: its UNets are in evaluation mode, and the
    components that only sampling needs are on their device."""
    device, training = pipeline.unet.device, pipeline.unet.training
    names = [name for name in ("vae", "text_encoder", "text_encoder_2") if name in pipeline.components]
    parts = [pipeline.components[name] for name in names]
    try:
        with ExitStack() as moved:  # whatever fails, the others come back
            for part in parts:
                moved.callback(part.to, part.device)
                part.to(device)
            pipeline.unet.eval()
            pipeline.reference_unet.eval()
            yield
    finally:
        pipeline.unet.train(training)
        pipeline.reference_unet.train(training)
        if device.type != "cpu":
            free_memory()


@dataclass(frozen=True)
class _Rows:
    """Rows of the grid whose pictures have one size. All float32."""

    places: list[int]
    """Their numbers."""
    targets: torch.Tensor
    """(B, C, h, w) latents, as `references`."""
    references: torch.Tensor
    texts: dict[str, torch.Tensor]
    """Arguments of the pipeline."""

    @classmethod
    def of(cls, samples: Sequence[EncodedSample], places: list[int]) -> _Rows:
        chosen = [samples[place].tensors for place in places]
        targets = torch.stack([tensors["target"].float() for tensors in chosen])
        references = torch.stack([tensors["references"][0].float() for tensors in chosen])
        names = {name: argument for name, argument in TEXTS.items() if name in chosen[0]}
        texts = {argument: torch.stack([t[name].float() for t in chosen]) for name, argument in names.items()}
        return cls(places, targets, references, texts)


class SampleGrid:
    """Draws the same few training samples each time, to show the progress of training. One row per sample:
    reference | target | generated.

    The `BootPIGPipeline` shares its UNets with the model in training. The state of training does not change.
    """

    ROWS: ClassVar[int] = 4
    STEPS: ClassVar[int] = 20

    def __init__(self, pipeline: Any, samples: Sequence[EncodedSample], seed: int) -> None:
        self.pipeline = pipeline
        self.seed = seed
        pipeline.set_progress_bar_config(disable=True)
        self.rows = [_Rows.of(samples, places) for places in same_shapes(samples)]

    @torch.no_grad()
    def __call__(self) -> Image.Image:
        """Draw the grid: an RGB picture of `ROWS` rows with three pictures each, centred in cells of the largest."""
        found: dict[int, tuple[Image.Image, ...]] = {}
        with sampling(self.pipeline):
            for rows in self.rows:
                columns = self._decode(rows.references), self._decode(rows.targets), self._generate(rows)
                found |= zip(rows.places, zip(*columns, strict=True), strict=True)
        sizes = [picture.size for pictures in found.values() for picture in pictures]
        width, height = (max(sides) for sides in zip(*sizes, strict=True))
        grid = Image.new("RGB", (width * 3, height * len(found)), "white")
        for y, pictures in found.items():
            for x, picture in enumerate(pictures):
                left, top = (width - picture.width) // 2, (height - picture.height) // 2
                grid.paste(picture, (x * width + left, y * height + top))
        return grid

    def _generate(self, rows: _Rows) -> list[Image.Image]:
        device, side = self.pipeline.unet.device, self.pipeline.vae_scale_factor
        height, width = rows.targets.shape[-2:]

        def inputs(batch: Sequence[int]) -> dict[str, Any]:
            chosen = list(batch)
            references = PreparedReferences.from_latents(list(rows.references[chosen].to(device)[:, None]))
            texts = {argument: embeds[chosen].to(device) for argument, embeds in rows.texts.items()}
            return {"reference_images": references, **texts}

        batches = draw_pictures(
            self.pipeline,
            [Seeds(self.seed + place) for place in rows.places],
            inputs,
            Sampling(self.STEPS, batch_size=len(rows.places)),
            setting="train: sample pictures",
            size=(height * side, width * side),
        )
        size = (width * side, height * side)
        # grey, because a picture that is not finite has no colours
        return [picture.image or Image.new("RGB", size, "grey") for drawn in batches for picture in drawn]

    def _decode(self, latents: torch.Tensor) -> list[Image.Image]:
        vae = self.pipeline.vae
        pictures = vae.decode(denormalised(vae, latents.to(vae.device))).sample
        images: list[Image.Image] = self.pipeline.image_processor.postprocess(pictures, output_type="pil")
        return images
