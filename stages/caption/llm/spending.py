"""Counts what captions cost in tokens and money, and estimates the cost of requests before they are sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bootpig.stages.caption.llm.config import OpenAIConfig

CHARACTERS_PER_TOKEN = 4.0
TOKENS_PER_CAPTION = 30.0
"""Tokens of a caption in an answer, with quotes and commas; captions have fewer than 18 words."""
TOKENS_PER_SUBJECT = 2.0
"""Tokens of a subject named in a request."""


@dataclass
class Spent:
    """Tokens spent. `batch_*` are tokens of batches, which cost half."""

    requests: int = 0
    captions: int = 0
    """Number of captions requested."""
    input: float = 0
    output: float = 0
    batch_input: float = 0
    batch_output: float = 0

    @property
    def tokens(self) -> float:
        return self.input + self.output + self.batch_input + self.batch_output

    def add(self, asked: int, input: float, output: float, batch: bool) -> None:
        self.requests += 1
        self.captions += asked
        if batch:
            self.batch_input, self.batch_output = self.batch_input + input, self.batch_output + output
        else:
            self.input, self.output = self.input + input, self.output + output

    def usd(self, config: OpenAIConfig) -> float | None:
        """The amount in USD, or None if the config has no prices."""
        direct = config.usd(self.input, self.output)
        batched = config.usd(self.batch_input, self.batch_output, batch=True)
        return None if direct is None or batched is None else direct + batched

    def over_cap(self, config: OpenAIConfig) -> str:
        """Name and value of the cap that this exceeds; empty if none."""
        usd = self.usd(config)
        if config.cap_usd is not None and usd is not None and usd > config.cap_usd:
            return f"cap_usd {config.cap_usd:g}"
        if config.cap_tokens is not None and self.tokens > config.cap_tokens:
            return f"cap_tokens {config.cap_tokens}"
        return ""

    def expected(self, asked: int, characters: int) -> tuple[float, float]:
        """Expected (prompt, answer) tokens of a request for `asked` captions, based on earlier answers if any."""
        output = (self.output + self.batch_output) / self.captions if self.captions else TOKENS_PER_CAPTION
        return characters / CHARACTERS_PER_TOKEN, asked * output

    def with_more(self, expected: Sequence[tuple[float, float]], batch: bool = False) -> Spent:
        """A copy that includes requests of these (prompt, answer) tokens."""
        more = replace(self)
        for input, output in expected:
            more.add(0, input, output, batch)
        return more

    def summary(self, config: OpenAIConfig) -> str:
        """`4.98 USD, 1,204,331 tokens`."""
        usd = self.usd(config)
        money = "" if usd is None else f"{usd:.4g} USD, "
        return f"{money}{self.tokens:,.0f} tokens"


def expected_spending(config: OpenAIConfig, units: int, samples: int) -> dict[str, Any]:
    """What `units` units with `samples` captions in all are expected to take: requests, tokens, USD (None without
    prices)."""
    per_unit = -(-samples // units // config.captions_per_request) if units else 0
    prompt = len(config.system) + len(config.prompt) + len(config.steering) + 200
    named = config.steering_objects * TOKENS_PER_SUBJECT
    requests = units * per_unit
    input_tokens = requests * (prompt / CHARACTERS_PER_TOKEN + named)
    output_tokens = samples * TOKENS_PER_CAPTION
    return {
        "requests": requests,
        "input_tokens": round(input_tokens),
        "output_tokens": round(output_tokens),
        "cost_usd": config.usd(input_tokens, output_tokens, batch=config.batch),
    }


def spending_assumptions(config: OpenAIConfig, expected: Mapping[str, Any]) -> tuple[str, ...]:
    """What `expected_spending` is based on, and which cap it is above; a line each."""
    tokens = (
        f"{expected['requests']} requests, {expected['input_tokens']} prompt and {expected['output_tokens']} answer"
    )
    line = f"captions: {tokens} tokens of {config.model!r}, {TOKENS_PER_CAPTION:g} tokens a caption, no answer twice"
    cost = expected["cost_usd"]
    if cost is None:
        return line, "captions cost nothing, as caption.openai.price_input and price_output are not given"
    share = ", half of it in a batch" if config.batch else ""
    line += f", {config.price_input:g} and {config.price_output:g} USD per million tokens{share}"
    if config.cap_usd is None or cost <= config.cap_usd:
        return (line,)
    return line, f"captions: caption.openai.cap_usd {config.cap_usd:g} is less than that; units above it stay pending"
