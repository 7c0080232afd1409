"""Settings of an OpenAI-compatible endpoint, and of what is sent to it: transport, retries, spending limits."""

from __future__ import annotations

import os
from string import Formatter
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from bootpig.stages.engine.contract import MODEL, SPEED, InputError, StageConfig
from bootpig.storage.secrets import hide

RESERVED = ("messages", "model", "n", "response_format", "stream", "temperature")
"""Fields of a request that `extra_body` may not set."""


class EndpointConfig(StageConfig):
    """An OpenAI-compatible endpoint: the transport and the spending limits.

    The prompt and the model's name change the answers and are part of the fingerprint. The address, the transport and
    the prices are not: paid captions are kept when an endpoint moves or a cap is raised.
    """

    section: ClassVar[str]
    """Where these settings are in the configuration, for messages: `caption.openai`."""
    blanks: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Field with text → the blanks that it may have, such as `count` for {count}."""

    base_url: str = Field(
        default="https://api.openai.com/v1",
        json_schema_extra=MODEL,
        description="The endpoint's address, including /v1. Not part of the fingerprint, unlike `model`.",
    )
    model: str = Field(min_length=1, description="Name of the model at the endpoint.")
    api_key_env: str | None = Field(
        default="OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        json_schema_extra=SPEED,
        description="Name of the environment variable with the API key. null for an endpoint that needs none.",
    )
    api_key_secret: str | None = Field(
        default=None,
        min_length=1,
        json_schema_extra=SPEED,
        description="Name of a Prefect Secret block with the API key, used if the variable `api_key_env` is not set.",
    )
    system: str = Field(
        default="You are a writer of simple scene descriptions under 18 words.",
        description="The system message. Empty: none.",
    )
    temperature: float | None = Field(default=1.2, ge=0, le=2, description="Sampling temperature. null: not sent.")
    extra_body: dict[str, Any] = Field(
        default={}, description="More fields of each request, such as {max_completion_tokens: 4000}."
    )
    format: Literal["auto", "json", "lines"] = Field(
        default="auto",
        json_schema_extra=SPEED,
        description="Format of the answers. json: by a JSON schema. lines: one caption per line. auto: json, or lines "
        "if the endpoint answers 400 to a schema.",
    )
    rounds: int = Field(
        default=3,
        ge=1,
        le=20,
        json_schema_extra=SPEED,
        description="Rounds of requests per run for a unit's missing captions after short, refused or unreadable "
        "answers.",
    )
    concurrency: int = Field(
        default=8, ge=1, le=256, json_schema_extra=SPEED, description="Maximum number of parallel requests."
    )
    timeout: float = Field(
        default=180.0, gt=0, le=3600, json_schema_extra=SPEED, description="Timeout of one request, in seconds."
    )
    max_retries: int = Field(
        default=8,
        ge=0,
        le=100,
        json_schema_extra=SPEED,
        description="Retries of a request on 408, 409, 429, 5xx, a timeout or a connection error, with exponential "
        "backoff and jitter, or after the endpoint's Retry-After.",
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
    cap_usd: float | None = Field(
        default=None,
        gt=0,
        json_schema_extra=SPEED,
        description="Spending cap in USD for this prompt and model, over all runs. Units beyond it stay pending.",
    )
    cap_tokens: int | None = Field(
        default=None, gt=0, json_schema_extra=SPEED, description="The same cap in tokens, prompt and answer together."
    )

    @field_validator("base_url")
    @classmethod
    def _no_secret_in_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give the endpoint's address, such as https://api.openai.com/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("remove user, password and query; put the key in the variable named by api_key_env")
        return url.rstrip("/")

    @field_validator("extra_body")
    @classmethod
    def _not_ours(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(set(extra) & set(RESERVED)):
            raise ValueError(f"{', '.join(taken)} cannot be set here; remove it")
        return extra

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

    @model_validator(mode="after")
    def _prices(self) -> EndpointConfig:
        if self.cap_usd is not None and (self.price_input is None or self.price_output is None):
            raise ValueError("cap_usd needs price_input and price_output, in USD per million tokens")
        if self.api_key_secret is not None and self.api_key_env is None:
            raise ValueError("api_key_secret needs api_key_env, the variable in which the key is put")
        return self

    def key(self) -> str:
        """The API key from its environment variable. Empty for an endpoint that needs none. Raises InputError."""
        name = self.api_key_env
        if name is None:
            return ""
        if key := os.environ.get(name, "").strip():
            hide(key)
            if (wrong := next((place for place, c in enumerate(key, 1) if not "!" <= c <= "~"), None)) is not None:
                # the message does not show the character: no part of a key is ever shown
                raise InputError(
                    f"{self.section}.api_key_env: {name!r} → character {wrong} of {len(key)} of this variable is a "
                    "space, a line break or another character that no key contains, as when two lines or a curly quote "
                    "were pasted; export the key again"
                )
            return key
        block = f" and there is no Prefect Secret block {self.api_key_secret!r}" if self.api_key_secret else ""
        raise InputError(
            f"{self.section}.api_key_env: {name!r} → this environment variable is not set{block}; export the key for "
            f"{self.base_url} in it, or set api_key_env to null for an endpoint that needs no key"
        )

    def check_key(self) -> None:
        """Raise InputError if the API key is missing or unusable, unless a Secret block will provide it later."""
        if self.api_key_secret is None or os.environ.get(str(self.api_key_env)):
            self.key()

    def usd(self, input_tokens: float, output_tokens: float, *, batch: bool = False) -> float | None:
        """The cost of tokens in USD, half of that in a batch. None if the prices are not set."""
        if self.price_input is None or self.price_output is None:
            return None
        price = (input_tokens * self.price_input + output_tokens * self.price_output) / 1e6
        return price / 2 if batch else price
