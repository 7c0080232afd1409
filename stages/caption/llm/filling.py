"""Fills the slots of one unit with what an endpoint answers, captions or pictures, in rounds of requests.

**Slots.** Round 0 splits the unit's slots into requests. Slots that an answer leaves open (because it is short,
refused, truncated or unreadable) are requested again in the next round, up to `rounds` rounds per run. Slots still open
then keep the code of their last fault. A request without any answer ends the unit's rounds, so that a retry repeats
exactly that request, and the result is the same as without the error.

**Replay.** Every answer is written to the journal before it is parsed, and never requested again (see `journal`).

**Spending.** Before a request is sent, the amount spent so far, the requests in flight and the expected cost of this
request must together stay within the caps. Otherwise the unit is postponed and stays pending.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Generic

from bootpig.stages.caption.llm.endpoint import EndpointConfig
from bootpig.stages.caption.llm.faults import OF_ITS_OWN, Fault, SchemaRefused
from bootpig.stages.caption.llm.journal import Journal, Key, Record
from bootpig.stages.caption.llm.ledger import Ledger
from bootpig.stages.caption.llm.requests import Asker, Filled, S
from bootpig.stages.caption.llm.spending import Expected
from bootpig.stages.engine.contract import InputError, Postponed, SourceContext
from bootpig.stages.pictures import on_all_cores

if TYPE_CHECKING:
    from bootpig.stages.caption.llm.client import LLMClient

AT_ONCE = 32
"""Answers that are read between two reports of progress."""

Batch = Callable[["LLMClient", Sequence[Key], Sequence[int]], Mapping[Key, tuple[str, str]]]
"""`batch(client, missing, counts)` sends the requests `missing` of a first round, whose requests ask for `counts`
captions. Returns those without an answer, with code and message."""


class Filling(Generic[S]):
    """The slots of one unit.

    Args:
        config: the endpoint.
        ledger: the journal, and what was spent. Already refreshed.
        asker: builds the requests and reads the answers.
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
        asker: Asker[S],
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
        self.slots: list[S | None] = [None] * size
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
            self._client = self.asker.connect()
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

    def replayed(self) -> list[S | None]:
        """Fill the slots from the journal only."""
        for number in itertools.count():
            chunks = self._chunks()
            keys = self.asker.keys(number, chunks)
            if not chunks or any(key not in self._answers for key in keys):
                return self.slots
            if self._read(chunks, keys):
                return self.slots
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
            lost: dict[Key, tuple[str, str]] = {}
            if left:
                asked = True
                missing, counts = [keys[place] for place in left], [len(chunks[place]) for place in left]
                if self._batch is not None and number == 0:
                    lost = dict(self._through_batch(missing, [len(chunk) for chunk in chunks]))
                else:
                    lost = self._exchange(missing, counts)
            lost |= self._read(chunks, keys)
            for key, chunk in zip(keys, chunks, strict=True):
                if key in lost:
                    self.faults |= dict.fromkeys(chunk, lost[key])
            if lost:
                return

    def _chunks(self) -> list[list[int]]:
        """The open slots, split into requests."""
        return self.asker.chunks([slot for slot, value in enumerate(self.slots) if value is None])

    def _read(self, chunks: Sequence[Sequence[int]], keys: Sequence[Key]) -> dict[Key, tuple[str, str]]:
        """Fill the slots from the answers that are there. Returns those that cannot be read now, with code and
        message."""
        lost: dict[Key, tuple[str, str]] = {}
        there = [(chunk, key) for chunk, key in zip(chunks, keys, strict=True) if key in self._answers]
        for begin in range(0, len(there), AT_ONCE):
            some = there[begin : begin + AT_ONCE]
            for (chunk, key), answer in zip(some, on_all_cores(lambda pair: self._answer(*pair), some), strict=True):
                if isinstance(answer, Fault):
                    lost[key] = (answer.code, str(answer))
                    continue
                for slot, value in zip(chunk, answer.values, strict=False):
                    self.slots[slot] = value
                if answer.fault:
                    self.faults |= dict.fromkeys(chunk[len(answer.values) :], (answer.fault, answer.message))
            self._show()
        return lost

    def _answer(self, chunk: Sequence[int], key: Key) -> Filled[S] | Fault:
        try:
            return self.asker.read(key, self._answers[key], len(chunk))
        except Fault as fault:
            return fault

    def _show(self) -> None:
        """Report progress. Raises if the run should stop."""
        filled = sum(value is not None for value in self.slots)
        self.context.progress(filled, len(self.slots), self._client.wait() if self._client else "")

    def _exchange(self, keys: Sequence[Key], counts: Sequence[int]) -> dict[Key, tuple[str, str]]:
        """Send requests concurrently. Each answer is written to the journal by the thread that received it.

        Returns:
            The requests that got no answer, with code and message.
        """
        covered = self.asker.covered(self.slots)
        waiting = list(zip(keys, counts, strict=True))
        lost: dict[Key, tuple[str, str]] = {}
        running: dict[Future[Record], tuple[Key, Expected]] = {}
        capped, answered = "", False
        client = self.client
        with ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="endpoint") as pool:
            try:
                while waiting or running:
                    while waiting and not capped and len(running) < self.config.concurrency:
                        key, asked = waiting[0]
                        request = self.asker.request(key, asked, covered, structured=self.ledger.structured)
                        expected = self.ledger.journal.spent.expected(asked, self.asker.tokens(request))
                        if capped := self.ledger.over_cap([*(e for _, e in running.values()), expected]):
                            break
                        waiting.pop(0)
                        running[pool.submit(self._ask, client, key, asked, covered)] = (key, expected)
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
                            if fault.code == "quota" or not (answered or fault.code in OF_ITS_OWN):
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
            spent = self.config.summary(self.ledger.journal.spent)
            raise Postponed(
                f"{self.unit}: the spending cap {self.config.section}.{capped} would be exceeded ({spent} "
                "spent); raise it and run again, paid answers are kept"
            )
        return lost

    def _ask(self, client: LLMClient, key: Key, asked: int, covered: Sequence[str]) -> Record:
        """Send one request. If the endpoint rejects the format that it asks for, repeat it without, where allowed."""
        structured = self.ledger.structured
        request = self.asker.request(key, asked, covered, structured=structured)
        try:
            body, retries = client.ask(request)
        except SchemaRefused as refused:
            if self.config.needs_structure:
                raise InputError(
                    f"{self.config.section}.format: 'json' → the endpoint answers 400 to a JSON schema ({refused}); "
                    "use auto or lines"
                ) from None
            structured = False
            request = self.asker.request(key, asked, covered, structured=False)
            body, retries = client.ask(request)
            self.ledger.structured = False
        record = Record(asked, structured, self.asker.kept(request), body, retries=retries)
        record = self.ledger.journal.keep(key, record)
        self.asker.complete(key, record)
        return record

    def _through_batch(self, missing: Sequence[Key], counts: Sequence[int]) -> Mapping[Key, tuple[str, str]]:
        """Send the first round through a batch. `counts`: captions for each request of the round."""
        assert self._batch is not None
        lost = self._batch(self.client, missing, counts)
        found = self.ledger.journal.records([key for key in missing if self.ledger.journal.has(key)])
        self._answers |= found
        self._asked += found.values()
        return lost


def filled(
    filling: Callable[[Mapping[int, int]], Filling[S]],
    journal: Journal,
    units: Sequence[int],
    context: SourceContext,
    is_committed: Callable[[Sequence[S | None]], bool] | None,
) -> Filling[S]:
    """Fill slots whose answers belong to samples, and note what that took in the context.

    Args:
        filling: makes the work for what answers belong to and its generation in the journal.
        units: what the answers belong to, as in `Key.unit`.
        is_committed: whether the slots as replayed are those of the committed unit. None if the unit is not forced, or
            nothing is committed.

    Raises:
        Postponed, InputError: as in `Filling.fill`.
    """

    def is_replayed(generations: Mapping[int, int]) -> bool:
        assert is_committed is not None
        return is_committed(filling(generations).replayed())

    work = filling(generations_of(journal, units, None if is_committed is None else is_replayed))
    work.fill()
    context.usage.update(work.usage())
    return work


def generations_of(
    journal: Journal, units: Sequence[int], is_committed: Callable[[Mapping[int, int]], bool] | None
) -> dict[int, int]:
    """The generation in which each of `units` is asked for.

    By default the newest one that has an answer. A forced unit makes new requests under a new generation, unless some
    of `units` lack an answer of the newest generation, or those answers differ from what is committed: then an earlier
    forced run was interrupted, and its generation is continued.

    Args:
        units: what answers belong to, as in `Key.unit`.
        is_committed: whether what is committed is what the answers of these generations give. None if the unit is not
            forced, or nothing is committed.
    """
    newest = journal.generations(set(units))
    generations = {unit: newest.get(unit, 0) for unit in units}
    if is_committed is None or not generations:
        return generations
    last = max(generations.values())
    if min(generations.values()) == last and is_committed(generations):
        last += 1
    return dict.fromkeys(units, last)
