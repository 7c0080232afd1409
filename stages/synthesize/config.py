"""The settings of the synthesize stage: who draws the pictures, how large they are, and how a pipeline samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bootpig.stages.engine.contract import ADDED, MODEL, SPEED, StageConfig
from bootpig.stages.engine.fields import BatchSize, Device, Dtype, ModelName, Revision, Scheduler
from bootpig.stages.synthesize.endpoint import ImagesConfig

FIELDS = {
    "diffusers": (
        *("model", "revision", "steps", "guidance_scale", "negative_prompt", "scheduler"),
        *("refiner", "refiner_revision", "refiner_from", "accept_terms", "dtype", "device", "batch_size"),
    ),
    "openai": ("openai",),
}
"""The fields of each source."""

Side = Annotated[int, Field(ge=16, le=4096, multiple_of=8)]


class SynthesizeConfig(StageConfig):
    """Who draws the pictures, their sizes, and the sampling settings of a pipeline."""

    source: Literal["diffusers", "openai"] = Field(
        default="diffusers",
        json_schema_extra=ADDED,
        description="diffusers: a pipeline on this machine. openai: an OpenAI-compatible images endpoint.",
    )
    openai: ImagesConfig | None = Field(
        default=None,
        json_schema_extra=ADDED,
        description="source openai: the endpoint, what is asked of it, and spending limits.",
    )
    model: ModelName | None = Field(
        default=None,
        json_schema_extra=MODEL,
        description="source diffusers: a text-to-image pipeline, a local folder or a hub id.",
    )
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
    def _source_has_its_fields(self) -> SynthesizeConfig:
        problems = [
            f"{name} is used by source {source!r} only; remove it"
            for source, names in FIELDS.items()
            for name in self.changed(names)
            if source != self.source
        ]
        if self.source == "diffusers" and self.model is None:
            problems.append("source 'diffusers' needs model: a text-to-image pipeline, a local folder or a hub id")
        if self.source == "openai" and self.openai is None:
            problems.append("source 'openai' needs openai: {model: …} at least")
        if problems:
            raise ValueError("; ".join(problems))
        return self

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
