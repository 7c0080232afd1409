"""What is asked for the slots of a unit, and how answers fill them: any endpoint, and captions in particular."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bootpig.stages.caption.duplicates import subject_of
from bootpig.stages.caption.llm.answers import SCHEMA, read_answer
from bootpig.stages.caption.llm.chat import ChatConfig
from bootpig.stages.caption.llm.config import OpenAIConfig
from bootpig.stages.caption.llm.journal import Key, Record
from bootpig.stages.caption.llm.ledger import CaptionLedger
from bootpig.stages.caption.llm.spending import prompt_tokens

if TYPE_CHECKING:
    from bootpig.stages.caption.llm.client import LLMClient

LONGEST = 300
"""Maximum characters of a caption; no text encoder reads more."""

CAPTIONS = ("captions", SCHEMA)
"""Name and schema of the answers."""
AS_JSON = 'Answer with a JSON object: {"captions": ["A photo of a …, …", …]}.'
LIST = "This is list {name} of many; no caption of it stands in another."
"""Makes every request different, because a caching gateway would answer equal requests with the same text."""
AS_LINES = "Write one caption a line and nothing else: no numbers, no quotes, no other text."


S = TypeVar("S")


@dataclass(frozen=True)
class Filled(Generic[S]):
    """What an answer gives for the slots of its request, in order."""

    values: Sequence[S] = ()
    fault: str = ""
    """The code of the reason why values are missing, empty if none are."""
    message: str = ""


class Asker(ABC, Generic[S]):
    """Builds the requests for the slots of one unit, and reads the answers. `S`: what fills a slot."""

    @abstractmethod
    def connect(self) -> LLMClient:
        """A client of the endpoint. Called once, when the first request is made: a replay needs no API key."""

    @abstractmethod
    def chunks(self, slots: Sequence[int]) -> list[list[int]]:
        """Empty slots, split into requests."""

    @abstractmethod
    def keys(self, round: int, chunks: Sequence[Sequence[int]]) -> list[Key]:
        """The journal's keys of these requests."""

    @abstractmethod
    def request(self, key: Key, asked: int, covered: Sequence[str], *, structured: bool) -> dict[str, Any]:
        """The body of the request for `asked` slots.

        Args:
            covered: what the request should avoid, see `covered`.
            structured: whether the request asks for a format of the answer that some endpoints do not know.
        """

    @abstractmethod
    def read(self, key: Key, record: Record, asked: int) -> Filled[S]:
        """What an answer gives for `asked` slots. The answer is untrusted. Called from several threads.

        Raises:
            Fault: a part of the answer cannot be had now, such as a picture of which the answer gives the address.
        """

    def complete(self, key: Key, record: Record) -> None:
        """Get the parts of an answer that it only names, once it is in the journal. Called by the request's thread.

        Raises:
            InputError: the endpoint answers in a way that cannot be used for any request.
        """

    def covered(self, slots: Iterable[S | None] = ()) -> list[str]:
        """Subjects that a request should avoid, given what fills the unit's slots. By default none."""
        return []

    def kept(self, request: dict[str, Any]) -> dict[str, Any]:
        """A request in the form that the journal stores."""
        return request

    def sent(self, name: str, kept: dict[str, Any]) -> dict[str, Any]:
        """The request that `kept` gave this form. `name`: its key's."""
        return kept

    @staticmethod
    def tokens(request: dict[str, Any]) -> float:
        """About how many tokens a request's prompt has. 0 where they do not count."""
        return 0.0


class ChatAsker(Asker[S]):
    """Requests as chat completions."""

    config: ChatConfig

    def connect(self) -> LLMClient:
        # importing the openai package is slow
        from bootpig.stages.caption.llm.client import LLMClient

        return LLMClient(self.config)

    @staticmethod
    def tokens(request: dict[str, Any]) -> float:
        return prompt_tokens(request["messages"])


def read_captions(config: ChatConfig, record: Record, asked: int) -> Filled[str]:
    """The captions in an answer."""
    answer = read_answer(record.body, asked, lines_too=config.format != "json")
    return Filled([caption[:LONGEST] for caption in answer.captions], answer.fault, answer.message)


def chat_request(config: ChatConfig, content: Any, schema: tuple[str, dict[str, Any]] | None) -> dict[str, Any]:
    """The body of a chat completion request.

    Args:
        content: of the user message: text, or a list of parts.
        schema: name and JSON schema that the answer has to follow. None: it is only told in words.
    """
    messages = [{"role": "system", "content": config.system}] if config.system else []
    request: dict[str, Any] = {
        "model": config.model,
        "messages": [*messages, {"role": "user", "content": content}],
        **config.extra_body,
    }
    if config.temperature is not None:
        request["temperature"] = config.temperature
    if schema is not None:
        named = {"name": schema[0], "strict": True, "schema": schema[1]}
        request["response_format"] = {"type": "json_schema", "json_schema": named}
    return request


class CaptionAsker(ChatAsker[str]):
    """Requests for many captions each. Their content depends only on config, seed and the committed captions."""

    config: OpenAIConfig

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
        return chat_request(self.config, "\n\n".join(text), CAPTIONS if structured else None)

    def read(self, key: Key, record: Record, asked: int) -> Filled[str]:
        return read_captions(self.config, record, asked)

    def _named(self, key: Key, covered: Sequence[str]) -> list[str]:
        """The subjects to name: half are the most frequent, half drawn from the rest, so concurrent requests differ."""
        limit = self.config.steering_objects
        if len(covered) <= limit or not limit:
            return list(covered[:limit])
        often = list(covered[: limit // 2])
        rng = random.Random(f"{self.seed}/steering/{'/'.join(map(str, key))}")
        return often + sorted(rng.sample(covered[limit // 2 :], limit - len(often)))
