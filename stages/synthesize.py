"""synthesize: one picture a caption, by any diffusers text-to-image pipeline. The pictures are the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field

from models.sources import PIPELINE, ModelSource, resolve, resolve_all
from stages.base import MapStage, ModelIdentity, Sample, StageConfig, sample_seed
from stages.fields import BatchSize, Device, Dtype, ModelName, Revision
from stages.pictures import encode_png

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class SynthesizeConfig(StageConfig):
    """The pipeline and how it samples."""

    model: ModelName = Field(description="A diffusers text-to-image pipeline: a local folder or a hub id.")
    revision: Revision = None
    height: int = Field(default=512, ge=16, le=4096, multiple_of=8, description="Pixels.")
    width: int = Field(default=512, ge=16, le=4096, multiple_of=8, description="Pixels.")
    steps: int = Field(default=50, ge=1, le=1000, description="Denoising steps.")
    guidance_scale: float = Field(default=7.5, ge=0, le=100, description="Classifier-free guidance; off up to 1.")
    negative_prompt: str = Field(default="", description="What guidance leads away from; the same for all samples.")
    scheduler: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9]+Scheduler$",
        description="A diffusers scheduler class, such as UniPCMultistepScheduler; none: the model's own.",
    )
    min_contrast: float = Field(
        default=2.0,
        ge=0,
        le=127,
        description="Blank below it: the standard deviation of the liveliest channel, in levels of 255. 0: off.",
    )
    dtype: Dtype = "float32"
    device: Device = "auto"
    batch_size: BatchSize = 4


class Synthesize(MapStage):
    """Caption → target picture; `<id>.png`, RGB."""

    name = "synthesize"
    upstream = "caption"
    config_class = SynthesizeConfig
    config: SynthesizeConfig
    columns: ClassVar[pa.Schema] = pa.schema([("seed", pa.int64())])
    reasons: ClassVar[Mapping[str, str]] = {
        "not_finite": "the picture holds NaN or infinity, as float16 can give",
        "nsfw": "the model's safety checker flagged it",
        "blank": "the picture is of one colour",
    }

    @property
    def slice_size(self) -> int:
        return self.config.batch_size

    def models(self) -> Mapping[str, ModelIdentity]:
        return self._sources()

    def _sources(self) -> dict[str, ModelSource]:
        c = self.config
        lookups = {"model": lambda: resolve("synthesize.model", c.model, c.revision, PIPELINE)}
        return resolve_all(self.name, lookups)

    def setup(self) -> None:
        from models.devices import torch_device, torch_dtype
        from models.diffusion import load_text_to_image

        self._pipeline: DiffusionPipeline = load_text_to_image(
            self._sources()["model"],
            device=torch_device("synthesize.device", self.config.device),
            dtype=torch_dtype(self.config.dtype),
            scheduler=self.config.scheduler,
        )

    def teardown(self) -> None:
        del self._pipeline

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        import torch

        seeds = [sample_seed(self.seed, self.name, sample.id) for sample in samples]
        options = {}
        if self.config.negative_prompt:
            options["negative_prompt"] = [self.config.negative_prompt] * len(samples)
        output = self._pipeline(
            [sample.meta["caption"] for sample in samples],
            height=self.config.height,
            width=self.config.width,
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance_scale,
            # on the CPU, so that a sample's noise is the same on every device and in every batch
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="np",
            **options,
        )
        flags = getattr(output, "nsfw_content_detected", None) or [False] * len(samples)
        return [
            self._judge(sample, seed, picture, bool(flagged))
            for sample, seed, picture, flagged in zip(samples, seeds, output.images, flags, strict=True)
        ]

    def _judge(self, sample: Sample, seed: int, picture: np.ndarray, flagged: bool) -> Sample:
        """`picture` is HWC float32 in [0, 1]."""
        if not np.isfinite(picture).all():
            return sample.rejected("not_finite", seed=seed)
        if flagged:
            return sample.rejected("nsfw", seed=seed)
        pixels = (picture * 255).round().astype(np.uint8)
        if pixels.std(axis=(0, 1)).max() < self.config.min_contrast:
            return sample.rejected("blank", seed=seed)
        return sample.ok(files={"png": encode_png(Image.fromarray(pixels))}, seed=seed)
