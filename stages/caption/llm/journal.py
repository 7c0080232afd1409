"""The journal stores every answer of an endpoint unchanged, so that no answer has to be paid for twice.

`caption/<fingerprint>/journal/00017-00-00-0003.json` is the answer to request 3 of round 0 of generation 0 of unit 17.
An answer is written before it is parsed, is not part of any fingerprint, and is never changed; later runs replay it.
Each time a unit is forced, it makes new requests under the next generation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from bootpig.stages.caption.llm.answers import completion
from bootpig.stages.caption.llm.spending import CHARACTERS_PER_TOKEN, Spent, prompt_tokens
from bootpig.storage.jsonio import parse_json
from bootpig.storage.root import Root

_NAME = re.compile(r"(\d+)-(\d+)-(\d+)-(\d+)\.json")


class Key(NamedTuple):
    """Identifies a request. `unit` is what its answers belong to: a unit of captions, or a sample (its id)."""

    unit: int
    generation: int
    round: int
    number: int

    @property
    def name(self) -> str:
        return f"{self.unit:05d}-{self.generation:02d}-{self.round:02d}-{self.number:04d}.json"

    @classmethod
    def parse(cls, name: str) -> Key | None:
        match = _NAME.fullmatch(name)
        return cls(*map(int, match.groups())) if match else None


@dataclass(frozen=True)
class Record:
    """A request and its answer."""

    asked: int
    """Number of captions or pictures requested, as far as they are paid for."""
    structured: bool
    """Whether the request asked for a format of the answer, such as a JSON schema."""
    request: dict[str, Any]
    body: str
    """The response body, unchanged except that copies of the API key are masked."""
    batch: bool = False
    retries: int = 0

    def tokens(self) -> tuple[float, float]:
        """(prompt, answer) tokens as reported by the endpoint, else estimated from the length of the texts."""
        try:
            usage = parse_json(self.body)["usage"]
            return float(usage["prompt_tokens"]), float(usage["completion_tokens"])
        except (ValueError, LookupError, TypeError):
            return prompt_tokens(self.request.get("messages", ())), len(self.body) / CHARACTERS_PER_TOKEN


class Journal:
    """The journal of one fingerprint. A process uses one instance for all its units.

    Args:
        root: the store.
        folder: where the journal is in it.
    """

    def __init__(self, root: Root, folder: str) -> None:
        self.root = root
        self.folder = folder
        self.spent = Spent()
        self._keys: set[Key] = set()

    def refresh(self) -> None:
        """Read the entries added since the last refresh, for example by another process."""
        found = {key for name in self.root.names(self.folder) if (key := Key.parse(name))}
        if self._keys - found:  # entries were deleted
            self._keys, self.spent = set(), Spent()
        for key, record in self.records(sorted(found - self._keys)).items():
            self.count(key, record)

    def generations(self, units: Collection[int]) -> dict[int, int]:
        """The newest generation of each of `units`. Units without any answer are missing."""
        newest: dict[int, int] = {}
        for key in self._keys:
            if key.unit in units:
                newest[key.unit] = max(key.generation, newest.get(key.unit, 0))
        return newest

    def answers(self, generations: Mapping[int, int]) -> dict[Key, Record]:
        """All answers of one generation of each unit, given as unit → generation."""
        return self.records(sorted(key for key in self._keys if generations.get(key.unit) == key.generation))

    def has(self, key: Key) -> bool:
        return key in self._keys

    def is_answer(self, body: str) -> bool:
        """Whether the body of a response is an answer. Earlier versions also kept errors."""
        return completion(body) is not None

    def keep(self, key: Key, record: Record) -> Record:
        """Write an answer. Returns it as `records` would. Raises StoreError or OSError if that fails."""
        self.write(key.name, vars(record))
        return record

    def count(self, key: Key, record: Record) -> None:
        """Add a stored answer to the amount spent. Counts each answer only once."""
        if key not in self._keys:
            self._keys.add(key)
            self.spent.add(record.asked, *record.tokens(), record.batch)

    def records(self, keys: list[Key]) -> dict[Key, Record]:
        """The answers for those `keys` that exist and can be read. Damaged ones will be requested again."""
        paths = {f"{self.folder}/{key.name}": key for key in keys}
        found: dict[Key, Record] = {}
        for path, value in self.root.read_many(list(paths)).items():
            with suppress(ValueError, TypeError):
                record = Record(**parse_json(value))
                if self.is_answer(record.body):
                    found[paths[path]] = record
        return found

    def read(self, name: str) -> dict[str, Any] | None:
        """A note stored in the journal's folder, or None."""
        try:
            note: dict[str, Any] = parse_json(self.root.read(f"{self.folder}/{name}"))
        except FileNotFoundError:
            return None
        return note

    def write(self, name: str, note: dict[str, Any]) -> None:
        self.root.write(f"{self.folder}/{name}", json.dumps(note, ensure_ascii=False, indent=1).encode())
