"""Builds the requests to the LLM: the prompt, the answer format, and the subjects to avoid."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from bootpig.stages.caption.duplicates import subject_of
from bootpig.stages.caption.llm.answers import SCHEMA
from bootpig.stages.caption.llm.config import OpenAIConfig
from bootpig.stages.caption.llm.endpoint import EndpointConfig
from bootpig.stages.caption.llm.journal import Key
from bootpig.stages.caption.llm.ledger import CaptionLedger
from bootpig.stages.caption.llm.spending import prompt_tokens

AS_JSON = 'Answer with a JSON object: {"captions": ["A photo of a …, …", …]}.'
LIST = "This is list {name} of many; no caption of it stands in another."
"""Makes every request different, because a caching gateway would answer equal requests with the same text."""
AS_LINES = "Write one caption a line and nothing else: no numbers, no quotes, no other text."


class Asker(ABC):
    """Builds the requests for the slots of one unit."""

    @abstractmethod
    def chunks(self, slots: Sequence[int]) -> list[list[int]]:
        """Slots without a caption, split into requests."""

    @abstractmethod
    def keys(self, round: int, chunks: Sequence[Sequence[int]]) -> list[Key]:
        """The journal's keys of these requests."""

    @abstractmethod
    def request(self, key: Key, asked: int, covered: Sequence[str], *, structured: bool) -> dict[str, Any]:
        """The body of a chat completion request for `asked` captions."""

    def covered(self, slots: Iterable[str | None] = ()) -> list[str]:
        """Subjects that a request should avoid, given the captions of the unit's slots. By default none."""
        return []

    def kept(self, request: dict[str, Any]) -> dict[str, Any]:
        """A request in the form that the journal stores."""
        return request

    @staticmethod
    def tokens(request: dict[str, Any]) -> float:
        """About how many tokens a request's prompt has."""
        return prompt_tokens(request["messages"])


def chat_request(config: EndpointConfig, content: Any, *, structured: bool) -> dict[str, Any]:
    """The body of a chat completion request.

    Args:
        content: of the user message: text, or a list of parts.
        structured: whether the answer has to follow the JSON schema for captions.
    """
    messages = [{"role": "system", "content": config.system}] if config.system else []
    request: dict[str, Any] = {
        "model": config.model,
        "messages": [*messages, {"role": "user", "content": content}],
        **config.extra_body,
    }
    if config.temperature is not None:
        request["temperature"] = config.temperature
    if structured:
        schema = {"name": "captions", "strict": True, "schema": SCHEMA}
        request["response_format"] = {"type": "json_schema", "json_schema": schema}
    return request


class CaptionAsker(Asker):
    """Requests for many captions each. Their content depends only on config, seed and the committed captions."""

    def __init__(self, config: OpenAIConfig, seed: int, ledger: CaptionLedger, unit: int, generation: int) -> None:
        self.config = config
        self.seed = seed
        self.ledger = ledger
        self.unit = unit
        self.generation = generation

    def chunks(self, slots: Sequence[int]) -> list[list[int]]:
        size = self.config.captions_per_request
        return [list(slots[begin : begin + size]) for begin in range(0, len(slots), size)]

    def keys(self, round: int, chunks: Sequence[Sequence[int]]) -> list[Key]:
        return [Key(self.unit, self.generation, round, number) for number in range(len(chunks))]

    def covered(self, slots: Iterable[str | None] = (), below: int | None = None) -> list[str]:
        """Subjects that already have captions, most frequent first, in the committed units (only those under `below`,
        if given) and in `slots`."""
        counts: Counter[str] = Counter()
        for unit, subjects in self.ledger.subjects.items():
            if below is None or unit < below:
                counts.update(subjects)
        counts.update(subject_of(caption) for caption in slots if caption is not None)
        return sorted(filter(None, counts), key=lambda subject: (-counts[subject], subject))

    def request(self, key: Key, asked: int, covered: Sequence[str], *, structured: bool) -> dict[str, Any]:
        text = [self.config.prompt.format(count=asked)]
        if named := self._named(key, covered):
            text.append(self.config.steering.format(objects=", ".join(named)))
        text.append(LIST.format(name="-".join(map(str, key))))
        text.append(AS_JSON if structured else AS_LINES)
        return chat_request(self.config, "\n\n".join(text), structured=structured)

    def _named(self, key: Key, covered: Sequence[str]) -> list[str]:
        """The subjects to name: half are the most frequent, half drawn from the rest, so concurrent requests differ."""
        limit = self.config.steering_objects
        if len(covered) <= limit or not limit:
            return list(covered[:limit])
        often = list(covered[: limit // 2])
        rng = random.Random(f"{self.seed}/steering/{'/'.join(map(str, key))}")
        return often + sorted(rng.sample(covered[limit // 2 :], limit - len(often)))
