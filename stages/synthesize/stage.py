"""The synthesize stage: one target picture per caption, drawn by a diffusers text-to-image pipeline or an endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image

from bootpig.models.painters.costs import step_tflop
from bootpig.models.pretrained import sizes
from bootpig.models.pretrained.inspection import pipeline_problems
from bootpig.models.pretrained.source import PIPELINE, ModelSource
from bootpig.models.pretrained.sources import resolve, resolve_all
from bootpig.stages.caption.llm.faults import FAULTS as REQUEST_FAULTS
from bootpig.stages.caption.llm.spending import Spent
from bootpig.stages.engine.contract import MapStage, Sample, SourceContext, sample_seed
from bootpig.stages.engine.estimates import Estimate, SampleShape, Workload
from bootpig.stages.engine.memory import NO_DEVICE, Memory
from bootpig.stages.pictures import PNG_BYTES, encode_png, on_all_cores
from bootpig.stages.synthesize.answers import FAULTS as ANSWER_FAULTS
from bootpig.stages.synthesize.answers import REJECTIONS
from bootpig.stages.synthesize.config import SynthesizeConfig
from bootpig.stages.synthesize.endpoint import ImagesConfig
from bootpig.stages.synthesize.requests import draw

if TYPE_CHECKING:
    import torch

    from bootpig.models.painters.painter import Brush, Painter


_SIZE_DRAW = 2
"""The number of the draw that chooses a sample's size, see `sample_seed`. 0 and 1 are the noise of base and refiner."""


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
        **REJECTIONS,
        **ANSWER_FAULTS,
        **REQUEST_FAULTS,
    }
    settings: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "not_finite": ("dtype",),
        "nsfw": ("model",),
        "blank": ("min_contrast",),
        "content_filter": ("openai",),
        "wrong_size": ("height", "width", "sizes", "resize"),
    }

    @property
    def slice_size(self) -> int:
        return self.config.batch_size if self.config.source == "diffusers" else 1

    @property
    def sequential(self) -> bool:
        """With an endpoint, so that the spending cap holds over all units."""
        return self.config.source == "openai"

    def device(self) -> str:
        return self.config.device if self.config.source == "diffusers" else "cpu"

    def check_ready(self) -> None:
        if self.config.openai is not None:
            self.config.openai.check_key()

    def batch_key(self, sample: Sample) -> tuple[int, int]:
        """The (height, width) at which the sample is painted: a draw by its id."""
        sizes = self.config.painted
        return sizes[sample_seed(self.seed, self.name, sample.id, _SIZE_DRAW) % len(sizes)]

    def models(self) -> dict[str, ModelSource]:
        c = self.config
        if (model := c.model) is None:
            return {}
        lookups = {"model": lambda: resolve("synthesize.model", model, c.revision, PIPELINE)}
        if (refiner := c.refiner) is not None:
            lookups["refiner"] = lambda: resolve("synthesize.refiner", refiner, c.refiner_revision, PIPELINE)
        return resolve_all(self.name, lookups)

    def check_models(self) -> list[str]:
        from bootpig.models.painters.checks import painter_problems

        if not (sources := self.models()):
            return []
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
        if c.openai is not None:
            return self._requested(c.openai, work, painted, kept)
        assert c.model is not None
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

    def _requested(self, openai: ImagesConfig, work: Workload, painted: float, kept: float) -> Estimate:
        """The estimate with an endpoint. `painted`, `kept`: pixels of a picture as it is drawn and stored."""
        spent = Spent(requests=work.samples, asked=work.samples)
        lines = [
            f"pictures: PNG at {PNG_BYTES} bytes a pixel",
            f"pictures: {work.samples} requests to {openai.model!r}, no picture twice",
        ]
        if (usd := openai.usd(spent)) is None:
            lines.append("pictures cost nothing, as synthesize.openai.price_per_image is not given")
        else:
            lines[1] += f", {openai.price_per_image:g} USD each"
        if capped := openai.over_cap(spent):
            lines.append(f"pictures: synthesize.openai.{capped} is less than that; units above it stay pending")
        return Estimate(
            SampleShape(kept, square=all(height == width for height, width in self.config.stored)),
            stored_bytes=work.samples * PNG_BYTES * (painted + kept),
            usd=usd or 0.0,
            memory=NO_DEVICE,
            details={"images": {"requests": work.samples, "cost_usd": usd}},
            assumptions=tuple(lines),
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

        self._painter: Painter | None = None
        self._refiner: Painter | None = None
        if not (sources := self.models()):
            return
        device, dtype = torch_device("synthesize.device", self.config.device), torch_dtype(self.config.dtype)
        pipeline = load_text_to_image(sources["model"], device=device, dtype=dtype, scheduler=self.config.scheduler)
        self._painter = Painter("synthesize.model", pipeline)
        if "refiner" in sources:
            refiner = load_refiner(sources["refiner"], pipeline, device=device, dtype=dtype)
            self._refiner = Painter("synthesize.refiner", refiner)

    def teardown(self) -> None:
        del self._painter, self._refiner

    def request(self, samples: Sequence[Sample], unit: int, context: SourceContext) -> list[Sample]:
        """With an endpoint, this draws the pictures, and `process` has nothing left to do."""
        if self.config.source == "diffusers":
            return list(samples)
        sizes = [self.batch_key(sample) for sample in samples]
        return draw(self.config, self.seed, samples, sizes, unit, context, self._accepted)

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        if self._painter is None:
            return list(samples)
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
        image = Image.fromarray((picture * 255).round().astype(np.uint8))
        if self._is_blank(image):
            return sample.rejected("blank", seed=seed)
        height, width = self.config.resized((image.height, image.width))
        if self.config.resize is not None:
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        return self._painted(sample, seed, image)

    def _accepted(self, sample: Sample, seed: int | None, image: Image.Image) -> Sample:
        """Accept or reject a picture of an endpoint, RGB, of the stored size."""
        return sample.rejected("blank", seed=seed) if self._is_blank(image) else self._painted(sample, seed, image)

    def _is_blank(self, image: Image.Image) -> bool:
        return bool(np.asarray(image).std(axis=(0, 1)).max() < self.config.min_contrast)

    def _painted(self, sample: Sample, seed: int | None, image: Image.Image) -> Sample:
        height, width = image.height, image.width
        meta = {"size": [height, width]} if len(self.config.sizes) > 1 else {}
        return sample.ok(files={"png": encode_png(image)}, meta=meta, seed=seed)
