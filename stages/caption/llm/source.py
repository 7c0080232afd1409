"""Gets captions from an LLM behind an OpenAI-compatible endpoint.

**Slots.** A unit of U captions has U slots. Round 0 splits them into requests of `captions_per_request` slots each.
Slots that an answer leaves open (because it is short, refused, truncated or unreadable) are requested again in the next
round, up to `rounds` rounds per run. Slots still open then become failed rows with the code of their last fault. A
request without any answer ends the unit's rounds, so that a retry repeats exactly that request, and the result is the
same as without the error.

**Order.** Unit k is made when all units below it are complete, because captions are deduplicated against all other
committed units, and requests name the subjects that those already cover. A repeated caption becomes a row
`rejected: duplicate`.

**Replay.** Every answer is written to the journal before it is parsed, and never requested again (see `journal`). The
requests and their content depend only on config, seed, the units below and earlier answers. A unit that was killed,
lost or damaged is therefore restored with the same bytes, and nothing is paid for twice. A forced unit makes new
requests under a new generation in the journal, unless the newest generation differs from the committed unit: then an
earlier forced run was interrupted, and its generation is continued.

**Staleness.** A unit does not become stale when a unit below it is made again; instead, the new unit is deduplicated
against all others. Similarity is symmetric, so the committed units never contain a caption twice, a replay gives the
same result as the first time, and forcing a unit only affects the pictures of that unit.

**Spending.** Before a request is sent, the amount spent so far, the requests in flight and the expected cost of this
request must together stay within `cap_usd` and `cap_tokens`. Otherwise the unit is postponed and stays pending.
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
"""Maximum characters of a caption; no text encoder reads more."""

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
        secret_follows = self.config.api_key_secret is not None
        if not secret_follows or os.environ.get(str(self.config.api_key_env)):
            self.config.key()

    def captions(self, unit: int, indices: range, context: SourceContext | None) -> list[Draft]:
        assert context is not None, "captions of an LLM need the store"
        ledger = open_ledger(context.parts, self.config)
        markers = ledger.refresh(context.units, leave_out=unit)
        if waits_for := [below for below in range(unit) if below not in markers]:
            raise Postponed(
                f"caption unit {unit}: waits for unit {waits_for[0]}; captions from an LLM are made in order of units"
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
            if phrase is not None:  # otherwise the stage rejects it
                if head_noun(phrase) in NEVER:
                    draft = replace(draft, status="rejected", reason="not_an_object")
                elif own.repeats(caption) or others.repeats(caption):
                    draft = replace(draft, status="rejected", reason="duplicate")
                else:
                    own.add(caption)
            drafts.append(draft)
        return drafts


class _Unit:
    """Fills the slots of one unit."""

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
        """Open slot → code and message of its last fault."""
        self.answers = ledger.journal.answers(unit, generation)
        self.asked: list[Record] = []
        """Requests made in this run."""
        self._client: LLMClient | None = None

    @property
    def client(self) -> LLMClient:
        """Created on first use: a replay needs no API key."""
        if self._client is None:
            # importing the openai package is slow
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
        """Fill the slots from the journal only."""
        for number in itertools.count():
            chunks = self._chunks()
            keys = [Key(self.unit, self.generation, number, k) for k in range(len(chunks))]
            if not chunks or any(key not in self.answers for key in keys):
                return self.slots
            self._read(chunks, keys)
        raise AssertionError("unreachable")

    def fill(self) -> None:
        """Make requests until no slot is open, the rounds of this run are used up, or a request got no answer.

        Raises:
            Postponed: the spending cap would be exceeded.
            InputError: the endpoint rejects the key, the model or the request.
        """
        asked = False
        for number in itertools.count():
            chunks = self._chunks()
            # always end at a multiple of `rounds`, so that a run that was killed and resumed makes the same requests
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
        """The open slots, split into requests."""
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
        """Report progress. Raises if the run should stop."""
        filled = sum(caption is not None for caption in self.slots)
        self.context.progress(filled, len(self.slots), self._client.wait() if self._client else "")

    def _exchange(self, keys: Sequence[Key], chunks: Sequence[Sequence[int]]) -> dict[Key, tuple[str, str]]:
        """Send requests concurrently. Each answer is written to the journal by the thread that received it.

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
                            # the endpoint is unreachable or the quota is used up: stop sending requests
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
                f"caption unit {self.unit}: the spending cap caption.openai.{capped} would be exceeded ({spent} "
                "spent); raise it and run again, paid answers are kept"
            )
        return lost

    def _ask(self, client: LLMClient, key: Key, asked: int, covered: Sequence[str]) -> Record:
        """Send one request. With `auto`, repeat it without the JSON schema if the endpoint rejects that."""
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
        """Do round 0 of this unit through a batch, together with the units that share the batch."""
        from bootpig.stages.caption.llm import batch as llm_batch

        size, per_request = len(self.slots), self.config.captions_per_request
        counts = [min(per_request, size - begin) for begin in range(0, size, per_request)]
        lost = llm_batch.answer(self.client, self.asker, self.ledger, self.context, missing, counts)
        self.answers = self.ledger.journal.answers(self.unit, self.generation)
        self.asked += [self.answers[key] for key in missing if key in self.answers]
        return lost
