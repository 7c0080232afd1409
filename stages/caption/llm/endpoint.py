"""Settings of an OpenAI-compatible endpoint, and of what is sent to it: transport, retries, spending limits."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from bootpig.stages.caption.llm.spending import Spent
from bootpig.stages.engine.contract import MODEL, SPEED, InputError, StageConfig
from bootpig.storage.secrets import hide


class EndpointConfig(StageConfig):
    """An OpenAI-compatible endpoint: the transport and the spending limits.

    The model's name and what is asked change the answers and are part of the fingerprint. The address, the transport
    and the prices are not: paid answers are kept when an endpoint moves or a cap is raised.
    """

    section: ClassVar[str]
    """Where these settings are in the configuration, for messages: `caption.openai`."""
    reserved: ClassVar[tuple[str, ...]]
    """Fields of a request that `extra_body` may not set."""
    price: ClassVar[str]
    """The fields that `cap_usd` needs, for messages."""

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
    extra_body: dict[str, Any] = Field(
        default={}, description="More fields of each request, such as {max_completion_tokens: 4000}."
    )
    rounds: int = Field(
        default=3,
        ge=1,
        le=20,
        json_schema_extra=SPEED,
        description="Rounds of requests per run for what a unit still misses after short, refused or unreadable "
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
    cap_usd: float | None = Field(
        default=None,
        gt=0,
        json_schema_extra=SPEED,
        description="Spending cap in USD for this model and these settings, over all runs. Units beyond it stay "
        "pending.",
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
        if taken := sorted(set(extra) & set(cls.reserved)):
            raise ValueError(f"{', '.join(taken)} cannot be set here; remove it")
        return extra

    @model_validator(mode="after")
    def _prices(self) -> EndpointConfig:
        if self.cap_usd is not None and self.usd(Spent()) is None:
            raise ValueError(f"cap_usd needs {self.price}")
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

    @property
    @abstractmethod
    def starts_structured(self) -> bool:
        """Whether the first requests ask for a format of the answers that some endpoints do not know."""

    @property
    def needs_structure(self) -> bool:
        """Whether requests without that format are not allowed."""
        return False

    @abstractmethod
    def usd(self, spent: Spent) -> float | None:
        """The price of what was spent, in USD. None if the prices are not set."""

    @abstractmethod
    def amount(self, spent: Spent) -> str:
        """What was spent, without its price, for messages: `1,204,331 tokens`."""

    def over_cap(self, spent: Spent) -> str:
        """Name and value of the cap that is exceeded; empty if none."""
        usd = self.usd(spent)
        return (
            f"cap_usd {self.cap_usd:g}" if self.cap_usd is not None and usd is not None and usd > self.cap_usd else ""
        )

    def summary(self, spent: Spent) -> str:
        """`4.98 USD, 1,204,331 tokens`."""
        usd = self.usd(spent)
        return ("" if usd is None else f"{usd:.4g} USD, ") + self.amount(spent)
