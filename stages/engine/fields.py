"""Config fields that several stages share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bootpig.stages.engine.contract import MODEL, SPEED

ModelName = Annotated[
    str,
    Field(min_length=1, json_schema_extra=MODEL, description="A local folder or file, or a hub id."),
]

Revision = Annotated[
    str | None,
    Field(json_schema_extra=MODEL, description="Branch, tag or commit of a hub id. null for a local path."),
]

Device = Annotated[
    str,
    Field(
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        json_schema_extra=SPEED,
        description="Device of the models: auto (a GPU if there is one), cpu, cuda, cuda:1 or mps. Affects only speed.",
    ),
]

BatchSize = Annotated[
    int,
    Field(
        ge=1,
        le=4096,
        json_schema_extra=SPEED,
        description="Samples per batch. Does not affect seeds and noise; pixels may differ within rounding.",
    ),
]

Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"],
    Field(description="Dtype in which the models compute. Changes the output."),
]

Scheduler = Annotated[
    str | None,
    Field(
        pattern=r"^[A-Za-z0-9]+Scheduler$",
        description="A diffusers scheduler class, such as UniPCMultistepScheduler. null: the model's own.",
    ),
]
