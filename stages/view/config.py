"""The settings of the view stage."""

from __future__ import annotations

from string import Formatter

from pydantic import Field, field_validator

from bootpig.stages.engine.contract import MODEL, StageConfig
from bootpig.stages.engine.fields import BatchSize, Device, Dtype, ModelName, Revision
from bootpig.stages.segment.stage import SegmentConfig

BLANKS = ("caption", "object", "scene")


class ViewConfig(StageConfig):
    """What draws the views, how many, and which are kept."""

    model: str | None = Field(
        default=None,
        min_length=1,
        json_schema_extra=MODEL,
        description="A trained BootPIG (its folder, a run of this store, or latest), or a diffusers editing pipeline "
        "(a folder or a hub id). null: the model of a first round without views, which is made if it is missing.",
    )
    revision: Revision = None
    count: int = Field(default=1, ge=1, le=8, description="Views to draw per sample, each in another scene.")
    prompt: str = Field(
        default="{caption}",
        min_length=1,
        description="What to draw. {caption} is the caption with the other scene, {object} its object phrase, {scene} "
        "the other position and scene. Editing pipelines want an instruction: 'Show the same {object} {scene}'.",
    )
    steps: int = Field(default=50, ge=1, le=1000, description="Denoising steps.")
    guidance_scale: float = Field(default=7.5, ge=0, le=100, description="Text guidance scale.")
    reference_guidance_scale: float = Field(
        default=5.0,
        ge=0,
        le=100,
        description="Reference guidance scale of a BootPIG model. Editing pipelines have none.",
    )
    segment: SegmentConfig | None = Field(
        default=None, description="Models and filters that cut out the views. null: those of the segment stage."
    )
    dino: ModelName = Field(
        default="facebook/dino-vits16", description="A ViT whose class token compares a view with its subject."
    )
    dino_revision: Revision = None
    min_identity: float = Field(
        default=0.5,
        ge=-1,
        le=1,
        description="Minimum cosine similarity of the subject in a view and in the target, both cut out; else the view "
        "is dropped.",
    )
    required: bool = Field(
        default=False, description="Reject samples without a view. If false, they keep their own cut-out alone."
    )
    dtype: Dtype = "float32"
    device: Device = "auto"
    batch_size: BatchSize = 16

    @field_validator("prompt")
    @classmethod
    def _blanks(cls, text: str) -> str:
        try:
            found = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
        except ValueError as error:
            raise ValueError(f"{error}; write {{{{ and }}}} for literal braces") from None
        if found - set(BLANKS):
            raise ValueError(f"only the blanks {', '.join(f'{{{blank}}}' for blank in BLANKS)} are allowed")
        if not found & {"caption", "scene"}:
            raise ValueError("needs {caption} or {scene}; else every view would show the same scene")
        return text
