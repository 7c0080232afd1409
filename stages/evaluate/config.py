"""The settings of what is compared: a published benchmark, and other methods on the same captions."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, field_validator, model_validator

from bootpig.stages.engine.contract import ADDED
from bootpig.stages.evaluate.measures.config import MeasuresConfig
from bootpig.stages.evaluate.rivals.config import RivalConfig, different_names
from bootpig.stages.evaluate.subjects import Benchmark
from bootpig.stages.sampling import Sampling


class ComparedConfig(MeasuresConfig):
    """Which benchmark is drawn, and which rivals draw it too."""

    benchmark: Benchmark | None = Field(
        default=None,
        json_schema_extra=ADDED,
        description="What `subjects` is: dreambooth or dreambench++, the published folder as it is, with its own "
        "classes and prompts. Its references are cut out. null: a folder of subjects.",
    )
    rivals: tuple[RivalConfig, ...] = Field(
        default=(),
        json_schema_extra=ADDED,
        description="Other methods that draw the same captions from the same seeds, see docs/rivals.md.",
    )

    pooling: Literal["softmax", "argmax", "average", "concat"] | None = Field(
        default=None,
        json_schema_extra=ADDED,
        description="How the outputs for several references are combined: softmax (paper), argmax (published code), or "
        "the paper's ablations average and concat. null: as the trained model says.",
    )

    @field_validator("rivals")
    @classmethod
    def _different_names(cls, rivals: tuple[RivalConfig, ...]) -> tuple[RivalConfig, ...]:
        return different_names(rivals)

    @model_validator(mode="after")
    def _own_prompts(self) -> ComparedConfig:
        if self.benchmark is not None and self.prompts:
            raise ValueError(f"prompts: {self.benchmark} has its own; remove them, or set benchmark to null")
        if self.benchmark is not None and self.compared is not None:
            raise ValueError(f"compared: {self.benchmark} says what is compared with; remove it")
        return self

    @model_validator(mode="after")
    def _pools_several(self) -> ComparedConfig:
        if self.pooling is not None and self.references == 1:
            raise ValueError("pooling: no effect on one reference; set references to 2 or more, or remove it")
        return self

    def sampling(self) -> Sampling:
        """How pictures are drawn."""
        return replace(super().sampling(), pooling=self.pooling)

    @property
    def needs_segment(self) -> bool:
        """Whether subjects are cut out, for references or for a measure."""
        return self.benchmark is not None or self.needs_masks
