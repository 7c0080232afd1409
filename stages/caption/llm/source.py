"""Captions from an LLM behind an OpenAI-compatible endpoint.

**Slots.** A unit of U captions has U slots. Round 0 cuts them into requests of `captions_per_request`; each request
owns its slots. What it leaves open (a short, refused, cut-off or unreadable answer) the next round asks for, up to
`rounds` rounds a run; what is open then is a failed row with the code of its last fault. A request that got no answer
at all ends the unit's rounds, so that a retry asks that very request again and the unit comes out as if nothing had
happened.

**Order.** Unit k is made when all units below it are complete: captions are deduplicated against those of every other
committed unit, and requests name the subjects that these cover. A repeated caption is a row `rejected: duplicate`.

**Replay.** Every answer is journaled before it is read (see `journal`), and what the journal holds is never
asked for again. Which requests there are, and what they say, follows from config, seed, the units below and the
answers before; so a unit that is killed, lost or damaged comes back with the same bytes, and nothing is paid for
twice. A forced unit asks anew: a new generation in the journal, unless the newest one is not yet what the committed
unit holds (then a forced run was interrupted, and goes on).

**Staleness.** A unit does not become stale when one below it is made anew: it is the new one that is deduplicated
against all the others. Being alike is symmetric, so the committed units never hold a caption twice, a replay finds
what the first making found, and a forced unit costs the pictures of that unit alone.

**Spending.** Before a request is sent, what the journal sums to, what is in flight and what this one is expected to
take must stay within `cap_usd` and `cap_tokens`; else the unit is postponed, and stays pending.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TYPE_CHECKING

from bootpig.stages.caption.config import CaptionConfig
from bootpig.stages.caption.duplicates import DuplicateIndex
from bootpig.stages.caption.llm.answers import FAULTS, read_answer
from bootpig.stages.caption.llm.config import OpenAIConfig
from bootpig.stages.caption.llm.faults import Fault, SchemaRefused
from bootpig.stages.caption.llm.journal import Key, Record
from bootpig.stages.caption.llm.ledger import Ledger, open_ledger
from bootpig.stages.caption.llm.requests import Asker
from bootpig.stages.caption.phrases import head_noun, object_phrase
from bootpig.stages.caption.sources import Draft
from bootpig.stages.engine.contract import InputError, Postponed, SourceContext

if TYPE_CHECKING:
    from bootpig.stages.caption.llm.client import LLMClient

LONGEST = 300
"""Characters of a caption; no text encoder reads more."""

NEVER = frozenset(
    ["beach", "cloud", "coast", "desert", "field", "forest", "lake", "landscape", "meadow", "mountain", "ocean"]
    + ["river", "scene", "sea", "sky", "sunrise", "sunset", "valley", "view"]
)
"""No finite, solid objects (BootPIG, section 3.3)."""


class OpenAISource:
    """Asks for captions until a unit is full."""

    def __init__(self, config: CaptionConfig, seed: int) -> None:
        assert config.openai is not None
        self.config: OpenAIConfig = config.openai
        self.seed = seed

    def check(self) -> None:
        """The config's own validation has seen to it; what was paid for can be looked at without a key."""

    def check_ready(self) -> None:
        secret_follows = self.config.api_key_secret is not None
        if not secret_follows or os.environ.get(str(self.config.api_key_env)):
            self.config.key()

    def captions(self, unit: int, indices: range, context: SourceContext | None) -> list[Draft]:
        assert context is not None, "captions of an LLM need the store"
        ledger = open_ledger(context.parts, self.config)
        markers = ledger.refresh(context.units, leave_out=unit)
        if waits_for := [below for below in range(unit) if below not in markers]:
            raise Postponed(
                f"caption unit {unit}: waits for unit {waits_for[0]} below it; units of an LLM are made in order"
            )
        journal = ledger.journal
        generation = journal.generation(unit)
        if context.force and unit in markers:
            slots = _Unit(self, ledger, context, unit, generation, len(indices)).replayed()
            if slots == [row["caption"] for row in markers[unit].rows]:
                generation += 1
        work = _Unit(self, ledger, context, unit, generation, len(indices))
        work.fill()
        context.usage.update(work.usage())
        return self._judged(work, ledger.index)

    def digest(self, indices: range) -> str:
        return ""

    def _judged(self, work: _Unit, others: DuplicateIndex) -> list[Draft]:
        own = DuplicateIndex(self.config.near_duplicate)
        drafts = []
        for slot, caption in enumerate(work.slots):
            if caption is None:
                code, message = work.faults.get(slot, ("short", FAULTS["short"]))
                drafts.append(Draft("", "failed", code, message))
                continue
            draft = Draft(caption)
            phrase = object_phrase(caption)
            if phrase is not None:  # without one the stage itself rejects it
                if head_noun(phrase) in NEVER:
                    draft = replace(draft, status="rejected", reason="not_an_object")
                elif own.repeats(caption) or others.repeats(caption):
                    draft = replace(draft, status="rejected", reason="duplicate")
                else:
                    own.add(caption)
            drafts.append(draft)
        return drafts


class _Unit:
    """One unit on its way from open slots to captions."""

    def __init__(
        self, source: OpenAISource, ledger: Ledger, context: SourceContext, unit: int, generation: int, size: int
    ) -> None:
        self.config = source.config
        self.ledger = ledger
        self.context = context
        self.unit = unit
        self.generation = generation
        self.asker = Asker(source.config, source.seed, ledger)
        self.slots: list[str | None] = [None] * size
        self.faults: dict[int, tuple[str, str]] = {}
        """Open slot → code and message of what last kept it open."""
        self.answers = ledger.journal.answers(unit, generation)
        self.asked: list[Record] = []
        """In this run."""
        self._client: LLMClient | None = None

    @property
    def client(self) -> LLMClient:
        """Made when something is asked: a replay needs no key."""
        if self._client is None:
            # the openai package takes its time: only who asks has to wait for it
            from bootpig.stages.caption.llm.client import LLMClient

            self._client = LLMClient(self.config)
        return self._client

    def usage(self) -> dict[str, float]:
        tokens = [record.tokens() for record in self.asked]
        return {
            "requests": len(self.asked),
            "replayed": len(self.answers) - len(self.asked),
            "retries": sum(record.retries for record in self.asked),
            "input_tokens": round(sum(a for a, _ in tokens)),
            "output_tokens": round(sum(b for _, b in tokens)),
        }

    def replayed(self) -> list[str | None]:
        """The slots as far as the journal fills them."""
        for number in itertools.count():
            chunks = self._chunks()
            keys = [Key(self.unit, self.generation, number, k) for k in range(len(chunks))]
            if not chunks or any(key not in self.answers for key in keys):
                return self.slots
            self._read(chunks, keys)
        raise AssertionError("unreachable")

    def fill(self) -> None:
        """Ask until no slot is open, or a run's rounds are used up, or a request got no answer.

        Raises:
            Postponed: the spending cap.
            InputError: the key, the model or the request cannot be used.
        """
        asked = False
        for number in itertools.count():
            chunks = self._chunks()
            # a run that asks ends at a multiple of `rounds`, wherever it began: a killed one asks the same rounds
            if not chunks or (asked and number % self.config.rounds == 0):
                return
            keys = [Key(self.unit, self.generation, number, k) for k in range(len(chunks))]
            missing = [key for key in keys if key not in self.answers]
            lost: dict[Key, tuple[str, str]] = {}
            if missing:
                asked = True
                if self.config.batch and number == 0:
                    lost = self._through_batch(missing)
                else:
                    lost = self._exchange(missing, [chunks[key.number] for key in missing])
            self._read(chunks, keys)
            for key, fault in lost.items():
                self.faults |= dict.fromkeys(chunks[key.number], fault)
            if lost:
                return

    def _chunks(self) -> list[list[int]]:
        """The open slots, cut into requests."""
        left = [slot for slot, caption in enumerate(self.slots) if caption is None]
        size = self.config.captions_per_request
        return [left[begin : begin + size] for begin in range(0, len(left), size)]

    def _read(self, chunks: Sequence[Sequence[int]], keys: Sequence[Key]) -> None:
        for chunk, key in zip(chunks, keys, strict=True):
            if (record := self.answers.get(key)) is None:
                continue
            answer = read_answer(record.body, len(chunk), lines_too=self.config.format != "json")
            for slot, caption in zip(chunk, answer.captions, strict=False):
                self.slots[slot] = caption[:LONGEST]
            if answer.fault:
                self.faults |= dict.fromkeys(chunk[len(answer.captions) :], (answer.fault, answer.message))
        self._show()

    def _show(self) -> None:
        """Progress; raises where the run is to end."""
        filled = sum(caption is not None for caption in self.slots)
        self.context.progress(filled, len(self.slots), self._client.wait() if self._client else "")

    def _exchange(self, keys: Sequence[Key], chunks: Sequence[Sequence[int]]) -> dict[Key, tuple[str, str]]:
        """Ask several requests at a time; each answer is journaled by the thread that received it.

        Returns:
            The requests that got no answer, with code and message.
        """
        covered = self.asker.covered(self.slots)
        waiting = [(key, len(chunk)) for key, chunk in zip(keys, chunks, strict=True)]
        lost: dict[Key, tuple[str, str]] = {}
        running: dict[Future[Record], tuple[Key, tuple[float, float]]] = {}
        capped, answered = "", False
        client = self.client
        with ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="captions") as pool:
            try:
                while waiting or running:
                    while waiting and not capped and len(running) < self.config.concurrency:
                        key, asked = waiting[0]
                        request = self.asker.request(key, asked, covered, structured=self.ledger.structured)
                        tokens = self.ledger.journal.spent.expected(asked, self.asker.characters(request))
                        if capped := self.ledger.over_cap([*(t for _, t in running.values()), tokens]):
                            break
                        waiting.pop(0)
                        running[pool.submit(self._ask, client, key, asked, covered)] = (key, tokens)
                    if not running:
                        break
                    done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                    for future in done:
                        key, _ = running.pop(future)
                        try:
                            record = future.result()
                        except Fault as fault:
                            lost[key] = (fault.code, str(fault))
                            # the endpoint is gone, or the account is empty: no use in asking on
                            if not answered or fault.code == "quota":
                                lost |= {other: lost[key] for other, _ in waiting}
                                waiting.clear()
                        else:
                            answered = True
                            self.ledger.journal.count(key, record)
                            self.answers[key] = record
                            self.asked.append(record)
                    self._show()
            except BaseException:
                client.stop()
                raise
        if capped and waiting:
            spent = self.ledger.journal.spent.summary(self.config)
            raise Postponed(
                f"caption unit {self.unit}: the spending cap caption.openai.{capped} would be passed ({spent} spent); "
                "raise it and run again, what was paid for is kept"
            )
        return lost

    def _ask(self, client: LLMClient, key: Key, asked: int, covered: Sequence[str]) -> Record:
        """One request; in `auto` once more without a schema, where the endpoint takes none."""
        structured = self.ledger.structured
        request = self.asker.request(key, asked, covered, structured=structured)
        try:
            body, retries = client.ask(request)
        except SchemaRefused as refused:
            if self.config.format == "json":
                raise InputError(
                    f"caption.openai.format: 'json' → the endpoint answers 400 to a JSON schema ({refused}); "
                    "use auto or lines"
                ) from None
            structured = False
            request = self.asker.request(key, asked, covered, structured=False)
            body, retries = client.ask(request)
            self.ledger.structured = False
        record = Record(asked, structured, request, body, retries=retries)
        self.ledger.journal.keep(key, record)
        return record

    def _through_batch(self, missing: Sequence[Key]) -> dict[Key, tuple[str, str]]:
        """Round 0 of this unit and, with it, of those that share its batch."""
        from bootpig.stages.caption.llm import batch as llm_batch

        size, per_request = len(self.slots), self.config.captions_per_request
        counts = [min(per_request, size - begin) for begin in range(0, size, per_request)]
        lost = llm_batch.answer(self.client, self.asker, self.ledger, self.context, missing, counts)
        self.answers = self.ledger.journal.answers(self.unit, self.generation)
        self.asked += [self.answers[key] for key in missing if key in self.answers]
        return lost
