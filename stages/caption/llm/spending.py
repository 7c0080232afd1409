"""Counts what the answers of an endpoint took: requests, tokens, captions or pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

CHARACTERS_PER_TOKEN = 4.0
TOKENS_PER_CAPTION = 30.0
"""Tokens of a caption in an answer, with quotes and commas; captions have fewer than 18 words."""
TOKENS_PER_PICTURE = 1000.0
"""A picture in a prompt. Endpoints count 250 to 1,500 for one of 512 pixels a side."""
TOKENS_PER_SUBJECT = 2.0
"""Tokens of a subject named in a request."""


class Expected(NamedTuple):
    """What a request is expected to take."""

    asked: int
    """Number of captions or pictures."""
    input: float
    """Tokens of the prompt."""
    output: float
    """Tokens of the answer."""


@dataclass
class Spent:
    """Tokens spent. `batch_*` are tokens of batches, which cost half."""

    requests: int = 0
    asked: int = 0
    """Number of captions or pictures requested."""
    input: float = 0
    output: float = 0
    batch_input: float = 0
    batch_output: float = 0

    @property
    def tokens(self) -> float:
        return self.input + self.output + self.batch_input + self.batch_output

    def add(self, asked: int, input: float, output: float, batch: bool) -> None:
        self.requests += 1
        self.asked += asked
        if batch:
            self.batch_input, self.batch_output = self.batch_input + input, self.batch_output + output
        else:
            self.input, self.output = self.input + input, self.output + output

    def expected(self, asked: int, prompt: float) -> Expected:
        """What a request for `asked` captions or pictures is expected to take, based on earlier answers if any.

        Args:
            prompt: its prompt's tokens.
        """
        output = (self.output + self.batch_output) / self.asked if self.asked else TOKENS_PER_CAPTION
        return Expected(asked, prompt, asked * output)

    def with_more(self, expected: Sequence[Expected], batch: bool = False) -> Spent:
        """A copy that includes requests that are expected to take this."""
        more = replace(self)
        for request in expected:
            more.add(*request, batch)
        return more


def prompt_tokens(messages: Sequence[Mapping[str, Any]]) -> float:
    """About how many tokens the messages of a request take, with their pictures."""
    tokens = 0.0
    for message in messages:
        content = message.get("content") or ""
        for part in [{"text": content}] if isinstance(content, str) else content:
            tokens += len(part["text"]) / CHARACTERS_PER_TOKEN if "text" in part else TOKENS_PER_PICTURE
    return tokens
