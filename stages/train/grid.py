"""Draws sample pictures from a model during training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from PIL import Image

from bootpig.models.memory import free_memory
from bootpig.models.pipelines.references import PreparedReferences
from bootpig.models.pipelines.vae import denormalised
from bootpig.stages.sampling import Sampling, Seeds, draw_pictures
from bootpig.stages.train.dataset import EncodedSample

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
        tensors = {name: [sample.tensors[name].float() for sample in samples] for name in samples[0].tensors}
        self.targets = torch.stack(tensors["target"])
        self.references = torch.stack([references[0] for references in tensors["references"]])
        self.texts = {argument: torch.stack(tensors[name]) for name, argument in TEXTS.items() if name in tensors}

    @torch.no_grad()
    def __call__(self) -> Image.Image:
        """Draw the grid: an RGB picture of `ROWS` rows with three pictures each."""
        with sampling(self.pipeline):
            columns = [self._decode(self.references), self._decode(self.targets), self._generate()]
        width, height = columns[0][0].size
        grid = Image.new("RGB", (width * len(columns), height * len(columns[0])))
        for x, column in enumerate(columns):
            for y, picture in enumerate(column):
                grid.paste(picture, (x * width, y * height))
        return grid

    def _generate(self) -> list[Image.Image]:
        device, side = self.pipeline.unet.device, self.pipeline.vae_scale_factor
        height, width = self.targets.shape[-2:]

        def inputs(batch: Sequence[int]) -> dict[str, Any]:
            rows = list(batch)
            references = PreparedReferences.from_latents(list(self.references[rows].to(device)[:, None]))
            texts = {argument: embeds[rows].to(device) for argument, embeds in self.texts.items()}
            return {"reference_images": references, **texts}

        count = len(self.targets)
        batches = draw_pictures(
            self.pipeline,
            [Seeds(self.seed + row) for row in range(count)],
            inputs,
            Sampling(self.STEPS, batch_size=count),
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
