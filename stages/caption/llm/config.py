"""Settings of `caption.source: openai`: the prompt, how many captions a request asks for, batches."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from bootpig.stages.caption.llm.chat import BatchedConfig
from bootpig.stages.engine.contract import SPEED

PROMPT = (
    "Write {count} captions of photographs, each in the form\n"
    "A photo of a [object], [position in the scene] [scene]\n"
    "Each caption shows one main object, with an adjective or two where they fit. The object is finite and solid, "
    "something that could be picked up, walked around or driven: never a lake, a field, the sky. It stands between "
    "'A photo of a' and the first comma, and nothing else does. Let objects, positions and scenes differ from one "
    "caption to the next. An example: A photo of a faded Polaroid camera, lying on a sun-warmed picnic blanket"
)
"""Requests captions as described in BootPIG, section 3.3."""

STEERING = "Choose objects other than these, which are covered already: {objects}."


class OpenAIConfig(BatchedConfig):
    """An endpoint that writes captions without pictures."""

    section: ClassVar[str] = "caption.openai"
    blanks: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ("count",), "steering": ("objects",)}

    prompt: str = Field(
        default=PROMPT, min_length=1, description="The user message. {count} is the number of captions to write."
    )
    steering: str = Field(
        default=STEERING, description="Added to the prompt. {objects} are subjects that already have captions."
    )
    steering_objects: int = Field(
        default=100, ge=0, le=2000, description="Maximum number of subjects in `steering`. 0: no steering."
    )
    captions_per_request: int = Field(default=50, ge=1, le=1000, description="Captions per request.")
    near_duplicate: float = Field(
        default=0.9,
        gt=0.5,
        le=1,
        description="Two captions of one subject are near-duplicates if at least this fraction of their words is the "
        "same, in the same order. 1: only captions that are equal after normalisation are duplicates.",
    )
    batch_units: int = Field(
        default=50, ge=1, le=10_000, json_schema_extra=SPEED, description="Units whose requests share a batch."
    )
