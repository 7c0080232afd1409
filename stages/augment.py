"""The augment stage: cuts the subject out of the target and makes K randomly augmented references on white."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import pyarrow as pa
from PIL import Image, ImageEnhance
from pydantic import Field, model_validator

from bootpig.stages.engine.contract import ADDED, MapStage, Sample, StageConfig, sample_seed
from bootpig.stages.engine.estimates import Estimate, Workload
from bootpig.stages.engine.memory import NO_DEVICE
from bootpig.stages.pictures import PNG_BYTES, decode_cut_out, encode_png, on_all_cores

WHITE = (255, 255, 255)

REFERENCE_PNG_BYTES = 0.6
"""A pixel, on average: a reference is white around its subject."""

Share = Annotated[float, Field(gt=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=1)]


class AugmentConfig(StageConfig):
    """How references may differ from their target. The defaults follow the paper: resize, move, flip."""

    enabled: bool = Field(
        default=True,
        description="If false, make one reference with the subject unchanged and centred (the paper's ablation).",
    )
    references: int = Field(
        default=4, ge=1, le=64, description="References per sample. Training draws one of them each time."
    )
    references_from: Literal["cut_out", "views", "both"] = Field(
        default="cut_out",
        json_schema_extra=ADDED,
        description="What references are made of: the subject's own cut-out (paper), its views in turn, or first the "
        "cut-out and then the views. A sample without a view always has its cut-out.",
    )
    size: int | None = Field(
        default=None,
        ge=16,
        le=4096,
        multiple_of=8,
        description="Side of references in pixels, to which square targets are resized too. Targets of another shape "
        "keep their size. null: references have the size of a square target, or about as many pixels as another.",
    )
    scale: tuple[Share, Share] = Field(
        default=(0.55, 0.95),
        description="Minimum and maximum longer side of the subject, as a fraction of the reference's side.",
    )
    move: bool = Field(default=True, description="Place the subject at a random position. If false, centre it.")
    flip: float = Field(default=0.5, ge=0, le=1, description="Probability of a horizontal flip.")
    jitter_probability: float = Field(
        default=0.0, ge=0, le=1, description="Probability of colour jitter. The published code uses 0.1."
    )
    jitter: tuple[Strength, Strength, Strength, Annotated[float, Field(ge=0, le=0.5)]] = Field(
        default=(0.2, 0.2, 0.2, 0.05),
        description="Maximum change of brightness, contrast, saturation (factors 1 ± x) and hue (fraction of a turn).",
    )
    erase_probability: float = Field(
        default=0.0, ge=0, le=1, description="Probability of erasing a rectangle. The published code uses 0.4."
    )
    erase_area: tuple[Share, Share] = Field(
        default=(0.02, 0.25),
        description="Minimum and maximum area of the rectangle, as a fraction of the subject's box.",
    )

    @model_validator(mode="after")
    def _ranges_in_order(self) -> AugmentConfig:
        for name in ("scale", "erase_area"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} [{low}, {high}]: the minimum must come first; swap them")
        return self

    @property
    def middle_scale(self) -> float:
        """The middle of the `scale` range, used to prepare references for inference."""
        return sum(self.scale) / 2


class Augment(MapStage):
    """Target and mask → `<id>.target.png` and `<id>.reference0.png` …, RGB. References are square, as in the paper."""

    name = "augment"
    upstream = ("view",)
    config_class = AugmentConfig
    config: AugmentConfig
    columns: ClassVar[pa.Schema] = pa.schema([])
    reasons: ClassVar[Mapping[str, str]] = {}

    @property
    def slice_size(self) -> int:
        return 16

    def estimate(self, work: Workload) -> Estimate:
        reference = work.above.pixels if self.config.size is None else float(self.config.size**2)
        target = reference if work.above.square else work.above.pixels
        references = self.config.references if self.config.enabled else 1
        return Estimate(
            replace(work.above, pixels=target, references=references),
            stored_bytes=work.samples * (target * PNG_BYTES + reference * references * REFERENCE_PNG_BYTES),
            memory=NO_DEVICE,
            assumptions=(f"references: PNG at {REFERENCE_PNG_BYTES} bytes a pixel",),
        )

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        return on_all_cores(self._augment, samples)

    def _augment(self, sample: Sample) -> Sample:
        picture = decode_cut_out(sample.files)
        size = self.config.size or reference_side(picture.height, picture.width)
        target = sample.files["png"]
        if picture.width == picture.height != size:
            target = encode_png(picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))
        if self.config.enabled:
            seeds = [sample_seed(self.seed, self.name, sample.id, k) for k in range(self.config.references)]
            sources = self._sources(picture, sample)
            references = [
                draw_reference(sources[k % len(sources)], size, self.config, random.Random(seed))
                for k, seed in enumerate(seeds)
            ]
        else:
            references = [prepare_reference(self._sources(picture, sample)[0], size, self.config.middle_scale)]
        files = {f"reference{k}.png": encode_png(reference) for k, reference in enumerate(references)}
        return sample.ok(files={"target.png": target, **files})

    def _sources(self, picture: Image.Image, sample: Sample) -> list[Image.Image]:
        """The cut-outs that references are made of, RGBA, in turn."""
        views = [
            decode_cut_out({"png": data, "mask.json": sample.files[f"{name.removesuffix('.png')}.mask.json"]})
            for name, data in sorted(sample.files.items())
            if name.startswith("view") and name.endswith(".png")
        ]
        if self.config.references_from == "cut_out" or not views:
            return [picture]
        return views if self.config.references_from == "views" else [picture, *views]


def reference_side(height: int, width: int) -> int:
    """The side of the square of about as many pixels as a target, in pixels: a multiple of the greatest common divisor
    of the target's sides, so that networks that take the target take the reference, too."""
    unit = math.gcd(height, width)
    return round(math.sqrt(height * width) / unit) * unit


def prepare_reference(image: Image.Image, size: int, scale: float) -> Image.Image:
    """A reference without augmentation: the subject cut out and centred on white.

    Args:
        image: RGBA picture with the subject's mask as alpha.
        size: side of the result in pixels.
        scale: the subject's longer side as a fraction of `size`.

    Returns:
        RGB, `size`×`size`.

    Raises:
        ValueError: `image` is not RGBA, or nothing in it is opaque.
    """
    subject = _resize(_cut_out(image), size, scale)
    return _place(subject, size, ((size - subject.width) // 2, (size - subject.height) // 2))


def draw_reference(image: Image.Image, size: int, config: AugmentConfig, rng: random.Random) -> Image.Image:
    """One augmented reference: crop to the mask, resize, flip, colour jitter, place on white, erase.

    Args:
        image: RGBA picture with the subject's mask as alpha.
        size: side of the result in pixels.
        config: the ranges and probabilities to draw from.
        rng: random generator; its state is advanced.

    Returns:
        RGB, `size`×`size`.

    Raises:
        ValueError: `image` is not RGBA, or nothing in it is opaque.
    """
    subject = _cut_out(image)
    subject = _resize(subject, size, rng.uniform(*config.scale))
    if rng.random() < config.flip:
        subject = subject.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < config.jitter_probability:
        subject = _jitter(subject, config.jitter, rng)
    across, down = (rng.random(), rng.random()) if config.move else (0.5, 0.5)
    corner = (round(across * (size - subject.width)), round(down * (size - subject.height)))
    reference = _place(subject, size, corner)
    if rng.random() < config.erase_probability:
        _erase(reference, corner, subject.size, config.erase_area, rng)
    return reference


def _cut_out(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        raise ValueError(f"a reference needs its mask as alpha, but the picture is {image.mode}; give RGBA")
    box = image.getchannel("A").getbbox()
    if box is None:
        raise ValueError("a reference needs a subject, but its mask is empty; give another picture")
    return image.crop(box)


def _resize(subject: Image.Image, size: int, scale: float) -> Image.Image:
    """Resize to a longer side of `scale`·`size`. Pillow weights colours by alpha, so no background bleeds in."""
    factor = scale * size / max(subject.size)
    width, height = (min(size, max(1, round(side * factor))) for side in subject.size)
    return subject.resize((width, height), Image.Resampling.LANCZOS)


def _place(subject: Image.Image, size: int, corner: tuple[int, int]) -> Image.Image:
    canvas = Image.new("RGB", (size, size), WHITE)
    canvas.paste(subject, corner, subject)
    return canvas


def _jitter(subject: Image.Image, strengths: tuple[float, float, float, float], rng: random.Random) -> Image.Image:
    """Change brightness, contrast, saturation and hue in random order. Alpha is kept."""
    alpha, colours = subject.getchannel("A"), subject.convert("RGB")
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for channel in rng.sample(range(4), 4):
        change = rng.uniform(-strengths[channel], strengths[channel])
        if channel < 3:
            colours = enhancers[channel](colours).enhance(1 + change)
        else:
            hue, saturation, value = colours.convert("HSV").split()
            turned = hue.point([(level + round(change * 256)) % 256 for level in range(256)])
            colours = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
    colours.putalpha(alpha)
    return colours


def _erase(
    reference: Image.Image,
    corner: tuple[int, int],
    box: tuple[int, int],
    area: tuple[float, float],
    rng: random.Random,
) -> None:
    """Fill a random rectangle in the subject's box with white, in place. Its aspect ratio is close to the box's."""
    share, tilt = rng.uniform(*area), 2 ** rng.uniform(-1, 1)
    width = max(1, min(box[0], round(box[0] * (share * tilt) ** 0.5)))
    height = max(1, min(box[1], round(box[1] * (share / tilt) ** 0.5)))
    x = corner[0] + round(rng.random() * (box[0] - width))
    y = corner[1] + round(rng.random() * (box[1] - height))
    reference.paste(WHITE, (x, y, x + width, y + height))
