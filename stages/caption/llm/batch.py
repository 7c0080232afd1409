"""Sends requests through the endpoint's batch API: half the price, answers within 24 hours, resumable.

The first requests of several units of captions go into one batch; its prompts name the subjects of all units below
them. Requests about samples share a batch within their unit. Each submission is recorded as a note in the journal. If a
process is killed while submitting, the note has no batch id, and the next process searches the endpoint's batches for
the note's name.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from openai.types import Batch

from bootpig.stages.caption.llm.answers import completion
from bootpig.stages.caption.llm.chat import BatchedConfig
from bootpig.stages.caption.llm.client import LLMClient
from bootpig.stages.caption.llm.config import OpenAIConfig
from bootpig.stages.caption.llm.faults import Fault
from bootpig.stages.caption.llm.journal import Key, Record
from bootpig.stages.caption.llm.ledger import Ledger
from bootpig.stages.caption.llm.requests import Asker
from bootpig.stages.caption.llm.spending import Expected
from bootpig.stages.engine.contract import Postponed, SourceContext
from bootpig.stages.plain_text import one_line
from bootpig.storage.fingerprint import digest
from bootpig.storage.jsonio import parse_json
from bootpig.storage.secrets import mask

ENDED = ("completed", "failed", "expired", "cancelled")
SLICE = 0.2
"""Seconds between two checks whether the run should stop."""

LOOKED_THROUGH = 1000
"""Maximum number of the endpoint's batches to search for an interrupted submission."""


class Scope(ABC):
    """Which requests share a batch."""

    unit: str
    """Stage and number of the unit that asks, for messages, such as `caption unit 3`."""

    @abstractmethod
    def name(self, missing: Sequence[Key], attempt: int) -> str:
        """The name of the note about a batch with the requests `missing`."""

    @abstractmethod
    def parts(self, left: Sequence[Key]) -> Iterator[list[tuple[Key, int]]]:
        """Requests and how much each asks for, in parts: a part that would exceed the cap is left for later, along with
        those after it. The first one has `left`, the requests of the unit that asks."""

    def covered(self) -> list[str]:
        """Subjects that the requests should avoid. By default none."""
        return []


class SampleScope(Scope):
    """The requests of one unit, each about one sample."""

    def __init__(self, unit: str) -> None:
        self.unit = unit

    def name(self, missing: Sequence[Key], attempt: int) -> str:
        return f"batch-{digest([key.name for key in missing])[:16]}-{attempt:02d}.json"

    def parts(self, left: Sequence[Key]) -> Iterator[list[tuple[Key, int]]]:
        yield [(key, 1) for key in left]


class CaptionScope(Scope):
    """The first requests of several units of captions: units [g·B, (g+1)·B) of the run share a batch.

    Args:
        units: those of the run.
        counts: number of captions for each request of a unit's first round.
        below: the subjects that the units below one have.
    """

    def __init__(
        self,
        config: OpenAIConfig,
        asked: Key,
        units: Sequence[int],
        counts: Sequence[int],
        below: Callable[[int], list[str]],
    ) -> None:
        self.unit = f"caption unit {asked.unit}"
        self._number, self._generation, self._counts = asked.unit, asked.generation, counts
        self._group = asked.unit // config.batch_units * config.batch_units
        self._units = [asked.unit]
        self._below = below
        if asked.generation == 0:  # a forced unit has a batch of its own
            self._units += [unit for unit in units if asked.unit < unit < self._group + config.batch_units]

    def name(self, missing: Sequence[Key], attempt: int) -> str:
        own = f"{self._number:05d}-{self._generation:02d}"
        return f"batch-{f'{self._group:05d}' if self._generation == 0 else own}-{attempt:02d}.json"

    def parts(self, left: Sequence[Key]) -> Iterator[list[tuple[Key, int]]]:
        for unit in self._units:
            yield [(Key(unit, self._generation, 0, number), count) for number, count in enumerate(self._counts)]

    def covered(self) -> list[str]:
        return self._below(self._group)


def answer(
    client: LLMClient,
    config: BatchedConfig,
    asker: Asker[Any],
    ledger: Ledger,
    context: SourceContext,
    scope: Scope,
    missing: Sequence[Key],
) -> dict[Key, tuple[str, str]]:
    """Get the answers to the requests `missing`, all from one unit's first round, and store them in the journal.

    Returns:
        The requests that got no answer, with code and message.

    Raises:
        Postponed: the spending cap would be exceeded.
        InputError: the API key cannot be used.
    """
    journal = ledger.journal
    fault = ("batch_failed", "batch_failed: the batch ended without these answers")
    attempt = 0
    for _ in range(config.rounds):
        while (note := journal.read(scope.name(missing, attempt))) and note["state"] == "collected":
            attempt += 1
        left = [key for key in missing if not journal.has(key)]
        if not left:
            return {}
        name = scope.name(missing, attempt)
        try:
            if note is None:
                note = _noted(config, asker, ledger, scope, left, name)
            if note["state"] == "submitting":
                note = _submit(client, asker, ledger, note, name)
            batch = _wait(client, config, context, note["batch"])
            fault = _collect(client, config, ledger, note, batch, name) or fault
        except Fault as lost:
            return dict.fromkeys(left, (lost.code, str(lost)))
    return {key: fault for key in missing if not journal.has(key)}


def _noted(
    config: BatchedConfig, asker: Asker[Any], ledger: Ledger, scope: Scope, left: Sequence[Key], name: str
) -> dict[str, Any]:
    """Choose the requests of a batch (as many whole parts as the cap allows) and record them before submission."""
    journal = ledger.journal
    covered = scope.covered()
    requests: dict[str, Any] = {}
    asked: dict[str, int] = {}
    expected: list[Expected] = []
    for part in scope.parts(left):
        more: dict[str, Any] = {}
        for key, count in ((key, count) for key, count in part if not journal.has(key)):
            request = asker.request(key, count, covered, structured=ledger.structured)
            more[key.name] = asker.kept(request)
            asked[key.name] = count
            expected.append(journal.spent.expected(count, asker.tokens(request)))
        if capped := ledger.over_cap(expected, batch=True):
            if not requests:
                raise Postponed(
                    f"{scope.unit}: the spending cap {config.section}.{capped} would be exceeded "
                    f"({config.summary(journal.spent)} spent); raise it and run again, paid answers are kept"
                )
            break
        requests |= more
    asked = {key: asked[key] for key in requests}
    note = {"state": "submitting", "requests": requests, "asked": asked, "structured": ledger.structured}
    journal.write(name, note)
    return note


def _submit(client: LLMClient, asker: Asker[Any], ledger: Ledger, note: dict[str, Any], name: str) -> dict[str, Any]:
    mark = f"{ledger.journal_folder().removesuffix('/journal')}/{name}"
    found = _find(client, mark)
    if found is not None:
        batch = found
    else:
        lines = (
            {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": asker.sent(key, request)}
            for key, request in note["requests"].items()
        )
        data = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode()
        file, _ = client.call(lambda: client.api.files.create(file=("requests.jsonl", data), purpose="batch"))
        batch, _ = client.call(
            lambda: client.api.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"bootpig": mark},
            )
        )
    note = {**note, "state": "submitted", "batch": batch.id}
    ledger.journal.write(name, note)
    return note


def _find(client: LLMClient, mark: str) -> Batch | None:
    """The batch that an interrupted submission left at the endpoint, or None."""

    def look() -> Batch | None:
        for seen, batch in enumerate(client.api.batches.list(limit=100)):
            if (batch.metadata or {}).get("bootpig") == mark:
                return batch
            if seen >= LOOKED_THROUGH:
                break
        return None

    return client.call(look)[0]


def _wait(client: LLMClient, config: BatchedConfig, context: SourceContext, id: str) -> Batch:
    """Poll the batch until it has ended."""
    while True:
        batch, _ = client.call(lambda: client.api.batches.retrieve(id))
        if batch.status in ENDED:
            return batch
        until = time.monotonic() + config.batch_poll
        while (left := until - time.monotonic()) > 0:
            context.progress(0, 1, f"batch {batch.status}")
            time.sleep(min(SLICE, left))


def _collect(
    client: LLMClient, config: BatchedConfig, ledger: Ledger, note: dict[str, Any], batch: Batch, name: str
) -> tuple[str, str] | None:
    """Store every answer of an ended batch in the journal. Returns the fault of the others, if any."""
    fault = None
    if batch.status != "completed":
        said = [one_line(mask(str(error.message)), 200) for error in (batch.errors and batch.errors.data) or []]
        fault = ("batch_failed", f"batch_failed: the batch {batch.status}{': ' if said else ''}{'; '.join(said[:2])}")
    for file in filter(None, (batch.output_file_id, batch.error_file_id)):
        content, _ = client.call(_content(client, file))
        for line in mask(content).splitlines():
            fault = _line(config, ledger, note, line) or fault
    ledger.journal.write(name, {**note, "state": "collected"})
    return fault


def _content(client: LLMClient, file: str) -> Callable[[], str]:
    return lambda: client.api.files.content(file).text


def _line(config: BatchedConfig, ledger: Ledger, note: dict[str, Any], line: str) -> tuple[str, str] | None:
    """Store one answer in the journal. Returns a fault if the endpoint reported an error instead."""
    try:
        entry = parse_json(line)
        key, response = Key.parse(entry["custom_id"]), entry.get("response") or {}
        status, body = response.get("status_code"), response.get("body")
    except (ValueError, LookupError, TypeError, AttributeError):
        return ("batch_failed", "batch_failed: the batch's output is not JSON lines")
    if key is None or key.name not in note["requests"]:
        return None
    if status != 200:
        if status in (400, 422) and note["structured"] and config.format == "auto":
            ledger.structured = False
        return (
            "batch_failed",
            f"batch_failed: answered {status}: {one_line(json.dumps(body or entry.get('error')), 200)}",
        )
    text = json.dumps(body, ensure_ascii=False)
    if completion(text) is None:
        return ("batch_failed", f"batch_failed: no chat completion: {one_line(text, 200)}")
    if not ledger.journal.has(key):
        asked, request = note["asked"][key.name], note["requests"][key.name]
        record = Record(asked, note["structured"], request, text, batch=True)
        ledger.journal.keep(key, record)
        ledger.journal.count(key, record)
    return None
