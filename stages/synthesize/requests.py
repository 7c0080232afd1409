"""Draws the pictures of a unit through an images endpoint: one picture per request.

Rounds, journal, replay and spending caps are those of captions (`stages/caption/llm/filling.py`). In the journal an
answer belongs to a sample by its id, which is that of its caption. The journal belongs to what is asked, not to the
stage's fingerprint: `synthesize/journal-<digest of model, settings, sizes and seed>/`. A change of `resize` or
`min_contrast`, or of other captions, uses the pictures that were paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image

from bootpig.stages.caption.llm.faults import Fault
from bootpig.stages.caption.llm.filling import Filling, filled
from bootpig.stages.caption.llm.journal import Key, Record
from bootpig.stages.caption.llm.ledger import open_ledger
from bootpig.stages.caption.llm.requests import Asker, Filled
from bootpig.stages.engine.contract import InputError, Sample, SourceContext, sample_seed
from bootpig.stages.engine.shardio import unpack
from bootpig.stages.synthesize.answers import FAULTS, REJECTIONS, open_picture, read_images
from bootpig.stages.synthesize.config import SynthesizeConfig
from bootpig.stages.synthesize.endpoint import ImagesConfig
from bootpig.stages.synthesize.journal import PictureJournal, PictureLedger
from bootpig.storage.errors import CorruptPart
from bootpig.storage.fingerprint import digest

if TYPE_CHECKING:
    from bootpig.stages.caption.llm.client import LLMClient

LARGEST_SEED = 2**31
"""Seeds that are sent are below it: not every endpoint takes 63 bits."""

Judge = Callable[[Sample, int | None, Image.Image], Sample]
"""`judge(sample, seed, picture)`: the sample with its picture, or rejected."""


class PictureAsker(Asker[Sample]):
    """Requests for one picture each.

    Args:
        config: the stage's settings.
        seed: the run's seed.
        samples: those of the unit, with captions, one per slot.
        sizes: the (height, width) that is asked for, one per slot.
        journal: where the pictures are.
        generations: sample id as a number → generation in the journal.
        judge: accepts or rejects a picture of the stored size.
    """

    def __init__(
        self,
        config: SynthesizeConfig,
        seed: int,
        samples: Sequence[Sample],
        sizes: Sequence[tuple[int, int]],
        journal: PictureJournal,
        generations: Mapping[int, int],
        judge: Judge,
    ) -> None:
        assert config.openai is not None
        self.config = config
        self.openai: ImagesConfig = config.openai
        self.seed = seed
        self.samples = samples
        self.sizes = sizes
        self.journal = journal
        self.numbers = [_number(sample) for sample in samples]
        self.slots = {number: slot for slot, number in enumerate(self.numbers)}
        self.generations = generations
        self.judge = judge

    def connect(self) -> LLMClient:
        # importing the openai package is slow
        from bootpig.stages.synthesize.client import ImagesClient

        return ImagesClient(self.openai, is_proven=self.journal.spent.asked > 0)

    def chunks(self, slots: Sequence[int]) -> list[list[int]]:
        return [[slot] for slot in slots]

    def keys(self, round: int, chunks: Sequence[Sequence[int]]) -> list[Key]:
        numbers = [self.numbers[slot] for (slot,) in chunks]
        return [Key(number, self.generations[number], round, 0) for number in numbers]

    def request(self, key: Key, asked: int, covered: Sequence[str], *, structured: bool) -> dict[str, Any]:
        slot = self.slots[key.unit]
        height, width = self.sizes[slot]
        request: dict[str, Any] = {
            "model": self.openai.model,
            "prompt": self.samples[slot].meta["caption"],
            "n": 1,
            "size": f"{width}x{height}",
            **self.openai.extra_body,
        }
        if self.openai.quality is not None:
            request["quality"] = self.openai.quality
        if (seed := self.sent_seed(key)) is not None:
            request["seed"] = seed
        if structured:
            request["response_format"] = "b64_json"
        return request

    def sent_seed(self, key: Key) -> int | None:
        """The seed of a request, another one in each generation and round. None if none is sent."""
        if not self.openai.send_seed:
            return None
        again = f"/{key.generation}/{key.round}" if key.generation or key.round else ""
        return sample_seed(self.seed, f"synthesize{again}", self.samples[self.slots[key.unit]].id) % LARGEST_SEED

    def complete(self, key: Key, record: Record) -> None:
        from bootpig.stages.synthesize.client import Elsewhere, NotFetched, fetch_picture

        if url := read_images(record.body).url:
            # `read` tries again, and says what is wrong with this one picture
            with suppress(Fault):
                try:
                    self.journal.keep_picture(key, fetch_picture(self.openai, url))
                except Elsewhere as error:
                    raise InputError(
                        f"synthesize.openai.base_url: {self.openai.base_url!r} → {error}, and pictures are fetched "
                        "only from the endpoint itself; let it answer with b64_json, or give that server's address"
                    ) from None
                except NotFetched:
                    return

    def read(self, key: Key, record: Record, asked: int) -> Filled[Sample]:
        slot = self.slots[key.unit]
        sample, size, seed = self.samples[slot], self.sizes[slot], self.sent_seed(key)
        answer = read_images(record.body)
        code, message = answer.code, answer.message
        picture = None
        if not code:
            data = self._bytes(key, answer.url)
            if isinstance(data, bytes):
                picture, code, message = open_picture(data, sample.id, size, self.config.resized(size))
            else:
                code, message = "unreadable", data
        if picture is not None:
            return Filled([self.judge(sample, seed, picture)])
        message = f"{code}: {message}"
        if code in REJECTIONS:
            return Filled([replace(sample.rejected(code, seed=seed), message=message)])
        return Filled(fault=code, message=message)

    def _bytes(self, key: Key, url: str) -> bytes | str:
        """The picture of an answer, or why there is none."""
        with suppress(FileNotFoundError):
            return self.journal.picture(key)
        if not url:
            return "the answer is not base64, or its picture is missing in the journal"
        from bootpig.stages.synthesize.client import NotFetched, fetch_picture

        try:
            data = fetch_picture(self.openai, url)
        except NotFetched as error:
            return str(error)
        self.journal.keep_picture(key, data)
        return data


def draw(
    config: SynthesizeConfig,
    seed: int,
    samples: Sequence[Sample],
    sizes: Sequence[tuple[int, int]],
    unit: int,
    context: SourceContext,
    judge: Judge,
) -> list[Sample]:
    """The samples with their pictures, rejected or failed.

    Args:
        seed: the run's seed.
        samples: those of the unit, or some of them, with captions.
        sizes: the (height, width) of each.

    Raises:
        Postponed: a spending cap would be exceeded.
        InputError: the endpoint rejects the key, the model or the request.
    """
    openai = config.openai
    assert openai is not None
    asked = {"openai": openai.hashed(), "sizes": config.painted, "seed": seed}
    folder = f"synthesize/journal-{digest(asked)[:16]}"
    ledger = open_ledger(partial(PictureLedger, folder=folder), context.parts, openai)
    ledger.journal.refresh()
    numbers = [_number(sample) for sample in samples]

    def filling(chosen: Mapping[int, int]) -> Filling[Sample]:
        asker = PictureAsker(config, seed, samples, sizes, ledger.journal, chosen, judge)
        return Filling(openai, ledger, asker, context, f"synthesize unit {unit}", chosen, len(samples))

    before = _committed(context, unit) if context.force else None

    def is_committed(replayed: Sequence[Sample | None]) -> bool:
        return before is not None and all(
            _content(made) == before.get(sample.id) for sample, made in zip(samples, replayed, strict=True)
        )

    work = filled(filling, ledger.journal, numbers, context, None if before is None else is_committed)
    return [
        made if made is not None else sample.failed(*work.faults.get(slot, ("empty", FAULTS["empty"])))
        for slot, (sample, made) in enumerate(zip(samples, work.slots, strict=True))
    ]


def _number(sample: Sample) -> int:
    return int(sample.id, 16)


def _content(sample: Sample | None) -> str | bytes:
    """What identifies a sample's outcome: its picture, the reason why it is rejected, or empty for a failed one."""
    if sample is None:
        return ""
    return sample.files["png"] if sample.status == "ok" else sample.reason


def _committed(context: SourceContext, unit: int) -> dict[str, str | bytes] | None:
    """Sample id → `_content` of a committed unit. None if there is none."""
    try:
        marker = context.parts.whole(unit)
        if marker is None:
            return None
        pictures = {s.id: s.files["png"] for s in unpack(marker.rows, context.parts.payload(unit, marker))}
    except CorruptPart:
        return None
    reasons = {row["id"]: row["reason"] if row["status"] == "rejected" else "" for row in marker.rows}
    return reasons | pictures
