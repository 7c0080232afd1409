"""The settings of the select stage: a minimum and a maximum for each score, near-duplicates, balance, a cap."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from bootpig.stages.engine.contract import ADDED, StageConfig
from bootpig.stages.score.config import Embedding

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def _limit(value: Any) -> Any:
    """A finite number, or a percentage such as `5%` in one spelling."""
    if value is None or isinstance(value, bool):  # truth values are refused for all numbers
        return value
    text = value.strip() if isinstance(value, str) else None
    if text is not None and (percent := _PERCENT.fullmatch(text)):
        share = float(percent[1])
        if not 0 < share < 100:
            raise ValueError("must be between 0% and 100%")
        return f"{share:.10g}%"
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("must be a number, or a share of the samples such as 5%")
    return number


Limit = Annotated[float | str, BeforeValidator(_limit)]
"""A score, or a quantile of it over all scored samples: `5%` is the value that 5 % of them are below."""

Side = Literal["min", "max"]


def quantile(limit: float | str) -> float | None:
    """The quantile in [0, 1] that a limit names. None if it is a score."""
    return float(limit[:-1]) / 100 if isinstance(limit, str) else None


def _threshold(text: str, added: bool = False) -> Any:
    """`added`: the score is younger than stores that exist, see `ADDED`."""
    text = f"{text} A number, or a quantile of all scored samples such as 5%."
    return Field(default=None, description=text, json_schema_extra=ADDED if added else None)


class SelectConfig(StageConfig):
    """Which samples train reads. A sample must pass all thresholds, with its score at the limit or inside."""

    min_caption_score: Limit | None = _threshold("Minimum similarity of picture and caption by CLIP.")
    max_caption_score: Limit | None = _threshold("Maximum similarity of picture and caption by CLIP.")
    min_object_score: Limit | None = _threshold("Minimum similarity of cut-out and object phrase by CLIP.")
    max_object_score: Limit | None = _threshold("Maximum similarity of cut-out and object phrase by CLIP.")
    min_head_score: Limit | None = _threshold("Minimum output of score.head.")
    max_head_score: Limit | None = _threshold("Maximum output of score.head.")
    min_sharpness: Limit | None = _threshold("Minimum sharpness around the subject, from 0 to 1.")
    max_sharpness: Limit | None = _threshold("Maximum sharpness around the subject, from 0 to 1.")
    min_outline: Limit | None = _threshold("Minimum strength of edges on the mask's outline, compared with around it.")
    max_outline: Limit | None = _threshold("Maximum strength of edges on the mask's outline, compared with around it.")
    min_area: Limit | None = _threshold("Minimum area of the subject as a fraction of the picture.")
    max_area: Limit | None = _threshold("Maximum area of the subject as a fraction of the picture.")
    min_center_x: Limit | None = _threshold("Minimum position of the subject from the left, from 0 to 1.")
    max_center_x: Limit | None = _threshold("Maximum position of the subject from the left, from 0 to 1.")
    min_center_y: Limit | None = _threshold("Minimum position of the subject from the top, from 0 to 1.")
    max_center_y: Limit | None = _threshold("Maximum position of the subject from the top, from 0 to 1.")
    min_detections: Limit | None = _threshold("Minimum number of things that are what the object phrase says.")
    max_detections: Limit | None = _threshold("Maximum number of things that are what the object phrase says.")
    min_view_identity: Limit | None = _threshold(
        "Minimum similarity by DINO of the subject in its views. Samples without views pass.", added=True
    )
    max_view_identity: Limit | None = _threshold(
        "Maximum similarity by DINO of the subject in its views. Samples without views pass.", added=True
    )
    min_safety: Limit | None = _threshold(
        "Minimum safety by score.safety: 0 drops what the checker would flag.", added=True
    )
    max_safety: Limit | None = _threshold("Maximum safety by score.safety.", added=True)
    min_rubric: Limit | None = _threshold(
        "Minimum mean rating by score.rubric. Samples without a rating do not pass.", added=True
    )
    max_rubric: Limit | None = _threshold(
        "Maximum mean rating by score.rubric. Samples without a rating do not pass.", added=True
    )
    max_similarity: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Of two pictures whose embeddings have a higher cosine, only the first is kept. null: both are.",
    )
    similarity: Embedding = Field(default="dino", description="The embedding in which near-duplicates are found.")
    max_per_object: int | None = Field(
        default=None, ge=1, le=10**9, description="Maximum number of samples of one object phrase. null: all."
    )
    max_samples: int | None = Field(default=None, ge=1, le=10**9, description="Maximum number of samples. null: all.")

    @model_validator(mode="after")
    def _in_order(self) -> SelectConfig:
        limits = self.limits()
        problems = []
        for name, low in limits.items():
            high = limits.get(name.replace("min_", "max_", 1))
            if name.startswith("min_") and high is not None and _above(low, high):
                problems.append(f"{name} {low} is above {name.replace('min_', 'max_', 1)} {high}; no sample would pass")
        if self.max_similarity is None and self.changed(["similarity"]):
            problems.append("similarity: no effect without max_similarity; set it, such as 0.95, or remove similarity")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def limits(self) -> dict[str, float | str]:
        """The thresholds that are set, by field."""
        given = {
            "min_caption_score": self.min_caption_score,
            "max_caption_score": self.max_caption_score,
            "min_object_score": self.min_object_score,
            "max_object_score": self.max_object_score,
            "min_head_score": self.min_head_score,
            "max_head_score": self.max_head_score,
            "min_sharpness": self.min_sharpness,
            "max_sharpness": self.max_sharpness,
            "min_outline": self.min_outline,
            "max_outline": self.max_outline,
            "min_area": self.min_area,
            "max_area": self.max_area,
            "min_center_x": self.min_center_x,
            "max_center_x": self.max_center_x,
            "min_center_y": self.min_center_y,
            "max_center_y": self.max_center_y,
            "min_detections": self.min_detections,
            "max_detections": self.max_detections,
            "min_view_identity": self.min_view_identity,
            "max_view_identity": self.max_view_identity,
            "min_safety": self.min_safety,
            "max_safety": self.max_safety,
            "min_rubric": self.min_rubric,
            "max_rubric": self.max_rubric,
        }
        return {name: limit for name, limit in given.items() if limit is not None}


def _above(low: float | str, high: float | str) -> bool:
    """Whether a limit is above another of the same kind."""
    below, over = quantile(low), quantile(high)
    if below is not None and over is not None:
        return below > over
    return below is None and over is None and float(low) > float(high)
