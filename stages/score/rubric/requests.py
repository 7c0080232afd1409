"""Has a vision model rate the samples of a unit: one picture per request.

Rounds, journal, replay and spending caps are those of captions (`stages/caption/llm/filling.py`). The journal belongs
to what is asked, not to the stage's fingerprint: `score/journal-<digest of the rubric's settings>/`. In it an answer
belongs to the content of a sample. So a change of another score pays for nothing again, and a picture that was made
again, or that has another caption, is rated again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bootpig.stages.caption.llm.about_pictures import AboutPictures
from bootpig.stages.caption.llm.answers import FAULTS
from bootpig.stages.caption.llm.faults import FAULTS as UNANSWERED
from bootpig.stages.caption.llm.filling import Filling, filled
from bootpig.stages.caption.llm.journal import Key, Record
from bootpig.stages.caption.llm.ledger import Ledger, open_ledger
from bootpig.stages.caption.llm.requests import Filled, chat_request
from bootpig.stages.caption.llm.spending import CHARACTERS_PER_TOKEN, TOKENS_PER_PICTURE
from bootpig.stages.engine.contract import Sample, SourceContext
from bootpig.stages.score.rubric.config import RubricConfig
from bootpig.stages.score.rubric.ratings import Ratings, read_ratings
from bootpig.storage.errors import CorruptPart
from bootpig.storage.fingerprint import digest
from bootpig.storage.parts import Parts

if TYPE_CHECKING:
    from bootpig.stages.caption.llm.client import LLMClient

COLUMNS = ("rubric", "rubric_ratings", "rubric_reason")
"""What `rate` adds to a sample's columns: the mean, one number per question, and why there are none."""


class RatingAsker(AboutPictures[Ratings]):
    """Requests for the ratings of one sample each.

    Args:
        samples: one per slot.
        is_proven: whether the endpoint has answered such requests.
    """

    config: RubricConfig

    def __init__(
        self,
        config: RubricConfig,
        samples: Sequence[Sample],
        numbers: Sequence[int],
        generations: Mapping[int, int],
        is_proven: bool,
    ) -> None:
        super().__init__(config, [sample.files["png"] for sample in samples], numbers, generations)
        self.samples = samples
        self.is_proven = is_proven

    def connect(self) -> LLMClient:
        # importing the openai package is slow
        from bootpig.stages.caption.llm.client import LLMClient

        return LLMClient(self.config, is_proven=self.is_proven)

    def request(self, key: Key, asked: int, covered: Sequence[str], *, structured: bool) -> dict[str, Any]:
        meta = self.samples[self.slots[key.unit]].meta
        text = [self.config.prompt.format(caption=meta["caption"], object=meta["object"]), questions(self.config)]
        return chat_request(self.config, self.content(key, text), _schema(self.config) if structured else None)

    def read(self, key: Key, record: Record, asked: int) -> Filled[Ratings]:
        return read_ratings(record.body, self.config)


def questions(config: RubricConfig) -> str:
    """The questions, and the form of the answer."""
    lines = [f"- {name}: {question}" for name, question in config.questions.items()]
    example = ", ".join(f'"{name}": …' for name in config.questions)
    span = f"a number from {config.lowest:g} (worst) to {config.highest:g} (best)"
    return "\n".join([*lines, f"Answer each with {span}, as a JSON object and nothing else: {{{example}}}"])


def prompt_length(config: RubricConfig) -> float:
    """The tokens of a request's prompt, about."""
    return (
        len(config.system) + len(config.prompt) + len(questions(config))
    ) / CHARACTERS_PER_TOKEN + TOKENS_PER_PICTURE


def rate(config: RubricConfig, context: SourceContext, unit: int, samples: Sequence[Sample]) -> list[Sample]:
    """The samples with the columns `COLUMNS`.

    A sample that was answered, but not with ratings, or whose request the endpoint rejects, has no rating and a reason,
    and stays `ok`. One that got no answer is failed, so that it is asked about again.

    Raises:
        Postponed: the spending cap would be exceeded.
        InputError: the endpoint rejects the key, the model or the request.
    """
    open_folder = partial(_RatingLedger, folder=f"score/journal-{digest(config.hashed())[:16]}")
    ledger = open_ledger(open_folder, context.parts, config)
    ledger.journal.refresh()
    numbers = [_number(sample) for sample in samples]

    def filling(chosen: Mapping[int, int]) -> Filling[Ratings]:
        asker = RatingAsker(config, samples, numbers, chosen, ledger.journal.spent.asked > 0)
        name = f"score unit {unit}"

        def batch(client: LLMClient, missing: Sequence[Key], counts: Sequence[int]) -> Mapping[Key, tuple[str, str]]:
            from bootpig.stages.caption.llm import batch as llm_batch

            scope = llm_batch.SampleScope(name)
            return llm_batch.answer(client, config, asker, ledger, context, scope, missing)

        return Filling(config, ledger, asker, context, name, chosen, len(samples), batch if config.batch else None)

    before = _committed(context, unit) if context.force else None

    def is_committed(replayed: Sequence[Ratings | None]) -> bool:
        return before is not None and all(
            _stored(made) == before.get(sample.id) for sample, made in zip(samples, replayed, strict=True)
        )

    work = filled(filling, ledger.journal, numbers, context, None if before is None else is_committed)
    return [
        _rated(sample, ratings, *work.faults.get(slot, ("short", FAULTS["short"])))
        for slot, (sample, ratings) in enumerate(zip(samples, work.slots, strict=True))
    ]


class _RatingLedger(Ledger):
    """A ledger whose journal is in a folder of its own."""

    def __init__(self, parts: Parts, config: RubricConfig, folder: str) -> None:
        self._folder = folder
        super().__init__(parts, config)

    def journal_folder(self) -> str:
        return self._folder


def _rated(sample: Sample, ratings: Ratings | None, fault: str, message: str) -> Sample:
    if ratings is not None:
        own: dict[str, Any] = {"rubric": sum(ratings) / len(ratings), "rubric_ratings": list(ratings)}
        return replace(sample, columns=sample.columns | own)
    if fault in UNANSWERED:
        return sample.failed(fault, message)
    return replace(sample, columns={**sample.columns, "rubric_reason": fault}, message=message)


def _number(sample: Sample) -> int:
    """Identifies what a sample's request shows."""
    words = f"{sample.id}\n{sample.meta['caption']}\n{sample.meta['object']}\n".encode()
    return int.from_bytes(hashlib.sha256(words + sample.files["png"]).digest()[:8], "big")


def _stored(ratings: Ratings | None) -> list[float] | None:
    """Ratings as the rows have them, in float32."""
    return None if ratings is None else np.array(ratings, np.float32).tolist()


def _committed(context: SourceContext, unit: int) -> dict[str, list[float] | None] | None:
    """Sample id → ratings of a committed unit."""
    try:
        marker = context.parts.whole(unit)
        return None if marker is None else {row["id"]: row.get("rubric_ratings") for row in marker.rows}
    except CorruptPart:
        return None


def _schema(config: RubricConfig) -> tuple[str, dict[str, Any]]:
    names = list(config.questions)
    numbers = {name: {"type": "number"} for name in names}
    return "ratings", {"type": "object", "properties": numbers, "required": names, "additionalProperties": False}
