"""Fills the slots of one unit with captions from an endpoint, in rounds of requests.

**Slots.** Round 0 splits the unit's slots into requests. Slots that an answer leaves open (because it is short,
refused, truncated or unreadable) are requested again in the next round, up to `rounds` rounds per run. Slots still open
then keep the code of their last fault. A request without any answer ends the unit's rounds, so that a retry repeats
exactly that request, and the result is the same as without the error.

**Replay.** Every answer is written to the journal before it is parsed, and never requested again (see `journal`).

**Spending.** Before a request is sent, the amount spent so far, the requests in flight and the expected cost of this
request must together stay within `cap_usd` and `cap_tokens`. Otherwise the unit is postponed and stays pending.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from bootpig.stages.caption.llm.answers import read_answer
from bootpig.stages.caption.llm.endpoint import EndpointConfig
from bootpig.stages.caption.llm.faults import Fault, SchemaRefused
from bootpig.stages.caption.llm.journal import Key, Record
from bootpig.stages.caption.llm.ledger import Ledger
from bootpig.stages.caption.llm.requests import Asker
from bootpig.stages.engine.contract import InputError, Postponed, SourceContext

if TYPE_CHECKING:
    from bootpig.stages.caption.llm.client import LLMClient

LONGEST = 300
"""Maximum characters of a caption; no text encoder reads more."""

Batch = Callable[["LLMClient", Sequence[Key], Sequence[int]], Mapping[Key, tuple[str, str]]]
"""`batch(client, missing, counts)` sends the requests `missing` of a first round, whose requests ask for `counts`
captions. Returns those without an answer, with code and message."""


class Filling:
    """The slots of one unit.

    Args:
        config: the endpoint.
        ledger: the journal, and what was spent. Already refreshed.
        asker: builds the requests.
        context: the run.
        unit: stage and number, for messages, such as `caption unit 3`.
        generations: what the journal's keys start with: unit → generation.
        size: number of slots.
        batch: sends the first round, if not one by one.
    """

    def __init__(
        self,
        config: EndpointConfig,
        ledger: Ledger,
        asker: Asker,
        context: SourceContext,
        unit: str,
        generations: Mapping[int, int],
        size: int,
        batch: Batch | None = None,
    ) -> None:
        self.config = config
        self.ledger = ledger
        self.asker = asker
        self.context = context
        self.unit = unit
        self.slots: list[str | None] = [None] * size
        self.faults: dict[int, tuple[str, str]] = {}
        """Open slot → code and message of its last fault."""
        self._answers = ledger.journal.answers(generations)
        self._asked: list[Record] = []
        """Requests made in this run."""
        self._batch = batch
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
        tokens = [record.tokens() for record in self._asked]
        return {
            "requests": len(self._asked),
            "replayed": len(self._answers) - len(self._asked),
            "retries": sum(record.retries for record in self._asked),
            "input_tokens": round(sum(a for a, _ in tokens)),
            "output_tokens": round(sum(b for _, b in tokens)),
        }

    def replayed(self) -> list[str | None]:
        """Fill the slots from the journal only."""
        for number in itertools.count():
            chunks = self._chunks()
            keys = self.asker.keys(number, chunks)
            if not chunks or any(key not in self._answers for key in keys):
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
            keys = self.asker.keys(number, chunks)
            left = [place for place, key in enumerate(keys) if key not in self._answers]
            lost: Mapping[Key, tuple[str, str]] = {}
            if left:
                asked = True
                missing, counts = [keys[place] for place in left], [len(chunks[place]) for place in left]
                if self._batch is not None and number == 0:
                    lost = self._through_batch(missing, [len(chunk) for chunk in chunks])
                else:
                    lost = self._exchange(missing, counts)
            self._read(chunks, keys)
            for key, chunk in zip(keys, chunks, strict=True):
                if key in lost:
                    self.faults |= dict.fromkeys(chunk, lost[key])
            if lost:
                return

    def _chunks(self) -> list[list[int]]:
        """The open slots, split into requests."""
        return self.asker.chunks([slot for slot, caption in enumerate(self.slots) if caption is None])

    def _read(self, chunks: Sequence[Sequence[int]], keys: Sequence[Key]) -> None:
        for chunk, key in zip(chunks, keys, strict=True):
            if (record := self._answers.get(key)) is None:
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

    def _exchange(self, keys: Sequence[Key], counts: Sequence[int]) -> dict[Key, tuple[str, str]]:
        """Send requests concurrently. Each answer is written to the journal by the thread that received it.

        Returns:
            The requests that got no answer, with code and message.
        """
        covered = self.asker.covered(self.slots)
        waiting = list(zip(keys, counts, strict=True))
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
                        tokens = self.ledger.journal.spent.expected(asked, self.asker.tokens(request))
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
                            self._answers[key] = record
                            self._asked.append(record)
                    self._show()
            except BaseException:
                client.stop()
                raise
        if capped and waiting:
            spent = self.ledger.journal.spent.summary(self.config)
            raise Postponed(
                f"{self.unit}: the spending cap {self.config.section}.{capped} would be exceeded ({spent} "
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
                    f"{self.config.section}.format: 'json' → the endpoint answers 400 to a JSON schema ({refused}); "
                    "use auto or lines"
                ) from None
            structured = False
            request = self.asker.request(key, asked, covered, structured=False)
            body, retries = client.ask(request)
            self.ledger.structured = False
        record = Record(asked, structured, self.asker.kept(request), body, retries=retries)
        self.ledger.journal.keep(key, record)
        return record

    def _through_batch(self, missing: Sequence[Key], counts: Sequence[int]) -> Mapping[Key, tuple[str, str]]:
        """Send the first round through a batch. `counts`: captions for each request of the round."""
        assert self._batch is not None
        lost = self._batch(self.client, missing, counts)
        found = self.ledger.journal.records([key for key in missing if self.ledger.journal.has(key)])
        self._answers |= found
        self._asked += found.values()
        return lost
