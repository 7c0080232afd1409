"""Settings of `evaluate.judge`: a vision model behind an endpoint that scores pictures, and what it is asked.

The two questions are those of DreamBench++ (Peng et al., 2024), concept preservation and prompt following, each with a
score from 0 to 4. The wording is our own, so scores are not comparable with published ones.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from bootpig.stages.caption.llm.chat import ChatConfig
from bootpig.stages.engine.contract import MODEL, SPEED

HIGHEST = 4
"""Scores are whole numbers from 0 to this."""

QUESTIONS = ("concept", "following")
"""`concept`: is it the reference's subject? `following`: does the picture show what the caption says?"""

CONCEPT = (
    "The first picture shows a subject: {object}. The second picture was made by a program that was to draw this very "
    "subject again. How well does the second picture keep the subject's identity? Compare only the subject: its shape, "
    "its colours and pattern, its material, its parts and marks. Leave out the background, the pose, the light and how "
    "well the picture is made.\n"
    "0: another kind of object, or none at all.\n"
    "1: the same kind of object, and hardly anything else in common.\n"
    "2: some of its features are the same, others clearly are not.\n"
    "3: nearly the same, with small differences.\n"
    "4: it could be the very same one."
)

FOLLOWING = (
    "This picture was made by a program from the caption below. How well does the picture show what the caption says? "
    "Check every part of it: the object, where it is and what is around it, what happens, and the style if one is "
    "named. Leave out how beautiful the picture is.\n"
    "0: nothing of the caption is in the picture.\n"
    "1: little of it.\n"
    "2: about half of it.\n"
    "3: most of it, with a part missing or wrong.\n"
    "4: all of it.\n"
    "The caption: {prompt}"
)

PROMPTS: dict[int, dict[str, str]] = {1: {"concept": CONCEPT, "following": FOLLOWING}}
"""Version → question → text. A version that was released is never changed, because old scores were made with it."""


class JudgeConfig(ChatConfig):
    """An endpoint with a vision model that scores the pictures of an evaluation."""

    section: ClassVar[str] = "evaluate.judge"

    prompts: Literal[1] = Field(default=1, description="Version of the questions' text.")
    system: str = Field(
        default="You compare pictures carefully, and you answer briefly.",
        description="The system message. Empty: none.",
    )
    temperature: float | None = Field(default=0.0, ge=0, le=2, description="Sampling temperature. null: not sent.")
    format: Literal["auto", "json", "lines"] = Field(
        default="auto",
        json_schema_extra=SPEED,
        description="Format of the answers. json: by a JSON schema. lines: as text. auto: json, or lines if the "
        "endpoint answers 400 to a schema.",
    )
    ratings: str | None = Field(
        default=None,
        min_length=1,
        json_schema_extra=MODEL,
        description="A CSV file with scores by people, with which the judge is compared; see docs/judge.md.",
    )
