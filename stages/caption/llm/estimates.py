"""Estimates what the captions of a run cost, for `plan`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bootpig.stages.caption.llm.chat import ChatConfig
from bootpig.stages.caption.llm.spending import TOKENS_PER_CAPTION, Spent


def expected_spending(
    config: ChatConfig, requests: int, tokens_per_prompt: float, captions: int, batch: bool = False
) -> dict[str, Any]:
    """What `requests` requests for `captions` captions in all are expected to take: requests, tokens, USD (None without
    prices)."""
    input_tokens = requests * tokens_per_prompt
    output_tokens = captions * TOKENS_PER_CAPTION
    spent = Spent()
    spent.add(captions, input_tokens, output_tokens, batch)
    return {
        "requests": requests,
        "input_tokens": round(input_tokens),
        "output_tokens": round(output_tokens),
        "cost_usd": config.usd(spent),
    }


def spending_assumptions(
    config: ChatConfig, expected: Mapping[str, Any], batch: bool = False, what: str = "captions"
) -> tuple[str, ...]:
    """What `expected_spending` is based on, and which cap it is above; a line each. `what`: is asked for."""
    tokens = (
        f"{expected['requests']} requests, {expected['input_tokens']} prompt and {expected['output_tokens']} answer"
    )
    each = f"{TOKENS_PER_CAPTION:g} tokens a {what.removesuffix('s')}"
    line = f"{what}: {tokens} tokens of {config.model!r}, {each}, no answer twice"
    cost, section = expected["cost_usd"], config.section
    if cost is None:
        return line, f"{what} cost nothing, as {section}.price_input and price_output are not given"
    share = ", half of it in a batch" if batch else ""
    line += f", {config.price_input:g} and {config.price_output:g} USD per million tokens{share}"
    if config.cap_usd is None or cost <= config.cap_usd:
        return (line,)
    return line, f"{what}: {section}.cap_usd {config.cap_usd:g} is less than that; units above it stay pending"
