"""The caption stage: gets one caption per sample, of the form `A photo of a <object>, <position> <scene>`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from string import Formatter
from typing import ClassVar, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from bootpig.stages.caption.drafts import Draft
from bootpig.stages.caption.llm.answers import FAULTS as ANSWER_FAULTS
from bootpig.stages.caption.llm.config import OpenAIConfig
from bootpig.stages.caption.llm.faults import FAULTS as REQUEST_FAULTS
from bootpig.stages.caption.phrases import object_phrase
from bootpig.stages.caption.sources import SOURCES
from bootpig.stages.engine.contract import EXTENT, MODEL, MapStage, ModelIdentity, Sample, SourceContext, StageConfig

BLANKS = {"object": "objects", "position": "positions", "scene": "scenes"}
"""Blank of the template → the list that fills it."""

FIELDS = {"grammar": ("template", *BLANKS.values()), "file": ("file",), "openai": ("openai",)}
"""Source → the config fields that belong to it."""


class CaptionConfig(StageConfig):
    """The source of the captions, and how many to get."""

    source: Literal["grammar", "file", "openai"] = Field(
        default="grammar",
        description="grammar: the template, filled at random. file: a file with one caption per line. openai: an LLM.",
    )
    count: int = Field(
        ge=1,
        le=1_000_000_000,
        json_schema_extra=EXTENT,
        description="Number of captions, rounded up to whole units. Raising it keeps what is already made.",
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
            return [*problems, f"template {self.template!r} has no {{object}}; write it before the first comma"]
        for blank, name in BLANKS.items():
            entries = getattr(self, name)
            if blank in blanks and not all(entry.strip() for entry in entries or [""]):
                problems.append(f"source 'grammar' needs {name}: a list of phrases, none of them empty")
            if blank not in blanks and entries:
                problems.append(f"{name} is given, but the template has no {{{blank}}}; remove one or add the other")
        for phrase in self.objects:
            caption = self.template.format(object=phrase, position="here", scene="here")
            if object_phrase(caption) is None:
                problems.append(
                    f"objects: {phrase!r} makes {caption!r}, which has no object phrase; captions begin with "
                    "'A photo of a <object>,', so give the phrase with its article and without a comma"
                )
        return problems


class Caption(MapStage):
    """The first stage of the pipeline. Gets captions from a source and parses their object phrases."""

    name = "caption"
    upstream = ()
    config_class = CaptionConfig
    config: CaptionConfig
    columns: ClassVar[pa.Schema] = pa.schema([("index", pa.int64()), ("caption", pa.string()), ("object", pa.string())])
    reasons: ClassVar[Mapping[str, str]] = {
        "no_object": "the caption does not have the form 'A photo of a <object>, …'",
        "not_an_object": "the caption's object is not a finite, solid thing, but a lake, a field, the sky or the like",
        "duplicate": "the caption repeats another one of this or another committed unit, exactly or nearly",
        **ANSWER_FAULTS,
        **REQUEST_FAULTS,
    }

    def __init__(self, config: CaptionConfig, seed: int) -> None:
        super().__init__(config, seed)
        self._source = SOURCES[config.source](config, seed)

    @property
    def slice_size(self) -> int:
        return 1000

    @property
    def sequential(self) -> bool:
        return self.config.source == "openai"

    def models(self) -> Mapping[str, ModelIdentity]:
        """No models. The source is checked here, before any work starts."""
        self._source.check()
        return {}

    def source_digest(self, unit: int, indices: range) -> str:
        return self._source.digest(indices)

    def check_ready(self) -> None:
        self._source.check_ready()

    def draw(self, unit: int, indices: range, context: SourceContext | None = None) -> list[Sample]:
        drafts = self._source.captions(unit, indices, context)
        return [
            self._sample(unit, index, draft)
            for index, draft in zip(indices, drafts, strict=False)  # a file may end inside its last unit
        ]

    def _sample(self, unit: int, index: int, draft: Draft) -> Sample:
        caption = draft.caption
        sample = Sample(
            sample_id(self.seed, unit, index, caption), unit, {"caption": caption}, columns={"index": index}
        )
        if draft.status == "ok":
            return sample
        return replace(
            sample,
            status=draft.status,
            reason=draft.reason,
            message=draft.message,
            columns={"index": index, "caption": caption or None},
        )

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        results = []
        for sample in samples:
            if sample.status != "ok":  # rejected or failed in the source
                results.append(sample)
                continue
            caption, index = sample.meta["caption"], sample.columns["index"]
            phrase = object_phrase(caption)
            if phrase is None:
                results.append(sample.rejected("no_object", index=index, caption=caption))
            else:
                results.append(
                    sample.ok(files={}, meta={"object": phrase}, index=index, caption=caption, object=phrase)
                )
        return results


def sample_id(seed: int, unit: int, index: int, caption: str) -> str:
    """16 hex digits of sha256 over (seed, unit, index, caption)."""
    return hashlib.sha256(f"{seed}/{unit}/{index}/{caption}".encode()).hexdigest()[:16]
