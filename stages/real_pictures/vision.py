"""Captions of pictures by a vision model behind an OpenAI-compatible endpoint: one picture per request.

Rounds, journal, replay and spending cap are those of the caption stage (`stages/caption/llm/filling.py`). In the
journal an answer belongs to a picture by its sample id, which is that of its content: a picture that moves to another
unit keeps the caption that was paid for, and one that changes is asked for again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bootpig.stages.caption.llm.about_pictures import AboutPictures
from bootpig.stages.caption.llm.answers import FAULTS
from bootpig.stages.caption.llm.filling import Filling, filled
from bootpig.stages.caption.llm.journal import Key, Record
from bootpig.stages.caption.llm.ledger import Ledger, open_ledger
from bootpig.stages.caption.llm.requests import AS_JSON, CAPTIONS, Filled, chat_request, read_captions
from bootpig.stages.caption.llm.spending import CHARACTERS_PER_TOKEN, TOKENS_PER_PICTURE
from bootpig.stages.caption.sources import Draft
from bootpig.stages.engine.contract import SourceContext
from bootpig.stages.real_pictures.config import VisionConfig
from bootpig.storage.errors import CorruptPart

AS_LINE = "Write the caption and nothing else: no quotes, no other text."


class PictureAsker(AboutPictures[str]):
    """Requests for one caption each."""

    config: VisionConfig

    def request(self, key: Key, asked: int, covered: Sequence[str], *, structured: bool) -> dict[str, Any]:
        text = [self.config.prompt, AS_JSON if structured else AS_LINE]
        return chat_request(self.config, self.content(key, text), CAPTIONS if structured else None)

    def read(self, key: Key, record: Record, asked: int) -> Filled[str]:
        return read_captions(self.config, record, asked)


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
        asker = PictureAsker(config, pictures, numbers, chosen)
        return Filling(config, ledger, asker, context, f"pictures unit {unit}", chosen, len(ids))

    before = _committed(context, unit) if context.force else None

    def is_committed(captions: Sequence[str | None]) -> bool:
        return before is not None and captions == [before.get(id) for id in ids]

    work = filled(filling, ledger.journal, numbers, context, None if before is None else is_committed)
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
