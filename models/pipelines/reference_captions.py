"""What the Reference UNet reads beside a reference: the whole caption, or the part that names the object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

ReferenceCaption = Literal["caption", "object"]
"""The whole caption (the paper), or its `object_caption` (the published code)."""


def object_caption(caption: str) -> str:
    """What is before the first comma of a caption: `A photo of a teapot`."""
    return caption.split(",", 1)[0].strip()


def reference_captions(
    reads: ReferenceCaption, prompts: Sequence[str] | None, given: str | Sequence[str] | None, count: int
) -> list[str] | None:
    """The text that the Reference UNet reads for each of `count` prompts; None: the prompt embeds serve as they are.

    Args:
        reads: what the model was trained with.
        prompts: None where there are only embeds.
        given: what to read in place of it; a single text serves all prompts.

    Raises:
        ValueError: `given` has another number of texts, or there is no prompt to take the object from.
    """
    if given is not None:
        captions = [given] * count if isinstance(given, str) else list(given)
        if len(captions) != count:
            raise ValueError(f"reference_prompt: {len(captions)} for {count} prompts")
        return captions
    if prompts is None:
        if reads == "object":
            raise ValueError("reference_prompt: this model reads object captions, give one with prompt_embeds")
        return None
    return [object_caption(prompt) for prompt in prompts] if reads == "object" else list(prompts)
