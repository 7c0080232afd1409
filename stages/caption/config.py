"""The settings of the caption stage: where captions come from, and how many."""

from __future__ import annotations

import re
from string import Formatter
from typing import Literal

from pydantic import Field, model_validator

from bootpig.stages.caption.llm.config import OpenAIConfig
from bootpig.stages.caption.phrases import object_phrase
from bootpig.stages.engine.contract import ADDED, EXTENT, MODEL, StageConfig

BLANKS = {"object": "objects", "position": "positions", "scene": "scenes"}
"""Blank in the template → the field with its phrases."""

FIELDS = {"grammar": ("template", *BLANKS.values()), "file": ("file",), "openai": ("openai",)}
"""The fields of each source."""


ARTICLE = re.compile(r"(?:an?|the|some|one|two|three|\d+)\s", re.IGNORECASE)
"""The start of a phrase in `objects`. The template puts the phrase after `A photo of`."""


class CaptionConfig(StageConfig):
    """Where the captions come from, and how many."""

    source: Literal["grammar", "file", "openai"] = Field(
        default="grammar",
        description="grammar: the template, filled at random. file: a file with one caption per line. openai: an LLM.",
    )
    count: int = Field(
        ge=1,
        le=1_000_000_000,
        json_schema_extra=EXTENT,
        description="Number of captions, rounded up to whole units. Increasing it keeps existing data.",
    )
    file: str | None = Field(
        default=None,
        min_length=1,
        json_schema_extra=MODEL,
        description="source file: a UTF-8 text file with one caption per line. A unit depends only on its own lines.",
    )
    template: str = Field(
        default="A photo of {object}, {position} {scene}",
        description="source grammar: text with blanks {object}, {position}, {scene} and a comma after the object.",
    )
    objects: list[str] = Field(
        default=[], description="source grammar: phrases for {object}, with article: 'a mug', 'an umbrella'."
    )
    positions: list[str] = Field(default=[], description="source grammar: phrases for {position}: 'on the left'.")
    scenes: list[str] = Field(default=[], description="source grammar: phrases for {scene}: 'on a sandy beach'.")
    other_scenes: int = Field(
        default=0,
        ge=0,
        le=16,
        json_schema_extra=ADDED,
        description="Scenes of other captions that each caption is given, in which `view` draws its subject again.",
    )
    openai: OpenAIConfig | None = Field(
        default=None, description="source openai: the endpoint, the prompt, and spending limits."
    )

    @model_validator(mode="after")
    def _source_has_its_fields(self) -> CaptionConfig:
        problems = [
            f"{name} is used by source {source!r} only; remove it"
            for source, names in FIELDS.items()
            for name in self.changed(names)
            if source != self.source
        ]
        if self.source == "grammar":
            problems += self._grammar_problems()
        elif self.source == "file" and self.file is None:
            problems.append("source 'file' needs file: the path of a text file with one caption per line")
        elif self.source == "openai" and self.openai is None:
            problems.append("source 'openai' needs openai: {model: …} at least")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _grammar_problems(self) -> list[str]:
        problems: list[str] = []
        try:
            blanks = {name for _, name, _, _ in Formatter().parse(self.template) if name is not None}
        except ValueError as error:
            return [*problems, f"template {self.template!r}: {error}"]
        if unknown := blanks - BLANKS.keys():
            return [
                *problems,
                f"template {self.template!r} has unknown blanks {sorted(unknown)}; use {', '.join(BLANKS)}",
            ]
        if "object" not in blanks:
            return [*problems, f"template {self.template!r} has no {{object}}; insert it before the first comma"]
        for blank, name in BLANKS.items():
            entries = getattr(self, name)
            if blank in blanks and not all(entry.strip() for entry in entries or [""]):
                problems.append(f"source 'grammar' needs {name}: a list of phrases, none of them empty")
            if blank not in blanks and entries:
                problems.append(f"{name} is given, but the template has no {{{blank}}}; remove one or add the other")
        for phrase in self.objects:
            caption = self.template.format(object=phrase, position="here", scene="here")
            if object_phrase(caption) is None or not ARTICLE.match(phrase):
                problems.append(
                    f"objects: {phrase!r} makes {caption!r}, which has no object phrase; captions start with "
                    "'A photo of a <object>,', so give the phrase with its article"
                )
        return problems
