"""Reads what an evaluation has drawn: which pictures there are, by method, subject, caption and number."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa

from bootpig.stages.engine.contract import InputError
from bootpig.storage.fingerprint import bytes_digest
from bootpig.storage.tables import read_table

SCORES = "scores.parquet"
REFERENCES = "images/reference/"


class Shown(NamedTuple):
    """What a picture was drawn for. Pictures of two methods with equal values can be compared."""

    subject: str
    prompt: str
    number: int
    """The picture's number among those of its subject and caption."""


@dataclass(frozen=True)
class Evaluation:
    """The results of one evaluation."""

    label: str
    """How the user calls it: a run id, or the name of a folder."""
    digest: str
    """sha256 of `scores.parquet`."""
    pictures: dict[str, dict[Shown, str]]
    """Method → what it has drawn → file, relative to the result's folder. Without pictures that were not finite."""
    files: frozenset[str]
    """All files of the result, relative names."""
    fetch: Callable[[Collection[str]], Path]
    """`fetch(files)`: a local folder with these files of the result. Raises InputError if one is damaged."""

    def references(self, subject: str) -> list[str]:
        """The files of a subject's references, in order."""
        pattern = re.compile(f"{REFERENCES}{re.escape(subject)}" + r"-\d+\.png")
        return sorted(name for name in self.files if pattern.fullmatch(name))


def read_evaluation(
    label: str, scores: bytes, files: Collection[str], fetch: Callable[[Collection[str]], Path]
) -> Evaluation:
    """The evaluation whose `scores.parquet` has the bytes `scores`. Arguments as the fields of `Evaluation`.

    Raises:
        InputError: it cannot be read, or names a file outside of its folder.
    """
    names = ("method", "subject", "prompt", "file")
    try:
        table = read_table(scores)
        verdicts = table.column("status").to_pylist() if "status" in table.column_names else ["ok"] * len(table)
        rows = table.select(list(names)).to_pylist()
        if not all(isinstance(row[name], str) for row in rows for name in names):
            raise pa.ArrowInvalid("a column that should have text has none")
    except (pa.ArrowException, KeyError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"RUN: {label!r} → its {SCORES} cannot be read ({reason}); evaluate it again") from None
    pictures: dict[str, dict[Shown, str]] = {}
    numbers: Counter[tuple[str, str, str]] = Counter()
    for row, verdict in zip(rows, verdicts, strict=True):
        method, subject, prompt, file = (row[name] for name in names)
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or "\0" in file:
            raise InputError(f"RUN: {label!r} → its {SCORES} names {file!r}, which is outside of its folder")
        shown = Shown(subject, prompt, numbers[method, subject, prompt])
        numbers[method, subject, prompt] += 1
        drawn = pictures.setdefault(method, {})
        if verdict == "ok":
            drawn[shown] = file
    return Evaluation(label, bytes_digest(scores), pictures, frozenset(files), fetch)


@dataclass(frozen=True)
class Contestant:
    """One of the methods that are compared."""

    evaluation: Evaluation
    method: str

    @property
    def pictures(self) -> dict[Shown, str]:
        return self.evaluation.pictures[self.method]


def contestants(evaluations: Sequence[Evaluation], methods: Sequence[str]) -> list[Contestant]:
    """Who is compared. The first is compared with each of the others.

    Args:
        evaluations: one, whose methods are compared, or several, one per contestant.
        methods: of one evaluation, two or more; by default bootpig and text_only. Of several evaluations, one for all,
            or one for each; by default bootpig.

    Raises:
        InputError: their numbers do not fit, an evaluation lacks a method, or one contestant is there twice.
    """
    if len(evaluations) == 1:
        chosen = list(methods) or ["bootpig", "text_only"]
        if len(chosen) < 2:
            raise InputError(f"--method: {chosen[0]!r} → one RUN needs two methods to compare; add another --method")
        pairs = [(evaluations[0], method) for method in chosen]
    else:
        chosen = list(methods) or ["bootpig"]
        if len(chosen) == 1:
            chosen *= len(evaluations)
        if len(chosen) != len(evaluations):
            raise InputError(
                f"--method: {len(chosen)} methods for {len(evaluations)} RUNs → give one for all, or one for each RUN"
            )
        pairs = list(zip(evaluations, chosen, strict=True))
    for evaluation, method in pairs:
        if method not in evaluation.pictures:
            known = ", ".join(evaluation.pictures) or "none"
            raise InputError(f"--method: {method!r} → {evaluation.label!r} has no such method; it has {known}")
    seen: dict[tuple[str, str], str] = {}
    for evaluation, method in pairs:
        if (before := seen.get((evaluation.digest, method))) is not None:
            same = "is given twice" if before == evaluation.label else f"has the same pictures as {before!r}"
            raise InputError(f"RUN: {evaluation.label!r} with method {method!r} {same}; compare two different ones")
        seen[evaluation.digest, method] = evaluation.label
    return [Contestant(*pair) for pair in pairs]
