"""Counts what captions cost in tokens and money, and estimates the cost of requests before they are sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bootpig.stages.caption.llm.endpoint import EndpointConfig

CHARACTERS_PER_TOKEN = 4.0
TOKENS_PER_CAPTION = 30.0
"""Tokens of a caption in an answer, with quotes and commas; captions have fewer than 18 words."""
TOKENS_PER_PICTURE = 1000.0
"""A picture in a prompt. Endpoints count 250 to 1,500 for one of 512 pixels a side."""
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

    def usd(self, config: EndpointConfig) -> float | None:
        """The amount in USD, or None if the config has no prices."""
        direct = config.usd(self.input, self.output)
        batched = config.usd(self.batch_input, self.batch_output, batch=True)
        return None if direct is None or batched is None else direct + batched

    def over_cap(self, config: EndpointConfig) -> str:
        """Name and value of the cap that this exceeds; empty if none."""
        usd = self.usd(config)
        if config.cap_usd is not None and usd is not None and usd > config.cap_usd:
            return f"cap_usd {config.cap_usd:g}"
        if config.cap_tokens is not None and self.tokens > config.cap_tokens:
            return f"cap_tokens {config.cap_tokens}"
        return ""

    def expected(self, asked: int, prompt: float) -> tuple[float, float]:
        """Expected (prompt, answer) tokens of a request for `asked` captions, based on earlier answers if any.

        Args:
            prompt: its prompt's tokens.
        """
        output = (self.output + self.batch_output) / self.captions if self.captions else TOKENS_PER_CAPTION
        return prompt, asked * output

    def with_more(self, expected: Sequence[tuple[float, float]], batch: bool = False) -> Spent:
        """A copy that includes requests of these (prompt, answer) tokens."""
        more = replace(self)
        for input, output in expected:
            more.add(0, input, output, batch)
        return more

    def summary(self, config: EndpointConfig) -> str:
        """`4.98 USD, 1,204,331 tokens`."""
        usd = self.usd(config)
        money = "" if usd is None else f"{usd:.4g} USD, "
        return f"{money}{self.tokens:,.0f} tokens"


def prompt_tokens(messages: Sequence[Mapping[str, Any]]) -> float:
    """About how many tokens the messages of a request take, with their pictures."""
    tokens = 0.0
    for message in messages:
        content = message.get("content") or ""
        for part in [{"text": content}] if isinstance(content, str) else content:
            tokens += len(part["text"]) / CHARACTERS_PER_TOKEN if "text" in part else TOKENS_PER_PICTURE
    return tokens


def expected_spending(
    config: EndpointConfig, requests: int, tokens_per_prompt: float, captions: int, batch: bool = False
) -> dict[str, Any]:
    """What `requests` requests for `captions` captions in all are expected to take: requests, tokens, USD (None without
    prices)."""
    input_tokens = requests * tokens_per_prompt
    output_tokens = captions * TOKENS_PER_CAPTION
    return {
        "requests": requests,
        "input_tokens": round(input_tokens),
        "output_tokens": round(output_tokens),
        "cost_usd": config.usd(input_tokens, output_tokens, batch=batch),
    }


def spending_assumptions(config: EndpointConfig, expected: Mapping[str, Any], batch: bool = False) -> tuple[str, ...]:
    """What `expected_spending` is based on, and which cap it is above; a line each."""
    tokens = (
        f"{expected['requests']} requests, {expected['input_tokens']} prompt and {expected['output_tokens']} answer"
    )
    line = f"captions: {tokens} tokens of {config.model!r}, {TOKENS_PER_CAPTION:g} tokens a caption, no answer twice"
    cost, section = expected["cost_usd"], config.section
    if cost is None:
        return line, f"captions cost nothing, as {section}.price_input and price_output are not given"
    share = ", half of it in a batch" if batch else ""
    line += f", {config.price_input:g} and {config.price_output:g} USD per million tokens{share}"
    if config.cap_usd is None or cost <= config.cap_usd:
        return (line,)
    return line, f"captions: {section}.cap_usd {config.cap_usd:g} is less than that; units above it stay pending"
