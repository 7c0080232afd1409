"""The settings of the pictures stage: where the pictures are, and where their captions come from."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bootpig.stages.caption.llm.chat import ChatConfig
from bootpig.stages.engine.contract import EXTENT, MODEL, StageConfig

PROMPT = (
    "Describe this photograph in one caption of the form\n"
    "A photo of a [object], [position in the scene] [scene]\n"
    "The object is the main subject of the picture, with an adjective or two that tell what it looks like. It is "
    "finite and solid, something that could be picked up, walked around or driven: never a lake, a field, the sky. It "
    "stands between 'A photo of a' and the first comma, and nothing else does. The caption has fewer than 18 words and "
    "says only what can be seen. An example: A photo of a faded Polaroid camera, lying on a sun-warmed picnic blanket"
)
"""Asks for a caption as described in BootPIG, section 3.3."""


class VisionConfig(ChatConfig):
    """An endpoint with a vision model, which sees a picture and writes its caption."""

    section: ClassVar[str] = "pictures.openai"

    prompt: str = Field(default=PROMPT, min_length=1, description="The text beside the picture in the user message.")
    temperature: float | None = Field(default=0.2, ge=0, le=2, description="Sampling temperature. null: not sent.")


class PicturesConfig(StageConfig):
    """Real pictures: a folder, webdataset shards or Parquet files."""

    url: str = Field(
        min_length=1,
        json_schema_extra=MODEL,
        description="A folder, or one .tar or .parquet file or several by a pattern (data/train-*.parquet): a local "
        "path or any fsspec URL (s3://, hf://datasets/…). "
        "A unit depends on the content of its own pictures, not on where they are.",
    )
    format: Literal["folder", "webdataset", "parquet"] = Field(
        default="folder",
        json_schema_extra=MODEL,
        description="folder: picture files in folders of any depth. webdataset: .tar files. parquet: .parquet files.",
    )
    count: int = Field(
        ge=1,
        le=1_000_000_000,
        json_schema_extra=EXTENT,
        description="Number of pictures, the first ones in order, rounded up to whole units where there are more. "
        "Increasing it keeps existing data.",
    )
    size: int = Field(
        default=512,
        ge=16,
        le=4096,
        multiple_of=8,
        description="Side of the stored picture in pixels: the middle square of a picture, scaled.",
    )
    min_side: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Pictures whose shorter side has fewer pixels are rejected as too_small. null: those that would "
        "have to be enlarged to `size`.",
    )
    captions: Literal["given", "openai"] = Field(
        default="given",
        description="given: beside the pictures, in .txt or .json files, in metadata.jsonl or .parquet, in a column. "
        "openai: written by a vision model behind an OpenAI-compatible endpoint.",
    )
    image_column: str = Field(
        default="image",
        min_length=1,
        json_schema_extra=MODEL,
        description="format parquet: the column with the pictures, encoded as PNG, JPEG and so on.",
    )
    caption_column: str = Field(
        default="caption",
        min_length=1,
        json_schema_extra=MODEL,
        description="captions given: the column of a table, or the key in JSON, with the caption.",
    )
    object_column: str = Field(
        default="object",
        min_length=1,
        json_schema_extra=MODEL,
        description="captions given: the column or key with the name of the picture's subject, if there is one. "
        "Otherwise the caption must have the form 'A photo of a <object>, …'.",
    )
    openai: VisionConfig | None = Field(
        default=None, description="captions openai: the endpoint, the prompt, and spending limits."
    )

    @field_validator("url")
    @classmethod
    def _runs_nothing(cls, url: str) -> str:
        scheme = url.partition(":")[0].strip().casefold()
        if scheme in ("pipe", "shell", "cmd") or "pipe:" in url.casefold():
            raise ValueError("would run a command; give a folder, or an fsspec URL such as s3://bucket/pictures")
        return url

    @model_validator(mode="after")
    def _nothing_ignored(self) -> PicturesConfig:
        problems = []
        if self.captions == "openai" and self.openai is None:
            problems.append("captions 'openai' needs openai: {model: …} at least")
        if self.captions != "openai" and self.openai is not None:
            problems.append("openai is used by captions 'openai' only; remove it, or set captions to openai")
        if self.format != "parquet":
            problems += [
                f"{name} is used by format 'parquet' only; remove it" for name in self.changed(["image_column"])
            ]
        if self.captions == "openai":
            unread = self.changed(["caption_column", "object_column"])
            problems += [f"{name} is used by captions 'given' only; remove it" for name in unread]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def smallest(self) -> int:
        """The shorter side in pixels that a picture must have."""
        return self.size if self.min_side is None else self.min_side
