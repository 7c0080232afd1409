"""Captions of pictures by a vision model behind an OpenAI-compatible endpoint: one picture per request.

Rounds, journal, replay and spending cap are those of the caption stage (`stages/caption/llm/filling.py`). In the
journal an answer belongs to a picture by its sample id, which is that of its content: a picture that moves to another
unit keeps the caption that was paid for, and one that changes is asked for again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bootpig.stages.caption.llm.answers import FAULTS
from bootpig.stages.caption.llm.filling import Filling, generations_of
from bootpig.stages.caption.llm.journal import Key
from bootpig.stages.caption.llm.ledger import Ledger, open_ledger
from bootpig.stages.caption.llm.pictures import picture_part, without_pictures
from bootpig.stages.caption.llm.requests import AS_JSON, ChatAsker, chat_request
from bootpig.stages.caption.llm.spending import CHARACTERS_PER_TOKEN, TOKENS_PER_PICTURE
from bootpig.stages.caption.sources import Draft
from bootpig.stages.engine.contract import SourceContext
from bootpig.stages.real_pictures.config import VisionConfig
from bootpig.storage.errors import CorruptPart

AS_LINE = "Write the caption and nothing else: no quotes, no other text."
AGAIN = "This is attempt {number}."
"""Makes a repeated request different, because a caching gateway would answer an equal one with the same text."""


class PictureAsker(ChatAsker):
    """Requests for one caption each.

    Args:
        config: the endpoint.
        pictures: the squares as PNG, one per slot.
        ids: their sample ids, 16 hex digits.
        generations: sample id as a number → generation in the journal.
    """

    config: VisionConfig

    def __init__(
        self, config: VisionConfig, pictures: Sequence[bytes], ids: Sequence[str], generations: Mapping[int, int]
    ) -> None:
        self.config = config
        self.pictures = pictures
        self.numbers = [int(id, 16) for id in ids]
        self.slots = {number: slot for slot, number in enumerate(self.numbers)}
        self.generations = generations

    def chunks(self, slots: Sequence[int]) -> list[list[int]]:
        return [[slot] for slot in slots]

    def keys(self, round: int, chunks: Sequence[Sequence[int]]) -> list[Key]:
        numbers = [self.numbers[slot] for (slot,) in chunks]
        return [Key(number, self.generations[number], round, 0) for number in numbers]

    def request(self, key: Key, asked: int, covered: Sequence[str], *, structured: bool) -> dict[str, Any]:
        text = [self.config.prompt, AS_JSON if structured else AS_LINE]
        if key.round or key.generation:
            text.append(AGAIN.format(number=f"{key.generation + 1}-{key.round + 1}"))
        content = [{"type": "text", "text": "\n\n".join(text)}, picture_part(self.pictures[self.slots[key.unit]])]
        return chat_request(self.config, content, structured=structured)

    def kept(self, request: dict[str, Any]) -> dict[str, Any]:
        """Without the picture. The entry's name says which one it is."""
        return without_pictures(request)


def write_captions(
    config: VisionConfig, context: SourceContext, unit: int, ids: Sequence[str], pictures: Sequence[bytes]
) -> list[Draft]:
    """The captions of a unit's pictures.

    Args:
        ids: the pictures' sample ids.
        pictures: PNG files.

    Raises:
        Postponed: the spending cap would be exceeded.
        InputError: the endpoint rejects the key, the model or the request.
    """
    ledger = open_ledger(Ledger, context.parts, config)
    ledger.journal.refresh()
    numbers = [int(id, 16) for id in ids]

    def filling(chosen: Mapping[int, int]) -> Filling[str]:
        asker = PictureAsker(config, pictures, ids, chosen)
        return Filling(config, ledger, asker, context, f"pictures unit {unit}", chosen, len(ids))

    before = _committed(context, unit) if context.force else None

    def is_committed(chosen: Mapping[int, int]) -> bool:
        return before is not None and filling(chosen).replayed() == [before.get(id) for id in ids]

    work = filling(generations_of(ledger.journal, numbers, None if before is None else is_committed))
    work.fill()
    context.usage.update(work.usage())
    return [
        Draft(caption)
        if caption is not None
        else Draft("", "failed", *work.faults.get(slot, ("short", FAULTS["short"])))
        for slot, caption in enumerate(work.slots)
    ]


def prompt_length(config: VisionConfig) -> float:
    """The tokens of a request's prompt, about."""
    return (len(config.system) + len(config.prompt) + len(AS_JSON)) / CHARACTERS_PER_TOKEN + TOKENS_PER_PICTURE


def _committed(context: SourceContext, unit: int) -> dict[str, str | None] | None:
    """Sample id → caption of a committed unit."""
    try:
        marker = context.parts.whole(unit)
        return None if marker is None else {row["id"]: row["caption"] for row in marker.rows}
    except CorruptPart:
        return None
