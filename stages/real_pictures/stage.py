"""The pictures stage: real pictures in place of caption and synthesize, each with a caption and the subject's name."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from bootpig.stages.caption.llm.answers import FAULTS as ANSWER_FAULTS
from bootpig.stages.caption.llm.estimates import expected_spending, spending_assumptions
from bootpig.stages.caption.llm.faults import FAULTS as REQUEST_FAULTS
from bootpig.stages.caption.llm.source import NEVER
from bootpig.stages.caption.phrases import head_noun, object_phrase
from bootpig.stages.caption.sources import Draft
from bootpig.stages.engine.contract import InputError, MapStage, ModelIdentity, Sample, SourceContext
from bootpig.stages.engine.estimates import Estimate, SampleShape, Workload
from bootpig.stages.engine.memory import NO_DEVICE
from bootpig.stages.pictures import PNG_BYTES, on_all_cores
from bootpig.stages.real_pictures.config import PicturesConfig
from bootpig.stages.real_pictures.folder import FolderSource
from bootpig.stages.real_pictures.index import Index, phrase_of
from bootpig.stages.real_pictures.pixels import Square, square
from bootpig.stages.real_pictures.shards import ShardSource
from bootpig.stages.real_pictures.source import Raw, Source, Text
from bootpig.stages.real_pictures.tables import TableSource
from bootpig.stages.real_pictures.vision import prompt_length, write_captions

SOURCES: Mapping[str, type[Source]] = {"folder": FolderSource, "webdataset": ShardSource, "parquet": TableSource}

AT_ONCE = 32
"""Pictures that are held in memory before they are cut to size."""


class Pictures(MapStage):
    """A source of pictures: `<id>.png`, RGB, square. `draw` does all of the work, so that each file is read once."""

    name = "pictures"
    upstream = ()
    kept = True
    config_class = PicturesConfig
    config: PicturesConfig
    columns: ClassVar[pa.Schema] = pa.schema(
        [
            ("index", pa.int64()),
            ("name", pa.string()),  # path in the set
            ("sha256", pa.string()),  # of the picture as it was given
            ("width", pa.int32()),  # of the picture as it was given, upright, in pixels
            ("height", pa.int32()),
            ("caption", pa.string()),
            ("object", pa.string()),
        ]
    )
    reasons: ClassVar[Mapping[str, str]] = {
        "unreadable": "the file is not a picture that can be read, or is damaged",
        "missing": "there is no picture where the set says so",
        "too_large": "the file or the picture is larger than any picture should be",
        "too_small": "the shorter side has fewer pixels than min_side",
        "transparent": "the picture is transparent everywhere",
        "duplicate": "an earlier picture of the set has the same content",
        "no_caption": "the set has no caption for the picture",
        "no_object": "the caption does not have the form 'A photo of a <object>, …', and no object is named",
        "not_an_object": "the caption's object is not a finite, solid thing, but a lake, a field, the sky or the like",
        **ANSWER_FAULTS,
        **REQUEST_FAULTS,
    }
    settings: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "unreadable": ("url",),
        "missing": ("url",),
        "too_small": ("size", "min_side"),
        "duplicate": ("url",),
        "no_caption": ("caption_column", "captions"),
        "no_object": ("object_column", "captions"),
        "not_an_object": ("openai",),
    }

    @property
    def slice_size(self) -> int:
        return 1000

    @property
    def sequential(self) -> bool:
        """With an endpoint, so that the spending cap holds over all units."""
        return self.config.captions == "openai"

    def __init__(self, config: PicturesConfig, seed: int) -> None:
        super().__init__(config, seed)
        self._opening = threading.Lock()
        self._index: Index | None = None

    def opened(self) -> Index:
        """The set as it is listed when it is first needed. Raises InputError, StoreError."""
        with self._opening:
            if self._index is None:
                source = SOURCES[self.config.format](self.config)
                self._check(source)
                self._index = Index(self.config, source)
            return self._index

    def models(self) -> Mapping[str, ModelIdentity]:
        """No models. The set is listed here, before any work starts."""
        self.opened()
        return {}

    def _check(self, source: Source) -> None:
        url, count, total = self.config.url, self.config.count, len(source.entries)
        if count > total:
            raise InputError(
                f"pictures.count: {count} is more than the {total} pictures of {url!r}; lower it or add pictures"
            )
        if self.config.captions == "given" and not source.has_captions:
            raise InputError(
                f"pictures.captions: 'given' → none of the pictures of {url!r} has a caption; put cat.txt or cat.json "
                f"with {self.config.caption_column!r} beside cat.png, write metadata.jsonl, or set captions to openai"
            )

    def check_ready(self) -> None:
        if self.config.openai is not None:
            self.config.openai.check_key()

    def estimate(self, work: Workload) -> Estimate:
        pixels = float(self.config.size**2)
        stored = work.samples * PNG_BYTES * pixels
        assumptions = (f"pictures: PNG at {PNG_BYTES} bytes a pixel",)
        if (vision := self.config.openai) is None:
            return Estimate(SampleShape(pixels), stored_bytes=stored, memory=NO_DEVICE, assumptions=assumptions)
        spent = expected_spending(vision, work.samples, prompt_length(vision), work.samples)
        return Estimate(
            SampleShape(pixels),
            stored_bytes=stored,
            usd=spent["cost_usd"] or 0.0,
            memory=NO_DEVICE,
            details={"llm": spent},
            assumptions=(*assumptions, *spending_assumptions(vision, spent)),
        )

    def source_digest(self, unit: int, indices: range) -> str:
        return self.opened().digest(indices)

    def draw(self, unit: int, indices: range, context: SourceContext | None = None) -> list[Sample]:
        span = range(indices.start, min(indices.stop, len(self.opened().source.entries)))
        samples: list[Sample] = []
        for begin in range(span.start, span.stop, AT_ONCE):
            samples += self._some(unit, range(begin, min(begin + AT_ONCE, span.stop)))
            if context is not None:
                context.progress(len(samples), len(span), "")
        if self.config.openai is not None:
            assert context is not None, "captions of a vision model need the store"
            samples = self._captioned(samples, unit, context)
        return samples

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        return list(samples)

    def _some(self, unit: int, span: range) -> list[Sample]:
        """The samples of a few positions. With an endpoint, those whose picture can be used lack their caption."""
        index = self.opened()
        wanted = [place for place in span if not index.repeats(place)]
        found: dict[int, Raw] = {}
        for place, raw in zip(wanted, index.source.read([index.source.entries[p] for p in wanted]), strict=True):
            if not index.is_still(place, raw):
                raise index.source.changed(index.source.entries[place].name)
            found[place] = raw
        return on_all_cores(lambda place: self._sample(unit, place, found.get(place)), list(span))

    def _sample(self, unit: int, place: int, raw: Raw | None) -> Sample:
        """One sample. `raw`: None for one that repeats another."""
        index = self.opened()
        entries = index.source.entries
        sample = Sample(index.sample_id(place), unit)
        known: dict[str, Any] = {"index": place, "name": entries[place].name}
        if raw is None:
            known["sha256"] = index.content(place).picture
            same = entries[index.first(place)].name
            return _rejected(sample, "duplicate", f"{known['name']}: the same as {same}", known)
        if raw.picture is None:
            return _rejected(sample, raw.reason, f"{known['name']}: {raw.message}", known)
        known["sha256"] = index.content(place).picture
        text = raw.text if self.config.captions == "given" else Text()
        if self.config.captions == "given":
            known["caption"] = text.caption
            if text.caption is None:
                return _rejected(sample, "no_caption", f"{known['name']}: {text.message or 'nothing beside it'}", known)
            if phrase_of(text) is None:
                return _rejected(sample, "no_object", f"{known['name']}: {text.caption[:80]!r}", known)
        cut = square(raw.picture, known["name"], self.config.size, self.config.smallest)
        known |= {"width": cut.width, "height": cut.height}
        if cut.reason:
            return _rejected(sample, cut.reason, f"{known['name']}: {cut.message}", known)
        return _accepted(sample, cut, text, known)

    def _captioned(self, samples: Sequence[Sample], unit: int, context: SourceContext) -> list[Sample]:
        """The samples with captions from the endpoint."""
        assert self.config.openai is not None
        open = [sample for sample in samples if sample.status == "ok"]
        ids, pictures = [sample.id for sample in open], [sample.files["png"] for sample in open]
        drafts = dict(zip(ids, write_captions(self.config.openai, context, unit, ids, pictures), strict=True))
        return [_with_caption(sample, drafts[sample.id]) if sample.id in drafts else sample for sample in samples]


def _rejected(sample: Sample, reason: str, message: str, columns: dict[str, Any]) -> Sample:
    return Sample(sample.id, sample.unit, {}, {}, columns, "rejected", reason, message)


def _accepted(sample: Sample, cut: Square, text: Text, columns: dict[str, Any]) -> Sample:
    if text.caption is None:  # it comes from the endpoint
        return sample.ok(files={"png": cut.png}, **columns)
    words = {"caption": text.caption, "object": phrase_of(text)}
    return sample.ok(files={"png": cut.png}, meta=words, **{**columns, **words})


def _with_caption(sample: Sample, draft: Draft) -> Sample:
    columns = {**sample.columns, "caption": draft.caption or None}
    if draft.status != "ok":
        return Sample(sample.id, sample.unit, {}, {}, columns, draft.status, draft.reason, draft.message)
    phrase = object_phrase(draft.caption)
    if phrase is None:
        return _rejected(sample, "no_object", "", columns)
    if head_noun(phrase) in NEVER:
        return _rejected(sample, "not_an_object", "", columns)
    words = {"caption": draft.caption, "object": phrase}
    return sample.ok(files=sample.files, meta=words, **{**columns, **words})
