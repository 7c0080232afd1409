"""The caption stage: gets one caption per sample, of the form `A photo of a <object>, <position> <scene>`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import pyarrow as pa

from bootpig.stages.caption.config import CaptionConfig
from bootpig.stages.caption.llm.answers import FAULTS as ANSWER_FAULTS
from bootpig.stages.caption.llm.estimates import expected_spending, spending_assumptions
from bootpig.stages.caption.llm.faults import FAULTS as REQUEST_FAULTS
from bootpig.stages.caption.llm.source import OpenAISource
from bootpig.stages.caption.llm.spending import CHARACTERS_PER_TOKEN, TOKENS_PER_SUBJECT
from bootpig.stages.caption.other_scenes import other_scenes
from bootpig.stages.caption.phrases import object_phrase
from bootpig.stages.caption.sources import CaptionSource, Draft, FileSource, GrammarSource
from bootpig.stages.engine.contract import MapStage, ModelIdentity, Sample, SourceContext
from bootpig.stages.engine.estimates import Estimate, SampleShape, Workload
from bootpig.stages.engine.memory import NO_DEVICE

SOURCES: dict[str, type[CaptionSource]] = {"grammar": GrammarSource, "file": FileSource, "openai": OpenAISource}

CAPTION_BYTES = 150
"""A sample in the store; for estimates."""


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
    settings: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "no_object": ("source",),
        "not_an_object": ("openai",),
        "duplicate": ("openai",),
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

    def estimate(self, work: Workload) -> Estimate:
        stored = work.samples * CAPTION_BYTES
        openai = self.config.openai
        if openai is None:
            return Estimate(
                SampleShape(), stored_bytes=stored, memory=NO_DEVICE, assumptions=("captions cost nothing",)
            )
        per_unit = -(-work.samples // work.units // openai.captions_per_request) if work.units else 0
        prompt = (len(openai.system) + len(openai.prompt) + len(openai.steering) + 200) / CHARACTERS_PER_TOKEN
        prompt += openai.steering_objects * TOKENS_PER_SUBJECT
        spent = expected_spending(openai, work.units * per_unit, prompt, work.samples, openai.batch)
        return Estimate(
            SampleShape(),
            stored_bytes=stored,
            usd=spent["cost_usd"] or 0.0,
            memory=NO_DEVICE,
            details={"llm": spent},
            assumptions=spending_assumptions(openai, spent, openai.batch),
        )

    def source_digest(self, unit: int, indices: range) -> str:
        return self._source.digest(indices)

    def check_ready(self) -> None:
        self._source.check_ready()

    def draw(self, unit: int, indices: range, context: SourceContext | None = None) -> list[Sample]:
        drafts = self._source.captions(unit, indices, context)
        samples = [
            self._sample(unit, index, draft)
            for index, draft in zip(indices, drafts, strict=False)  # a file may end inside its last unit
        ]
        if not (count := self.config.other_scenes):
            return samples
        usable = [sample for sample in samples if sample.status == "ok"]
        ids = [sample.id for sample in usable]
        found = other_scenes([sample.meta["caption"] for sample in usable], ids, count, self.seed)
        scenes = dict(zip(ids, found, strict=True))
        return [
            replace(sample, meta={**sample.meta, "other_scenes": scenes[sample.id]}) if sample.id in scenes else sample
            for sample in samples
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
