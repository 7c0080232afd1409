"""The judges and votes of a study: a journal on disk, and a table made from it.

`votes.jsonl` has a line for every judge and every vote. A line is on disk before the judge is told that the vote
counts. A line that a crash cut off does not count, and the next vote replaces it; that judge was never told. Votes can
be changed: the newest one counts, and the earlier ones stay in the journal.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bootpig.stages.engine.contract import InputError
from bootpig.stages.plain_text import one_line
from bootpig.stages.study.study import Study, not_written
from bootpig.storage.jsonio import parse_json

JOURNAL = "votes.jsonl"
TABLE = "votes.parquet"

LONGEST_NAME = 80
"""Maximum characters of a judge's name."""
MOST_JUDGES = 1000

Answer = Literal["first", "other", "neither"]
"""The first contestant's picture, the other's, or "cannot say"."""

QUESTIONS = ("truer", "follows")
"""`truer`: which picture's subject is truer to the reference. `follows`: which picture follows the caption better."""


class NotSaved(Exception):
    """A vote could not be written to disk. The message is for the judge."""


class NameRefused(Exception):
    """A judge's name cannot be used. The message is for the judge."""


class _JudgeLine(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["judge"]
    study: str
    judge: str = Field(pattern="^[0-9a-f]{8}$")
    name: str
    token: str
    """sha256 of what the judge's browser keeps: the file alone lets nobody vote as a judge."""
    time: datetime


class _VoteLine(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["vote"]
    study: str
    judge: str
    pair: int
    truer: Answer
    follows: Answer
    left: Literal["first", "other"]
    """Whose picture was on the left."""
    time: datetime


_LINE: TypeAdapter[_JudgeLine | _VoteLine] = TypeAdapter(_JudgeLine | _VoteLine)


@dataclass(frozen=True)
class Vote:
    """What a judge says of a pair."""

    pair: int
    truer: Answer
    follows: Answer
    left: Literal["first", "other"]


@dataclass
class Judge:
    """A judge, and the votes that count, by pair."""

    id: str
    name: str
    token: str
    votes: dict[int, Vote] = field(default_factory=dict)
    times: dict[int, datetime] = field(default_factory=dict)


class Votes:
    """The judges and votes of a study. All methods may be called from several threads, but one process writes.

    Args:
        folder: of the study.
        study: the study itself.

    Raises:
        InputError: the journal is of another study, or is damaged.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        self.folder = folder
        self.study = study
        self.judges: dict[str, Judge] = {}
        self._by_token: dict[str, Judge] = {}
        self._lock = threading.Lock()
        self._path = folder / JOURNAL
        try:
            data = self._path.read_bytes() if self._path.exists() else b""
            whole = data.rpartition(b"\n")[0] + b"\n" if b"\n" in data else b""
        except OSError as error:
            raise not_written(self._path, error) from None
        self._size = len(whole)
        for number, line in enumerate(whole.splitlines(), 1):
            self._take(self._parsed(number, line), f"line {number}")

    def _parsed(self, number: int, line: bytes) -> _JudgeLine | _VoteLine:
        try:
            return _LINE.validate_python(parse_json(line))
        except (ValidationError, ValueError):
            raise self._damaged(f"line {number}") from None

    def _damaged(self, where: str) -> InputError:
        return InputError(f"--out: {str(self._path)!r} → {where} is no vote of a study; restore the file from a copy")

    def _take(self, line: _JudgeLine | _VoteLine, where: str) -> None:
        if line.study != self.study.id:
            raise InputError(
                f"--out: {str(self._path)!r} → holds votes of another study ({line.study}); give the folder of that "
                "study, or move the file away"
            )
        if isinstance(line, _JudgeLine):
            judge = self.judges[line.judge] = Judge(line.judge, line.name, line.token)
            self._by_token[line.token] = judge
        elif line.judge in self.judges and 0 <= line.pair < len(self.study.pairs):
            self.judges[line.judge].votes[line.pair] = Vote(line.pair, line.truer, line.follows, line.left)
            self.judges[line.judge].times[line.pair] = line.time
        else:
            raise self._damaged(where)

    def of_token(self, token: str) -> Judge | None:
        """The judge whose browser keeps `token`, if there is one."""
        return self._by_token.get(hashlib.sha256(token.encode("utf-8", "replace")).hexdigest())

    def join(self, name: str) -> str:
        """A new judge. Returns the token by which they are known from now on.

        Raises:
            NameRefused: the name is empty, too long or taken.
            NotSaved: the judge could not be written to disk.
        """
        # a name is shown in the terminal and on pages: without control characters, in one line
        if len(name) > LONGEST_NAME:
            raise NameRefused(f"A name has at most {LONGEST_NAME} characters.")
        shown = one_line(name)
        if not shown:
            raise NameRefused("Please give a name, so that your answers can be told from others'.")
        token = secrets.token_hex(32)
        with self._lock:
            if any(judge.name.casefold() == shown.casefold() for judge in self.judges.values()):
                raise NameRefused("This name is taken. To go on as that judge, use the browser in which you began.")
            if len(self.judges) >= MOST_JUDGES:
                raise NameRefused("This study takes no more judges.")
            hashed = hashlib.sha256(token.encode()).hexdigest()
            self._append(
                _JudgeLine(
                    kind="judge", study=self.study.id, judge=secrets.token_hex(4), name=shown, token=hashed, time=_now()
                )
            )
        return token

    def vote(self, judge: Judge, vote: Vote) -> None:
        """Write a vote. One that is already there, as after a double click, is not written again.

        Raises:
            NotSaved: it could not be written to disk, and does not count.
        """
        with self._lock:
            if judge.votes.get(vote.pair) != vote:
                self._append(_VoteLine(kind="vote", study=self.study.id, judge=judge.id, time=_now(), **vars(vote)))

    def _append(self, line: _JudgeLine | _VoteLine) -> None:
        """Write a line to disk, then let it count. After a failure the journal is as before."""
        data = f"{line.model_dump_json()}\n".encode()
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                there = os.fstat(descriptor).st_size
                if there < self._size:
                    raise OSError(0, "the journal was changed by something else")
                if there > self._size:  # a line that could not be written, or that a crash cut off
                    os.ftruncate(descriptor, self._size)
                written = 0
                while written < len(data):
                    written += os.write(descriptor, data[written:])
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise NotSaved(
                f"Your answer could not be saved ({error.strerror or error}). Please tell whoever runs this study, "
                "leave this page open, and try again later."
            ) from None
        self._size += len(data)
        self._take(line, "")

    def rows(self) -> list[dict[str, Any]]:
        """The votes that count, one row per judge and pair, in the order of judges and pairs."""
        with self._lock:
            return [
                self._row(judge, vote, judge.times[pair])
                for judge in self.judges.values()
                for pair, vote in sorted(judge.votes.items())
            ]

    def _row(self, judge: Judge, vote: Vote, time: datetime) -> dict[str, Any]:
        pair = self.study.pairs[vote.pair]
        return {
            "judge": judge.id,
            "name": judge.name,
            "pair": vote.pair,
            "subject": pair.subject,
            "prompt": pair.prompt,
            "number": pair.number,
            "first": self.study.names[0],
            "other": self.study.names[pair.other],
            "truer": vote.truer,
            "follows": vote.follows,
            "left": vote.left,
            "time": time,
        }

    def save_table(self) -> Path:
        """Write `votes.parquet`, whole or not at all.

        Raises:
            InputError: it cannot be written.
        """
        metadata = {b"bootpig.study": self.study.id.encode()}
        table = pa.Table.from_pylist(self.rows(), SCHEMA.with_metadata(metadata))
        path = self.folder / TABLE
        temporary = self.folder / f".{TABLE}-{secrets.token_hex(4)}"
        try:
            pq.write_table(table, temporary, compression="zstd")
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise not_written(path, error) from None
        return path


SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("judge", "name")),
        ("pair", pa.int32()),
        *((name, pa.string()) for name in ("subject", "prompt")),
        ("number", pa.int32()),
        *((name, pa.string()) for name in ("first", "other", "truer", "follows", "left")),
        ("time", pa.timestamp("us", tz="UTC")),
    ]
)
"""Of `votes.parquet`."""


def _now() -> datetime:
    return datetime.now(UTC)
