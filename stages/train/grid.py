"""Pictures from a model while it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image

from bootpig.models.pipelines.references import PreparedReferences
from bootpig.stages.train.dataset import EncodedSample

TEXTS = {
    "prompt_embeds": "prompt_embeds",
    "reference_prompt_embeds": "reference_prompt_embeds",
    "pooled_prompt_embeds": "pooled_prompt_embeds",
    "pooled_reference_prompt_embeds": "reference_pooled_prompt_embeds",
}
"""A sample's tensor and the pipeline's argument; the last two are SDXL's."""


class SampleGrid:
    """Draws the same few training samples anew, to watch a model learn: a row a sample, reference | target | generated.

    The `BootPIGPipeline` shares its UNets with the model under training; nothing of the training's state is touched.
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
        """An RGB picture of `ROWS` rows of three."""
        pipeline = self.pipeline
        device = pipeline.unet.device
        for name in ("vae", "text_encoder", "text_encoder_2"):
            if name in pipeline.components:
                pipeline.components[name].to(device)
        side = pipeline.vae_scale_factor
        training = pipeline.unet.training
        pipeline.unet.eval()
        pipeline.reference_unet.eval()
        generated = pipeline(
            reference_images=PreparedReferences.from_latents(list(self.references.to(device)[:, None])),
            **{argument: embeds.to(device) for argument, embeds in self.texts.items()},
            height=self.targets.shape[-2] * side,
            width=self.targets.shape[-1] * side,
            num_inference_steps=self.STEPS,
            generator=[torch.Generator().manual_seed(self.seed + row) for row in range(len(self.targets))],
        ).images
        pipeline.unet.train(training)
        pipeline.reference_unet.train(training)
        columns = [self._decode(self.references), self._decode(self.targets), generated]
        width, height = columns[0][0].size
        grid = Image.new("RGB", (width * len(columns), height * len(generated)))
        for x, column in enumerate(columns):
            for y, picture in enumerate(column):
                grid.paste(picture, (x * width, y * height))
        return grid

    def _decode(self, latents: torch.Tensor) -> list[Image.Image]:
        vae = self.pipeline.vae
        pictures = vae.decode(latents.to(vae.device) / vae.config.scaling_factor).sample
        images: list[Image.Image] = self.pipeline.image_processor.postprocess(pictures, output_type="pil")
        return images
