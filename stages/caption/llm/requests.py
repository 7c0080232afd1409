"""What a request says: the prompt, the form of the answer, and the subjects that are covered already."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from bootpig.stages.caption.duplicates import subject_of
from bootpig.stages.caption.llm.answers import SCHEMA
from bootpig.stages.caption.llm.config import OpenAIConfig
from bootpig.stages.caption.llm.journal import Key
from bootpig.stages.caption.llm.ledger import Ledger

AS_JSON = 'Answer with a JSON object: {"captions": ["A photo of a …, …", …]}.'
LIST = "This is list {name} of many; no caption of it stands in another."
"""No two requests are the same: a gateway that keeps answers would give the same one again."""
AS_LINES = "Write one caption a line and nothing else: no numbers, no quotes, no other text."


class Asker:
    """Writes requests. What they say follows from config, seed and what is committed."""

    def __init__(self, config: OpenAIConfig, seed: int, ledger: Ledger) -> None:
        self.config = config
        self.seed = seed
        self.ledger = ledger

    def covered(self, slots: Iterable[str | None] = (), below: int | None = None) -> list[str]:
        """Subjects that have captions, the most frequent first: of the committed units (of those under `below` only,
        if given) and of the captions in `slots`."""
        counts: Counter[str] = Counter()
        for unit, subjects in self.ledger.subjects.items():
            if below is None or unit < below:
                counts.update(subjects)
        counts.update(subject_of(caption) for caption in slots if caption is not None)
        return sorted(filter(None, counts), key=lambda subject: (-counts[subject], subject))

    def request(self, key: Key, asked: int, covered: Sequence[str], *, structured: bool) -> dict[str, Any]:
        """The body of a chat completion for `asked` captions."""
        config = self.config
        text = [config.prompt.format(count=asked)]
        if named := self._named(key, covered):
            text.append(config.steering.format(objects=", ".join(named)))
        text.append(LIST.format(name="-".join(map(str, key))))
        text.append(AS_JSON if structured else AS_LINES)
        messages = [{"role": "system", "content": config.system}] if config.system else []
        request: dict[str, Any] = {
            "model": config.model,
            "messages": [*messages, {"role": "user", "content": "\n\n".join(text)}],
            **config.extra_body,
        }
        if config.temperature is not None:
            request["temperature"] = config.temperature
        if structured:
            schema = {"name": "captions", "strict": True, "schema": SCHEMA}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        return request

    def _named(self, key: Key, covered: Sequence[str]) -> list[str]:
        """Half of them the most frequent, half drawn from the rest: requests at the same time then differ."""
        limit = self.config.steering_objects
        if len(covered) <= limit or not limit:
            return list(covered[:limit])
        often = list(covered[: limit // 2])
        rng = random.Random(f"{self.seed}/steering/{'/'.join(map(str, key))}")
        return often + sorted(rng.sample(covered[limit // 2 :], limit - len(often)))

    @staticmethod
    def characters(request: dict[str, Any]) -> int:
        """Of the messages."""
        return sum(len(message["content"]) for message in request["messages"])
