"""caption: one line of text a sample, in the form `A photo of a <object>, <position> <scene>`."""

from __future__ import annotations

import hashlib
import re
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
from bootpig.stages.caption.llm.spending import expected_spending, spending_assumptions
from bootpig.stages.caption.phrases import object_phrase
from bootpig.stages.caption.sources import SOURCES
from bootpig.stages.engine.contract import (
    EXTENT,
    MODEL,
    Estimate,
    MapStage,
    ModelIdentity,
    Sample,
    SampleShape,
    SourceContext,
    StageConfig,
    Workload,
)

BLANKS = {"object": "objects", "position": "positions", "scene": "scenes"}
"""A blank of the template and the list that fills it."""

FIELDS = {"grammar": ("template", *BLANKS.values()), "file": ("file",), "openai": ("openai",)}
"""The fields of each source."""

ARTICLE = re.compile(r"(?:an?|the|some|one|two|three|\d+)\s", re.IGNORECASE)
"""How a phrase of `objects` begins, which the template puts behind `A photo of`."""

CAPTION_BYTES = 150
"""A sample in the store; for estimates."""


class CaptionConfig(StageConfig):
    """Where the captions come from, and how many."""

    source: Literal["grammar", "file", "openai"] = Field(
        default="grammar",
        description="grammar: the template below, filled at random. file: one caption a line. openai: an LLM.",
    )
    count: int = Field(
        ge=1,
        le=1_000_000_000,
        json_schema_extra=EXTENT,
        description="Captions; rounded up to whole units. Growing it keeps what is made.",
    )
    file: str | None = Field(
        default=None,
        min_length=1,
        json_schema_extra=MODEL,
        description="source file: a UTF-8 text file, one caption a line. Each unit depends on its own lines only.",
    )
    template: str = Field(
        default="A photo of {object}, {position} {scene}",
        description="source grammar: blanks {object}, {position}, {scene}; the object is followed by a comma.",
    )
    objects: list[str] = Field(
        default=[], description="source grammar: what fills {object}, with its article: 'a mug', 'an umbrella'."
    )
    positions: list[str] = Field(default=[], description="source grammar: what fills {position}: 'on the left'.")
    scenes: list[str] = Field(default=[], description="source grammar: what fills {scene}: 'on a sandy beach'.")
    openai: OpenAIConfig | None = Field(
        default=None, description="source openai: the endpoint, what it is asked, and how much it may cost."
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
            problems.append("source 'file' needs file: the path of a text file, one caption a line")
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
            return [*problems, f"template {self.template!r} has no {{object}}; write it in front of the first comma"]
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
                    f"objects: {phrase!r} makes {caption!r}, which has no object phrase; captions begin "
                    "'A photo of a <object>,', so give the phrase with its article"
                )
        return problems


class Caption(MapStage):
    """The source of the chain: draws captions and parses the object phrase out of them."""

    name = "caption"
    upstream = ()
    config_class = CaptionConfig
    config: CaptionConfig
    columns: ClassVar[pa.Schema] = pa.schema([("index", pa.int64()), ("caption", pa.string()), ("object", pa.string())])
    reasons: ClassVar[Mapping[str, str]] = {
        "no_object": "the caption does not have the form 'A photo of a <object>, …'",
        "not_an_object": "the caption's object is none that is finite and solid: a lake, a field, the sky",
        "duplicate": "the caption repeats one of this unit or of another committed one, word for word or nearly so",
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
        """None; but the source is looked at here, before any work."""
        self._source.check()
        return {}

    def estimate(self, work: Workload) -> Estimate:
        stored = work.samples * CAPTION_BYTES
        openai = self.config.openai
        if openai is None:
            return Estimate(SampleShape(), stored_bytes=stored, assumptions=("captions cost nothing",))
        spent = expected_spending(openai, work.units, work.samples)
        return Estimate(
            SampleShape(),
            stored_bytes=stored,
            usd=spent["cost_usd"] or 0.0,
            details={"llm": spent},
            assumptions=spending_assumptions(openai, spent),
        )

    def source_digest(self, unit: int, indices: range) -> str:
        return self._source.digest(indices)

    def check_ready(self) -> None:
        self._source.check_ready()

    def draw(self, unit: int, indices: range, context: SourceContext | None = None) -> list[Sample]:
        drafts = self._source.captions(unit, indices, context)
        return [
            self._sample(unit, index, draft)
            for index, draft in zip(indices, drafts, strict=False)  # a file may end within its last unit
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
            if sample.status != "ok":  # its source has judged it
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
