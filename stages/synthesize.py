"""The synthesize stage: generates one target picture per caption with any diffusers text-to-image pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field, model_validator

from bootpig.models.painters.costs import step_tflop
from bootpig.models.pretrained import sizes
from bootpig.models.pretrained.inspection import pipeline_problems
from bootpig.models.pretrained.source import PIPELINE, ModelSource
from bootpig.models.pretrained.sources import resolve, resolve_all
from bootpig.stages.engine.contract import ADDED, SPEED, MapStage, Sample, StageConfig, sample_seed
from bootpig.stages.engine.estimates import Estimate, SampleShape, Workload
from bootpig.stages.engine.fields import BatchSize, Device, Dtype, ModelName, Revision, Scheduler
from bootpig.stages.engine.memory import Memory
from bootpig.stages.pictures import PNG_BYTES, encode_png, on_all_cores

if TYPE_CHECKING:
    import torch

    from bootpig.models.painters.painter import Brush, Painter


Side = Annotated[int, Field(ge=16, le=4096, multiple_of=8)]

_SIZE_DRAW = 2
"""The number of the draw that chooses a sample's size, see `sample_seed`. 0 and 1 are the noise of base and refiner."""


class SynthesizeConfig(StageConfig):
    """The pipeline and its sampling settings."""

    model: ModelName = Field(description="A diffusers text-to-image pipeline: a local folder or a hub id.")
    revision: Revision = None
    height: Side = Field(default=512, description="Height in pixels.")
    width: Side = Field(default=512, description="Width in pixels.")
    sizes: tuple[tuple[Side, Side], ...] = Field(
        default=(),
        max_length=64,
        json_schema_extra=ADDED,
        description="Several sizes in place of height and width, each as [height, width] in pixels. The size of a "
        "sample is drawn from them, each with the same probability.",
    )
    steps: int = Field(default=50, ge=1, le=1000, description="Denoising steps.")
    guidance_scale: float = Field(
        default=7.5, ge=0, le=100, description="Classifier-free guidance; values up to 1 disable it."
    )
    negative_prompt: str = Field(default="", description="Negative prompt, the same for all samples.")
    scheduler: Scheduler = None
    refiner: ModelName | None = Field(
        default=None, description="A diffusers SDXL image-to-image pipeline that does the last steps. null: no refiner."
    )
    refiner_revision: Revision = None
    refiner_from: float = Field(
        default=0.8, gt=0, lt=1, description="Fraction of the noise schedule after which the refiner takes over."
    )
    resize: int | None = Field(
        default=None, ge=16, le=4096, description="Shorter side of the stored picture in pixels. null: as generated."
    )
    min_contrast: float = Field(
        default=2.0,
        ge=0,
        le=127,
        description="Pictures below it are rejected as blank. The largest standard deviation of a colour channel, on a "
        "scale of 0 to 255. 0 disables the check.",
    )
    accept_terms: bool = Field(
        default=False,
        json_schema_extra=SPEED,
        description="Do not warn that the model's terms limit what may be trained on its pictures.",
    )
    dtype: Dtype = "float32"
    device: Device = "auto"
    batch_size: BatchSize = 4

    @model_validator(mode="after")
    def _nothing_ignored(self) -> SynthesizeConfig:
        idle = self.changed(["refiner_revision", "refiner_from"])
        if self.refiner is None and idle:
            raise ValueError(f"{', '.join(idle)}: no effect without a refiner; set refiner or remove it")
        single = (self.height, self.width)
        if self.sizes and self.changed(["height", "width"]) and single not in self.sizes:
            raise ValueError(
                f"height {single[0]} and width {single[1]}: none of sizes; remove them, or add {list(single)} to sizes"
            )
        if repeated := [list(size) for size in dict.fromkeys(self.sizes) if self.sizes.count(size) > 1]:
            raise ValueError(f"sizes: {repeated[0]} is listed more than once; remove the others")
        for height, width in self.painted:
            if self.resize is not None and self.resize > min(height, width):
                raise ValueError(f"resize {self.resize} is larger than the picture, {width}x{height}; lower it")
        return self

    @property
    def painted(self) -> tuple[tuple[int, int], ...]:
        """The (height, width) of pictures as the pipeline draws them."""
        return self.sizes or ((self.height, self.width),)

    @property
    def stored(self) -> tuple[tuple[int, int], ...]:
        """The (height, width) of pictures in the shards, in the order of `painted`."""
        return tuple(self.resized(size) for size in self.painted)

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) at which a picture of `size` is stored."""
        if self.resize is None:
            return size
        factor = self.resize / min(size)
        return round(size[0] * factor), round(size[1] * factor)


class Synthesize(MapStage):
    """Caption → target picture `<id>.png`, RGB. With several sizes, its metadata has `size`, [height, width]."""

    name = "synthesize"
    upstream = ("caption",)
    config_class = SynthesizeConfig
    config: SynthesizeConfig
    columns: ClassVar[pa.Schema] = pa.schema([("seed", pa.int64())])
    reasons: ClassVar[Mapping[str, str]] = {
        "not_finite": "the picture contains NaN or infinity, which can happen with float16",
        "nsfw": "the model's safety checker flagged the picture",
        "blank": "the picture has a single colour",
    }
    settings: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "not_finite": ("dtype",),
        "nsfw": ("model",),
        "blank": ("min_contrast",),
    }

    @property
    def slice_size(self) -> int:
        return self.config.batch_size

    def batch_key(self, sample: Sample) -> tuple[int, int]:
        """The (height, width) at which the sample is painted: a draw by its id."""
        sizes = self.config.painted
        return sizes[sample_seed(self.seed, self.name, sample.id, _SIZE_DRAW) % len(sizes)]

    def models(self) -> dict[str, ModelSource]:
        c = self.config
        lookups = {"model": lambda: resolve("synthesize.model", c.model, c.revision, PIPELINE)}
        if (refiner := c.refiner) is not None:
            lookups["refiner"] = lambda: resolve("synthesize.refiner", refiner, c.refiner_revision, PIPELINE)
        return resolve_all(self.name, lookups)

    def check_models(self) -> list[str]:
        from bootpig.models.painters.checks import painter_problems

        sources = self.models()
        problems = [problem for source in sources.values() for problem in pipeline_problems(source)]
        return problems or painter_problems(
            sources["model"],
            self._brush(self.config.painted[0]),
            sizes=self.config.sizes,
            scheduler=self.config.scheduler,
            refiner=sources.get("refiner"),
        )

    def estimate(self, work: Workload) -> Estimate:
        c = self.config
        painted, kept = (fmean(height * width for height, width in sizes) for sizes in (c.painted, c.stored))
        share = 1.0 if c.refiner is None else c.refiner_from
        step = share * step_tflop(c.model, painted, c.guidance_scale)
        if c.refiner is not None:
            step += (1 - share) * sizes.refiner_tflop(c.refiner, painted) * (2 if c.guidance_scale > 1 else 1)
        rows = c.batch_size * (2 if c.guidance_scale > 1 else 1)
        memory = sizes.drawing_bytes(c.model, c.dtype, c.batch_size, rows, painted)
        if c.refiner is not None:
            memory += sizes.pipeline_bytes(c.refiner, c.dtype)
        return Estimate(
            SampleShape(kept, square=all(height == width for height, width in c.stored)),
            tflop=work.samples * (c.steps * step + sizes.vae_decode_tflop(c.model, painted)),
            stored_bytes=work.samples * PNG_BYTES * kept,
            memory=Memory(memory, "estimated"),
            assumptions=(sizes.ASSUMPTION, sizes.MEMORY_ASSUMPTION, f"pictures: PNG at {PNG_BYTES} bytes a pixel"),
        )

    def warnings(self) -> list[str]:
        from bootpig.models.pretrained.licences import fetch_licence, training_terms

        if self.config.accept_terms:
            return []
        found = [(source, training_terms(source.source, fetch_licence(source))) for source in self.models().values()]
        return [
            f"{source.field}: by the terms of {source.source!r}, its pictures may not be used to {terms.says} "
            f"({terms.page}); use another model, or set synthesize.accept_terms to true if that is no concern"
            for source, terms in found
            if terms is not None
        ]

    def setup(self) -> None:
        from bootpig.models.devices import torch_device, torch_dtype
        from bootpig.models.painters.loading import load_refiner, load_text_to_image
        from bootpig.models.painters.painter import Painter

        sources = self.models()
        device, dtype = torch_device("synthesize.device", self.config.device), torch_dtype(self.config.dtype)
        pipeline = load_text_to_image(sources["model"], device=device, dtype=dtype, scheduler=self.config.scheduler)
        self._painter: Painter = Painter("synthesize.model", pipeline)
        self._refiner: Painter | None = None
        if "refiner" in sources:
            refiner = load_refiner(sources["refiner"], pipeline, device=device, dtype=dtype)
            self._refiner = Painter("synthesize.refiner", refiner)

    def teardown(self) -> None:
        del self._painter, self._refiner

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        (size,) = {self.batch_key(sample) for sample in samples}
        brush, captions = self._brush(size), [sample.meta["caption"] for sample in samples]
        if self._refiner is None:
            painted = self._painter.paint(captions, self._generators(samples, 0), brush)
        else:
            end = self.config.refiner_from
            begun = self._painter.paint(
                captions, self._generators(samples, 0), brush, output_type="latent", denoising_end=end
            )
            painted = self._refiner.paint(
                captions, self._generators(samples, 1), brush, denoising_start=end, image=begun.pictures
            )
        seeds = [sample_seed(self.seed, self.name, sample.id) for sample in samples]
        judged = list(zip(samples, seeds, painted.pictures, painted.flagged, strict=True))
        return on_all_cores(lambda one: self._judge(*one), judged)

    def _brush(self, size: tuple[int, int]) -> Brush:
        from bootpig.models.painters.painter import Brush

        c = self.config
        return Brush(
            steps=c.steps,
            guidance_scale=c.guidance_scale,
            negative_prompt=c.negative_prompt,
            height=size[0],
            width=size[1],
        )

    def _generators(self, samples: Sequence[Sample], draw: int) -> list[torch.Generator]:
        """On the CPU, so that a sample's noise does not depend on the device or the batch."""
        import torch

        seeds = [sample_seed(self.seed, self.name, sample.id, draw) for sample in samples]
        return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    def _judge(self, sample: Sample, seed: int, picture: np.ndarray, flagged: bool) -> Sample:
        """Accept or reject a picture, HWC float32 in [0, 1]."""
        if not np.isfinite(picture).all():
            return sample.rejected("not_finite", seed=seed)
        if flagged:
            return sample.rejected("nsfw", seed=seed)
        pixels = (picture * 255).round().astype(np.uint8)
        if pixels.std(axis=(0, 1)).max() < self.config.min_contrast:
            return sample.rejected("blank", seed=seed)
        image = Image.fromarray(pixels)
        height, width = self.config.resized((image.height, image.width))
        if self.config.resize is not None:
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        meta = {"size": [height, width]} if len(self.config.sizes) > 1 else {}
        return sample.ok(files={"png": encode_png(image)}, meta=meta, seed=seed)
