"""Settings of `synthesize.source: openai`: an OpenAI-compatible images endpoint, and what its pictures cost."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from bootpig.stages.caption.llm.endpoint import EndpointConfig
from bootpig.stages.caption.llm.spending import Spent
from bootpig.stages.engine.contract import SPEED


class ImagesConfig(EndpointConfig):
    """An endpoint that draws pictures, one per request."""

    section: ClassVar[str] = "synthesize.openai"
    reserved: ClassVar[tuple[str, ...]] = (
        *("model", "prompt", "n", "size", "quality", "seed", "response_format"),
        *("stream", "partial_images"),
    )
    price: ClassVar[str] = "price_per_image, in USD"

    quality: str | None = Field(
        default=None, min_length=1, description="`quality` of each request, such as high or hd. null: not sent."
    )
    send_seed: bool = Field(
        default=True,
        description="Send the sample's seed, so that another run gets the same picture. false for an endpoint that "
        "rejects it, such as api.openai.com.",
    )
    extra_body: dict[str, Any] = Field(
        default={}, description="More fields of each request, such as {num_inference_steps: 28}."
    )
    price_per_image: float | None = Field(
        default=None, ge=0, json_schema_extra=SPEED, description="USD per picture of the size that is asked for."
    )
    cap_images: int | None = Field(
        default=None, gt=0, json_schema_extra=SPEED, description="The same cap as a number of pictures."
    )

    @property
    def starts_structured(self) -> bool:
        return True

    def usd(self, spent: Spent) -> float | None:
        return None if self.price_per_image is None else spent.asked * self.price_per_image

    def amount(self, spent: Spent) -> str:
        return f"{spent.asked:,} pictures"

    def over_cap(self, spent: Spent) -> str:
        if self.cap_images is not None and spent.asked > self.cap_images:
            return super().over_cap(spent) or f"cap_images {self.cap_images}"
        return super().over_cap(spent)
