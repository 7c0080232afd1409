"""State shared by all units of a fingerprint in a process: journal, money spent, captions committed so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from bootpig.stages.caption.duplicates import DuplicateIndex, subject_of
from bootpig.stages.caption.llm.config import OpenAIConfig
from bootpig.stages.caption.llm.endpoint import EndpointConfig
from bootpig.stages.caption.llm.journal import Journal
from bootpig.stages.caption.llm.spending import Expected
from bootpig.storage.parts import Marker, Parts

C = TypeVar("C", bound=EndpointConfig)
L = TypeVar("L", bound="Ledger")


class Ledger:
    """The journal, and what was spent. Created by `open_ledger` and kept between units."""

    config: EndpointConfig

    def __init__(self, parts: Parts, config: EndpointConfig) -> None:
        self.parts = parts
        self.config = config
        self.journal = self.open_journal()
        self.structured = config.starts_structured
        """Whether requests ask for a format of the answer. Set to False once the endpoint rejects that."""

    def open_journal(self) -> Journal:
        return Journal(self.parts.root, self.journal_folder())

    def journal_folder(self) -> str:
        """Where the journal is in the store. By default it belongs to the fingerprint."""
        return f"{self.parts.folder}/journal"

    def over_cap(self, expected: Sequence[Expected], batch: bool = False) -> str:
        """The cap that would be exceeded by requests that are expected to take this; empty if none."""
        return self.config.over_cap(self.journal.spent.with_more(expected, batch))


class CaptionLedger(Ledger):
    """Also knows the captions of the committed units. It reads only what is new for each unit."""

    config: OpenAIConfig

    def __init__(self, parts: Parts, config: OpenAIConfig) -> None:
        super().__init__(parts, config)
        self._markers: dict[int, Marker] = {}
        """Markers as of the last refresh, so that each is read only once."""
        self._clear()

    def _clear(self) -> None:
        self.index = DuplicateIndex(self.config.near_duplicate)
        """The `ok` captions of the committed units, except the current unit."""
        self.subjects: dict[int, Counter[str]] = {}
        """Unit → number of its captions by subject."""
        self._included: dict[int, str] = {}

    def refresh(self, units: Iterable[int], leave_out: int) -> dict[int, Marker]:
        """Read the store. Returns the markers of the run's committed units; `index` then has all but `leave_out`."""
        self.journal.refresh()
        # always read the current unit again: a forced unit is compared with its committed version
        known = {unit: marker for unit, marker in self._markers.items() if unit != leave_out}
        markers = self._markers = self.parts.listing(units, known).markers
        wanted = {unit: marker for unit, marker in markers.items() if unit != leave_out}
        if any(unit not in wanted or wanted[unit].digest != digest for unit, digest in self._included.items()):
            self._clear()
        for unit in sorted(wanted.keys() - self._included.keys()):
            captions = [row["caption"] for row in wanted[unit].rows if row["status"] == "ok"]
            for caption in captions:
                self.index.add(caption)
            self.subjects[unit] = Counter(map(subject_of, captions))
            self._included[unit] = wanted[unit].digest
        return markers


_open: tuple[tuple[str, str], Any] | None = None


def open_ledger(kind: Callable[[Parts, C], L], parts: Parts, config: C) -> L:
    """The ledger of `parts` in this process, of the class `kind`. Only the last one is kept."""
    global _open
    key = (parts.root.url, parts.folder)
    if _open is None or _open[0] != key or _open[1].config != config:
        _open = (key, kind(parts, config))
    ledger: L = _open[1]
    return ledger
