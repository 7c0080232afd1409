"""Sends requests through the endpoint's batch API: half the price, answers within 24 hours, resumable.

The first requests of several units go into one batch. Units [g·B, (g+1)·B) of the run share a batch, and its prompts
name the subjects of all units below them. Each submission is recorded as a note in the journal. If a process is killed
while submitting, the note has no batch id, and the next process searches the endpoint's batches for the note's name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from openai.types import Batch

from bootpig.stages.caption.llm.answers import completion
from bootpig.stages.caption.llm.client import LLMClient
from bootpig.stages.caption.llm.faults import Fault
from bootpig.stages.caption.llm.journal import Key, Record
from bootpig.stages.caption.llm.ledger import CaptionLedger
from bootpig.stages.caption.llm.requests import CaptionAsker
from bootpig.stages.caption.llm.spending import Expected
from bootpig.stages.engine.contract import Postponed, SourceContext
from bootpig.stages.plain_text import one_line
from bootpig.storage.jsonio import parse_json
from bootpig.storage.secrets import mask

ENDED = ("completed", "failed", "expired", "cancelled")
SLICE = 0.2
"""Seconds between two checks whether the run should stop."""

LOOKED_THROUGH = 1000
"""Maximum number of the endpoint's batches to search for an interrupted submission."""


def answer(
    client: LLMClient,
    asker: CaptionAsker,
    ledger: CaptionLedger,
    context: SourceContext,
    missing: Sequence[Key],
    counts: Sequence[int],
) -> dict[Key, tuple[str, str]]:
    """Get the answers to the requests `missing`, all from one unit's first round, and store them in the journal.

    Args:
        counts: number of captions for each request of a unit's first round.

    Returns:
        The requests that got no answer, with code and message.

    Raises:
        Postponed: the spending cap would be exceeded.
        InputError: the API key cannot be used.
    """
    journal, config = ledger.journal, ledger.config
    unit, generation = missing[0].unit, missing[0].generation
    group = unit // config.batch_units * config.batch_units
    fault = ("batch_failed", "batch_failed: the batch ended without these answers")
    attempt = 0
    for _ in range(config.rounds):
        while (note := journal.read(_name(group, generation, unit, attempt))) and note["state"] == "collected":
            attempt += 1
        left = [key for key in missing if not journal.has(key)]
        if not left:
            return {}
        name = _name(group, generation, unit, attempt)
        try:
            if note is None:
                note = _noted(asker, ledger, context, left, counts, name)
            if note["state"] == "submitting":
                note = _submit(client, ledger, note, name)
            batch = _wait(client, ledger, context, note["batch"])
            fault = _collect(client, ledger, note, batch, name) or fault
        except Fault as lost:
            return dict.fromkeys(left, (lost.code, str(lost)))
    return {key: fault for key in missing if not journal.has(key)}


def _name(group: int, generation: int, unit: int, attempt: int) -> str:
    """The note's name. Units of generation 0 share a batch with others; a forced unit has its own."""
    first = f"{group:05d}" if generation == 0 else f"{unit:05d}-{generation:02d}"
    return f"batch-{first}-{attempt:02d}.json"


def _noted(
    asker: CaptionAsker,
    ledger: CaptionLedger,
    context: SourceContext,
    left: Sequence[Key],
    counts: Sequence[int],
    name: str,
) -> dict[str, Any]:
    """Choose the requests of a batch (as many whole units as the cap allows) and record them before submission."""
    config, journal = ledger.config, ledger.journal
    unit, generation = left[0].unit, left[0].generation
    units = [unit]
    group = unit // config.batch_units * config.batch_units
    if generation == 0:
        units += [u for u in context.units if unit < u < group + config.batch_units]
    covered = asker.covered(below=group)
    requests: dict[str, Any] = {}
    expected: list[Expected] = []
    for chosen in units:
        keys = [Key(chosen, generation, 0, number) for number in range(len(counts))]
        for key in (key for key in keys if not journal.has(key)):
            request = asker.request(key, counts[key.number], covered, structured=ledger.structured)
            requests[key.name] = request
            expected.append(journal.spent.expected(counts[key.number], asker.tokens(request)))
        if capped := ledger.over_cap(expected, batch=True):
            requests = {name: r for name, r in requests.items() if name.split("-")[0] != f"{chosen:05d}"}
            if not requests:
                raise Postponed(
                    f"caption unit {unit}: the spending cap caption.openai.{capped} would be exceeded "
                    f"({config.summary(journal.spent)} spent); raise it and run again, paid answers are kept"
                )
            break
    asked = {key: counts[int(key[:-5].split("-")[3])] for key in requests}
    note = {"state": "submitting", "requests": requests, "asked": asked, "structured": ledger.structured}
    journal.write(name, note)
    return note


def _submit(client: LLMClient, ledger: CaptionLedger, note: dict[str, Any], name: str) -> dict[str, Any]:
    mark = f"{ledger.parts.folder}/{name}"
    found = _find(client, mark)
    if found is not None:
        batch = found
    else:
        lines = [
            {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": request}
            for key, request in note["requests"].items()
        ]
        data = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode()
        file, _ = client.call(lambda: client.api.files.create(file=("captions.jsonl", data), purpose="batch"))
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


def _wait(client: LLMClient, ledger: CaptionLedger, context: SourceContext, id: str) -> Batch:
    """Poll the batch until it has ended."""
    while True:
        batch, _ = client.call(lambda: client.api.batches.retrieve(id))
        if batch.status in ENDED:
            return batch
        until = time.monotonic() + ledger.config.batch_poll
        while (left := until - time.monotonic()) > 0:
            context.progress(0, 1, f"batch {batch.status}")
            time.sleep(min(SLICE, left))


def _collect(
    client: LLMClient, ledger: CaptionLedger, note: dict[str, Any], batch: Batch, name: str
) -> tuple[str, str] | None:
    """Store every answer of an ended batch in the journal. Returns the fault of the others, if any."""
    fault = None
    if batch.status != "completed":
        said = [one_line(mask(str(error.message)), 200) for error in (batch.errors and batch.errors.data) or []]
        fault = ("batch_failed", f"batch_failed: the batch {batch.status}{': ' if said else ''}{'; '.join(said[:2])}")
    for file in filter(None, (batch.output_file_id, batch.error_file_id)):
        content, _ = client.call(_content(client, file))
        for line in mask(content).splitlines():
            fault = _line(ledger, note, line) or fault
    ledger.journal.write(name, {**note, "state": "collected"})
    return fault


def _content(client: LLMClient, file: str) -> Callable[[], str]:
    return lambda: client.api.files.content(file).text


def _line(ledger: CaptionLedger, note: dict[str, Any], line: str) -> tuple[str, str] | None:
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
        if status in (400, 422) and note["structured"] and ledger.config.format == "auto":
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
