"""Gets captions from an LLM behind an OpenAI-compatible endpoint.

`filling` describes slots, rounds, replay and spending; here is what makes the captions of a data set.

**Order.** Unit k is made when all units below it are complete, because captions are deduplicated against all other
committed units, and requests name the subjects that those already cover. A repeated caption becomes a row
`rejected: duplicate`.

**Replay.** The requests and their content depend only on config, seed, the units below and earlier answers. A unit that
was killed, lost or damaged is therefore restored with the same bytes, and nothing is paid for twice. A forced unit
makes new requests under a new generation in the journal, unless the newest generation differs from the committed unit:
then an earlier forced run was interrupted, and its generation is continued.

**Staleness.** A unit does not become stale when a unit below it is made again; instead, the new unit is deduplicated
against all others. Similarity is symmetric, so the committed units never contain a caption twice, a replay gives the
same result as the first time, and forcing a unit only affects the pictures of that unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bootpig.stages.caption.config import CaptionConfig
from bootpig.stages.caption.duplicates import DuplicateIndex
from bootpig.stages.caption.llm.answers import FAULTS
from bootpig.stages.caption.llm.config import OpenAIConfig
from bootpig.stages.caption.llm.filling import Filling
from bootpig.stages.caption.llm.journal import Key
from bootpig.stages.caption.llm.ledger import CaptionLedger, open_ledger
from bootpig.stages.caption.llm.requests import CaptionAsker
from bootpig.stages.caption.phrases import head_noun, object_phrase
from bootpig.stages.caption.sources import Draft
from bootpig.stages.engine.contract import Postponed, SourceContext

if TYPE_CHECKING:
    from bootpig.stages.caption.llm.client import LLMClient

NEVER = frozenset(
    ["beach", "cloud", "coast", "desert", "field", "forest", "lake", "landscape", "meadow", "mountain", "ocean"]
    + ["river", "scene", "sea", "sky", "sunrise", "sunset", "valley", "view"]
)
"""Nouns that are rejected because they are not finite, solid objects (BootPIG, section 3.3)."""


class OpenAISource:
    """Requests captions until a unit is full."""

    def __init__(self, config: CaptionConfig, seed: int) -> None:
        assert config.openai is not None
        self.config: OpenAIConfig = config.openai
        self.seed = seed

    def check(self) -> None:
        """Nothing to do: the config is already validated, and stored captions can be read without an API key."""

    def check_ready(self) -> None:
        self.config.check_key()

    def captions(self, unit: int, indices: range, context: SourceContext | None) -> list[Draft]:
        assert context is not None, "captions of an LLM need the store"
        ledger = open_ledger(CaptionLedger, context.parts, self.config)
        markers = ledger.refresh(context.units, leave_out=unit)
        if waits_for := [below for below in range(unit) if below not in markers]:
            raise Postponed(
                f"caption unit {unit}: waits for unit {waits_for[0]}; captions from an LLM are made in order of units"
            )
        generation = ledger.journal.generations({unit}).get(unit, 0)
        if context.force and unit in markers:
            slots = self._filling(ledger, context, unit, generation, len(indices)).replayed()
            if slots == [row["caption"] for row in markers[unit].rows]:
                generation += 1
        work = self._filling(ledger, context, unit, generation, len(indices))
        work.fill()
        context.usage.update(work.usage())
        return self._judged(work, ledger.index)

    def digest(self, indices: range) -> str:
        return ""

    def _filling(
        self, ledger: CaptionLedger, context: SourceContext, unit: int, generation: int, size: int
    ) -> Filling[str]:
        asker = CaptionAsker(self.config, self.seed, ledger, unit, generation)

        def batch(client: LLMClient, missing: Sequence[Key], counts: Sequence[int]) -> Mapping[Key, tuple[str, str]]:
            from bootpig.stages.caption.llm import batch as llm_batch

            scope = llm_batch.CaptionScope(
                self.config, missing[0], context.units, counts, lambda group: asker.covered(below=group)
            )
            return llm_batch.answer(client, self.config, asker, ledger, context, scope, missing)

        return Filling(
            self.config,
            ledger,
            asker,
            context,
            f"caption unit {unit}",
            {unit: generation},
            size,
            batch if self.config.batch else None,
        )

    def _judged(self, work: Filling[str], others: DuplicateIndex) -> list[Draft]:
        own = DuplicateIndex(self.config.near_duplicate)
        drafts = []
        for slot, caption in enumerate(work.slots):
            if caption is None:
                code, message = work.faults.get(slot, ("short", FAULTS["short"]))
                drafts.append(Draft("", "failed", code, message))
                continue
            draft = Draft(caption)
            phrase = object_phrase(caption)
            if phrase is not None:  # otherwise the stage rejects it
                if head_noun(phrase) in NEVER:
                    draft = replace(draft, status="rejected", reason="not_an_object")
                elif own.repeats(caption) or others.repeats(caption):
                    draft = replace(draft, status="rejected", reason="duplicate")
                else:
                    own.add(caption)
            drafts.append(draft)
        return drafts
