"""Requests to a vision model about one picture each, as chat completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bootpig.stages.caption.llm.chat import ChatConfig
from bootpig.stages.caption.llm.journal import Key
from bootpig.stages.caption.llm.pictures import picture_part, without_pictures
from bootpig.stages.caption.llm.requests import ChatAsker, S

AGAIN = "This is attempt {number}."
"""Makes a repeated request different, because a caching gateway would answer an equal one with the same text."""


class AboutPictures(ChatAsker[S]):
    """Requests about one picture each.

    Args:
        config: the endpoint.
        pictures: PNG files, one per slot.
        numbers: what identifies each of them in the journal.
        generations: that number → generation in the journal.
    """

    def __init__(
        self, config: ChatConfig, pictures: Sequence[bytes], numbers: Sequence[int], generations: Mapping[int, int]
    ) -> None:
        self.config = config
        self.pictures = pictures
        self.numbers = numbers
        self.slots = {number: slot for slot, number in enumerate(numbers)}
        self.generations = generations

    def chunks(self, slots: Sequence[int]) -> list[list[int]]:
        return [[slot] for slot in slots]

    def keys(self, round: int, chunks: Sequence[Sequence[int]]) -> list[Key]:
        numbers = [self.numbers[slot] for (slot,) in chunks]
        return [Key(number, self.generations[number], round, 0) for number in numbers]

    def content(self, key: Key, text: Sequence[str]) -> list[dict[str, Any]]:
        """The content of the user message: paragraphs of text, and the picture."""
        if key.round or key.generation:
            text = [*text, AGAIN.format(number=f"{key.generation + 1}-{key.round + 1}")]
        return [{"type": "text", "text": "\n\n".join(text)}, self._picture(key)]

    def kept(self, request: dict[str, Any]) -> dict[str, Any]:
        """Without the picture, which would fill the journal. The entry's name says which one it is."""
        return without_pictures(request)

    def sent(self, name: str, kept: dict[str, Any]) -> dict[str, Any]:
        key = Key.parse(name)
        assert key is not None, "a name that this program wrote"
        *others, message = kept["messages"]
        content = [part if "text" in part else self._picture(key) for part in message["content"]]
        return {**kept, "messages": [*others, {**message, "content": content}]}

    def _picture(self, key: Key) -> dict[str, Any]:
        return picture_part(self.pictures[self.slots[key.unit]])
