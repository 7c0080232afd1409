"""Captions from an LLM behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from stages.base import InputError, SourceContext
from stages.drafts import Draft

if TYPE_CHECKING:
    from stages.caption import CaptionConfig


class OpenAISource:
    """Asks for captions until a unit is full."""

    def __init__(self, config: CaptionConfig, seed: int) -> None:
        assert config.openai is not None
        self.config = config.openai
        self.seed = seed

    def check(self) -> None:
        """The config's own validation has seen to it; what was paid for can be looked at without a key."""

    def check_ready(self) -> None:
        name = self.config.api_key_env
        if name is not None and self.config.api_key_secret is None and not os.environ.get(name):
            raise InputError(
                f"caption.openai.api_key_env: {name!r} → this environment variable is not set; export the key of "
                f"{self.config.base_url} in it, or set api_key_env to null for an endpoint that asks for none"
            )

    def captions(self, unit: int, indices: range, context: SourceContext | None) -> list[Draft]:
        raise InputError("caption.source: 'openai' → not in this version")

    def digest(self, indices: range) -> str:
        return ""
