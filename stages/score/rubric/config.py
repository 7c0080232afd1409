"""The settings of the rubric: which vision model rates the samples, and what it is asked."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bootpig.stages.caption.llm.chat import BatchedConfig
from bootpig.stages.engine.contract import SPEED

PROMPT = (
    "This picture was made for the caption {caption!r}. Its main subject should be {object!r}.\n"
    "Rate it by the questions below. Be strict: most pictures have faults."
)
QUESTIONS = {
    "caption": "How well does the picture show what the caption says: subject, position and scene?",
    "subject": "Is the subject there once, whole, unobstructed, and in the form that such things have?",
    "quality": "Is the picture free of artefacts: deformed parts, blur, text, borders, repeated patterns?",
    "realism": "Could it be a photograph, with light and shadows that agree?",
}


class RubricConfig(BatchedConfig):
    """An endpoint with a vision model, which sees a picture and its caption and rates them by questions."""

    section: ClassVar[str] = "score.rubric"
    blanks: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ("caption", "object")}

    prompt: str = Field(
        default=PROMPT,
        min_length=1,
        description="The text beside the picture, before the questions. {caption} and {object} are the sample's.",
    )
    questions: dict[str, str] = Field(
        default=QUESTIONS,
        min_length=1,
        max_length=20,
        description="Name → question. Each is answered with a number; the score rubric is their mean.",
    )
    lowest: float = Field(default=0, ge=-1000, le=1000, description="The worst rating.")
    highest: float = Field(default=10, ge=-1000, le=1000, description="The best rating.")
    system: str = Field(default="You judge pictures for a data set.", description="The system message. Empty: none.")
    temperature: float | None = Field(default=0.0, ge=0, le=2, description="Sampling temperature. null: not sent.")
    format: Literal["auto", "json", "lines"] = Field(
        default="auto",
        json_schema_extra=SPEED,
        description="How the form of the answers is asked for. json: by a JSON schema. lines: in words. auto: json, or "
        "in words if the endpoint answers 400 to a schema.",
    )

    @field_validator("questions")
    @classmethod
    def _names(cls, questions: dict[str, str]) -> dict[str, str]:
        for name, question in questions.items():
            if not (name.isidentifier() and name.isascii() and len(name) <= 40):
                raise ValueError(f"{name!r} is not a name of letters, digits and underscores; rename the question")
            if not question.strip():
                raise ValueError(f"{name!r} has no question; write one, or remove it")
        return questions

    @model_validator(mode="after")
    def _a_range(self) -> RubricConfig:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest:g} is not below highest {self.highest:g}; exchange them")
        return self
