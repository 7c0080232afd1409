"""Takes pictures and values over from a finished evaluation that differs only in what it measures."""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bootpig.stages.engine.earlier import Earlier, EarlierResult
from bootpig.stages.engine.share import Share
from bootpig.stages.evaluate.drawing import Drawing
from bootpig.stages.evaluate.gallery import NOT_FINITE, DrawnPictures, PictureFiles
from bootpig.stages.evaluate.measures.config import drawn_by
from bootpig.stages.evaluate.scoring import Scores
from bootpig.stages.evaluate.subjects import Subject
from bootpig.storage.errors import CorruptPart, StoreUnavailable
from bootpig.storage.jsonio import parse_json
from bootpig.storage.shards import write_shard

FACTS = "measures.json"
"""Measure → `{"identity": digest, "real": {subject: value}}`. Written beside `scores.parquet`."""

_SCORES = "scores.parquet"
_UNUSABLE = (CorruptPart, StoreUnavailable, FileNotFoundError, KeyError, TypeError, ValueError, AttributeError)
"""What damaged or strange files of a result raise: a store may hold anything."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Stored:
    """Values of one measure."""

    values: Mapping[str, NDArray[np.float64]]
    """By method, one per row."""
    reasons: Mapping[str, list[str]]
    real: Sequence[float | None]


class Finished:
    """The pictures of a finished evaluation, and the values of all finished ones with the same pictures."""

    def __init__(self, folder: Path, rows: Sequence[Drawing], methods: Sequence[str], lost: Mapping[str, set[int]]):
        self.folder = folder
        self.rows = rows
        self.methods = methods
        self.lost = lost
        """Method → rows whose picture is not finite."""
        self.stored: dict[str, _Stored] = {}
        """By the identity of the measure."""

    def pictures(
        self, batch_size: int, folder: Path, share: Share, subjects: Sequence[Subject]
    ) -> tuple[dict[str, PictureFiles], dict[str, DrawnPictures]]:
        """Copy the prepared references and the pictures of each method to `folder`; in other ranks than the first, only
        those of their own batches."""
        references = {}
        (folder / "reference").mkdir(parents=True)
        for subject in subjects:
            paths = []
            for file in sorted(
                (self.folder / "images" / "reference").glob(f"{glob.escape(subject.name)}-[0-9][0-9].png")
            ):
                paths.append(folder / "reference" / file.name)
                paths[-1].write_bytes(file.read_bytes())
            references[subject.name] = PictureFiles(paths)
        drawn = {}
        for number, method in enumerate(self.methods):
            pieces = _FinishedPieces(self, method, batch_size)
            drawn[method] = DrawnPictures(method, folder / method, self.rows, batch_size, pieces, share, number)
            if not share.rank:
                drawn[method].collect(pieces)
        return references, drawn

    def keep(self, scores: Scores, identities: Mapping[str, str]) -> list[str]:
        """Take over what was measured before. Returns the names of these measures.

        Args:
            identities: see `Measured.identities`.
        """
        kept = []
        for name, identity in identities.items():
            if (stored := self.stored.get(identity)) is not None:
                for method in self.methods:
                    scores.keep(name, method, stored.values[method], stored.reasons[method])
                scores.real[name] = list(stored.real)
                kept.append(name)
        return kept


def find_finished(earlier: Earlier, rows: Sequence[Drawing], subjects: Sequence[Subject]) -> Finished | None:
    """The pictures of a finished evaluation that drew the same, or None. Damaged ones are passed over."""
    found: Finished | None = None
    pictures: dict[str, str] = {}
    for result in earlier(drawn_by):
        try:
            if found is None:
                found = _open(result, rows, subjects)
                pictures = _pictures(result)
            # equal drawings in other batches differ in their last bits, so values belong to the very same pictures
            if found is not None and _pictures(result) == pictures:
                found.stored |= _values(result, found, subjects)
        except _UNUSABLE as error:
            _LOG.warning("evaluate: a finished evaluation cannot be used: %s", " ".join(str(error).split()))
    return found


def write_facts(path: Path, scores: Scores, identities: Mapping[str, str]) -> None:
    """Write `FACTS`, which lets later evaluations take over the values."""
    facts = {
        name: {
            "identity": identity,
            "real": {subject.name: value for subject, value in zip(scores.subjects, scores.real[name], strict=True)},
        }
        for name, identity in identities.items()
    }
    path.write_text(f"{json.dumps(facts, indent=2)}\n", encoding="utf-8")


class _FinishedPieces:
    """The batches of a method of a finished evaluation as `Pieces`."""

    def __init__(self, finished: Finished, method: str, batch_size: int) -> None:
        self._finished = finished
        self._method = method
        self._batch_size = batch_size

    def put(self, name: str, data: bytes) -> None:
        raise LookupError(f"{name}: all pictures exist")

    def get(self, name: str) -> bytes | None:
        start = int(name.rpartition("-")[2])
        batch = range(start, min(start + self._batch_size, len(self._finished.rows)))
        return write_shard(member for index in batch for member in self._member(index))

    def _member(self, index: int) -> Iterator[tuple[str, bytes]]:
        name = f"{self._method}-{index:06d}"
        if index in self._finished.lost[self._method]:
            yield f"{name}.{NOT_FINITE}", b""
        else:
            file = self._finished.folder / "images" / self._method / self._finished.rows[index].file
            yield f"{name}.png", file.read_bytes()


def _pictures(result: EarlierResult) -> dict[str, str]:
    return {name: sha256 for name, sha256 in result.files.items() if name.startswith("images/")}


def _open(result: EarlierResult, rows: Sequence[Drawing], subjects: Sequence[Subject]) -> Finished | None:
    """The pictures of a result if it has all that are needed."""
    if _SCORES not in result.files:
        return None
    table = _table(result)
    methods = list(dict.fromkeys(table["method"]))
    wanted = [(f"images/{method}/{row.file}", row.prompt, row.seed) for method in methods for row in rows]
    if wanted != list(zip(table["file"], table["prompt"], table["seed"], strict=True)):
        return None
    lost: dict[str, set[int]] = {method: set() for method in methods}
    for place, file in enumerate(table["file"]):
        if file not in result.files:
            lost[table["method"][place]].add(place % len(rows))
    statuses = table.get("status", ["ok"] * len(wanted))
    # those of a benchmark that could not be cut out are left out
    references = all(f"images/reference/{subject.name}-00.png" in result.files for subject in subjects)
    if not references or sum(map(len, lost.values())) != sum(status != "ok" for status in statuses):
        return None
    return Finished(result.fetch(_pictures(result)), rows, methods, lost)


def _values(result: EarlierResult, finished: Finished, subjects: Sequence[Subject]) -> dict[str, _Stored]:
    """The values of a result by the identity of their measure."""
    if FACTS not in result.files:  # of an earlier version
        return {}
    facts = parse_json((result.fetch([FACTS]) / FACTS).read_bytes())
    table = _table(result)
    count = len(finished.rows)
    found = {}
    for name, known in facts.items():
        if name not in table or set(known["real"]) != {subject.name for subject in subjects}:
            continue
        values, reasons = {}, {}
        for number, method in enumerate(finished.methods):
            part = slice(number * count, (number + 1) * count)
            values[method] = np.array([np.nan if v is None else v for v in table[name][part]], np.float64)
            given = table.get(f"{name}_reason", [None] * len(table[name]))[part]
            reasons[method] = [
                NOT_FINITE if row in finished.lost[method] else reason or "" for row, reason in enumerate(given)
            ]
        found[known["identity"]] = _Stored(values, reasons, [known["real"][subject.name] for subject in subjects])
    return found


def _table(result: EarlierResult) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = pq.read_table(result.fetch([_SCORES]) / _SCORES).to_pydict()
    return table
