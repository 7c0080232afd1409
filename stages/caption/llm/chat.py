"""Settings of an endpoint for chat completions: the messages, the format of the answers, and what tokens cost."""

from __future__ import annotations

from string import Formatter
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from bootpig.stages.caption.llm.endpoint import EndpointConfig
from bootpig.stages.caption.llm.spending import Spent
from bootpig.stages.engine.contract import SPEED


class ChatConfig(EndpointConfig):
    """An endpoint whose answers are chat completions."""

    reserved: ClassVar[tuple[str, ...]] = ("messages", "model", "n", "response_format", "stream", "temperature")
    price: ClassVar[str] = "price_input and price_output, in USD per million tokens"
    blanks: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Field with text → the blanks that it may have, such as `count` for {count}."""

    system: str = Field(
        default="You are a writer of simple scene descriptions under 18 words.",
        description="The system message. Empty: none.",
    )
    temperature: float | None = Field(default=1.2, ge=0, le=2, description="Sampling temperature. null: not sent.")
    format: Literal["auto", "json", "lines"] = Field(
        default="auto",
        json_schema_extra=SPEED,
        description="Format of the answers. json: by a JSON schema. lines: one caption per line. auto: json, or lines "
        "if the endpoint answers 400 to a schema.",
    )
    price_input: float | None = Field(
        default=None,
        ge=0,
        json_schema_extra=SPEED,
        description="USD per million prompt tokens, without batch discount.",
    )
    price_output: float | None = Field(
        default=None,
        ge=0,
        json_schema_extra=SPEED,
        description="USD per million answer tokens, without batch discount.",
    )
    cap_tokens: int | None = Field(
        default=None, gt=0, json_schema_extra=SPEED, description="The same cap in tokens, prompt and answer together."
    )

    @field_validator("*")
    @classmethod
    def _no_other_blanks(cls, text: Any, info: Any) -> Any:
        allowed = cls.blanks.get(info.field_name)
        if allowed is None:
            return text
        try:
            found = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
        except ValueError as error:
            raise ValueError(f"{error}; write {{{{ and }}}} for literal braces") from None
        if found - set(allowed):
            known = " and ".join(f"{{{blank}}}" for blank in allowed)
            raise ValueError(f"only the blank {known} is allowed; write {{{{ and }}}} for literal braces")
        return text

    @property
    def starts_structured(self) -> bool:
        return self.format != "lines"

    @property
    def needs_structure(self) -> bool:
        return self.format == "json"

    def usd(self, spent: Spent) -> float | None:
        """A batch costs half."""
        if self.price_input is None or self.price_output is None:
            return None
        input, output = spent.input + spent.batch_input / 2, spent.output + spent.batch_output / 2
        return (input * self.price_input + output * self.price_output) / 1e6

    def amount(self, spent: Spent) -> str:
        return f"{spent.tokens:,.0f} tokens"

    def over_cap(self, spent: Spent) -> str:
        if self.cap_tokens is not None and spent.tokens > self.cap_tokens:
            return super().over_cap(spent) or f"cap_tokens {self.cap_tokens}"
        return super().over_cap(spent)


class BatchedConfig(ChatConfig):
    """An endpoint whose first requests can go through its batch API."""

    batch: bool = Field(
        default=False,
        json_schema_extra=SPEED,
        description="Send first requests through the endpoint's /batches: half the price, answers within 24 hours.",
    )
    batch_poll: float = Field(
        default=30.0, gt=0, le=3600, json_schema_extra=SPEED, description="Seconds between status requests for a batch."
    )
