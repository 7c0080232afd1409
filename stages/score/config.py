"""The settings of the score stage: which models score the samples, and so which scores there are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from bootpig.stages.engine.contract import ADDED, MODEL, StageConfig
from bootpig.stages.engine.fields import BatchSize, Device, ModelName, Revision
from bootpig.stages.score.rubric.config import RubricConfig

Embedding = Literal["clip", "dino"]
"""An embedding of whole pictures in score's payload."""

NEEDS = {
    "caption_score": "clip",
    "object_score": "clip",
    "head_score": "head",
    "detections": "detector",
    "safety": "safety",
    "rubric": "rubric",
    "clip": "clip",
    "dino": "dino",
}
"""Score or embedding → the setting without which it is not made. All other scores are always made."""


class ScoreConfig(StageConfig):
    """The models that score. A score whose model is null is left out."""

    clip: ModelName | None = Field(
        default="openai/clip-vit-base-patch32",
        description="A CLIPModel, for caption_score and object_score. null: leave them out.",
    )
    clip_revision: Revision = None
    dino: ModelName | None = Field(
        default="facebook/dino-vits16",
        description="A ViT whose class token is stored, to find near-duplicates. null: leave it out.",
    )
    dino_revision: Revision = None
    head: str | None = Field(
        default=None,
        min_length=1,
        json_schema_extra=MODEL,
        description="A linear layer on CLIP's normalised picture embeddings, for head_score, such as an aesthetic "
        "predictor: a .safetensors or .pth file with one weight (1, width) and perhaps a bias, or its http(s) URL.",
    )
    head_sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        json_schema_extra=MODEL,
        description="sha256 of that file, 64 hex digits. Required for a URL, optional for a local file.",
    )
    detector: ModelName | None = Field(
        default=None,
        description="A zero-shot detector as in segment.detector, for detections: how many things in the picture are "
        "what the object phrase says. null: leave it out.",
    )
    detector_revision: Revision = None
    query: str = Field(default="{object}", description="The detector's query. {object} is the object phrase.")
    detection_threshold: float = Field(
        default=0.2, gt=0, lt=1, description="A box counts if it scores above it. Compare segment.min_score."
    )
    safety: ModelName | None = Field(
        default=None,
        json_schema_extra=MODEL,
        description="A StableDiffusionSafetyChecker, for safety, such as CompVis/stable-diffusion-safety-checker. "
        "null: leave it out.",
    )
    safety_revision: Revision = None
    rubric: RubricConfig | None = Field(
        default=None,
        json_schema_extra=ADDED,
        description="A vision model behind an OpenAI-compatible endpoint that rates each sample, for rubric. null: "
        "leave it out.",
    )
    device: Device = "auto"
    batch_size: BatchSize = 32

    @field_validator("query")
    @classmethod
    def _query_names_the_object(cls, query: str) -> str:
        if "{object}" not in query:
            raise ValueError(f"{query!r} has no {{object}}; insert it in place of the object phrase")
        return query

    @model_validator(mode="after")
    def _nothing_ignored(self) -> ScoreConfig:
        if self.head is not None and self.clip is None:
            raise ValueError("head: reads CLIP's embeddings, but clip is null; set clip to the model of the head")
        idle = [] if self.clip is not None else self.changed(["clip_revision"])
        idle += [] if self.dino is not None else self.changed(["dino_revision"])
        idle += [] if self.head is not None else self.changed(["head_sha256"])
        idle += [] if self.detector is not None else self.changed(["detector_revision", "query", "detection_threshold"])
        idle += [] if self.safety is not None else self.changed(["safety_revision"])
        if idle:
            raise ValueError(f"{', '.join(idle)}: no effect without its model; set the model or remove it")
        return self

    def lacks(self, score: str) -> str | None:
        """The setting that is null and without which a score or an embedding is not made. None if it is made."""
        needed = NEEDS.get(score)
        made: dict[str, object] = {"clip": self.clip, "head": self.head, "detector": self.detector, "dino": self.dino}
        made |= {"safety": self.safety, "rubric": self.rubric}
        return needed if needed is not None and made[needed] is None else None
