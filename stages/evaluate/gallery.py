"""Keeps the pictures of an evaluation on disk: written as they are drawn, read one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

from PIL import Image

from bootpig.stages.engine.contract import FatalError
from bootpig.stages.engine.saved import Pieces
from bootpig.stages.engine.share import Share
from bootpig.stages.evaluate.drawing import Drawing, is_blank
from bootpig.storage.errors import CorruptPart
from bootpig.storage.shards import read_shard, write_shard

_LOG = logging.getLogger(__name__)

NOT_FINITE = "not_finite"
"""Extension of the empty member of a piece in place of a picture that is not finite. Also the reason in its row."""


Picture = Callable[[str], bytes | None]
"""Reads a picture of an earlier result, given its file name: PNG, or nothing for one that is not finite. None if it is
missing or damaged."""


def read_drawn(path: Path) -> Image.Image:
    """Read a picture that was written here, as RGB."""
    with Image.open(path) as opened:
        return opened.convert("RGB")


def read_drawn_or_grey(path: Path) -> Image.Image:
    """The same, for a contact sheet: grey in place of a picture that is not finite and has no file."""
    return read_drawn(path) if path.exists() else Image.new("RGB", (1, 1), "grey")


class PictureFiles(Sequence[Image.Image]):
    """Picture files as a sequence of pictures. Each picture is read from its file on every access."""

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], Image.Image] = read_drawn) -> None:
        self.paths = paths
        self._read = read

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, at: int) -> Image.Image: ...

    @overload
    def __getitem__(self, at: slice) -> list[Image.Image]: ...

    def __getitem__(self, at: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(at, slice):
            return [self._read(path) for path in self.paths[at]]
        return self._read(self.paths[at])


class DrawnPictures:
    """The pictures of one method, one per row, as files in a folder.

    Each batch of `batch_size` rows is also stored as a piece of the unfinished result. If the piece of a batch exists
    and is undamaged, it is unpacked. Otherwise the whole batch is drawn again, because the last bits of a picture
    depend on its batch. With several ranks, each draws its own batches.
    """

    def __init__(
        self,
        method: str,
        folder: Path,
        rows: Sequence[Drawing],
        batch_size: int,
        pieces: Pieces | None,
        share: Share | None = None,
        number: int = 0,
        earlier: Picture | None = None,
    ) -> None:
        """Unpack the pieces of the own batches that exist. Creates `folder`.

        Args:
            pieces: None: no pieces are read or stored.
            earlier: the same pictures in an earlier result. Batches that it has whole are not drawn.
            share: this rank's part. None: everything.
            number: which of the methods this is. Batches of all methods are dealt out to the ranks in turn.
        """
        folder.mkdir(parents=True)
        self.method = method
        self.rows = rows
        self.files = PictureFiles([folder / row.file for row in rows])
        self.blank = 0
        """Number of pictures with a single colour."""
        self.not_finite: set[int] = set()
        """Rows whose picture is not finite. They have no file."""
        self._pieces = pieces
        self._earlier = earlier
        self._batch_size = batch_size
        batches = [self._batch(begin) for begin in range(0, len(rows), batch_size)]
        mine = [share is None or place in share for place in range(number * len(batches), (number + 1) * len(batches))]
        self.own = [batch for batch, is_mine in zip(batches, mine, strict=True) if is_mine]
        """The batches of this rank."""
        self.others = [batch for batch, is_mine in zip(batches, mine, strict=True) if not is_mine]
        self._missing = [index for batch in self.own if not self._unpack(batch) for index in batch]
        self._added = 0
        self._collected = 0

    @property
    def missing(self) -> list[Drawing]:
        """The rows to draw and `add`, in order."""
        return [self.rows[index] for index in self._missing[self._added :]]

    def __len__(self) -> int:
        """Number of pictures that exist."""
        return sum(map(len, self.own)) - len(self._missing) + self._added + self._collected

    def finite(self, batch: range) -> list[int]:
        """The rows of a batch that have a picture."""
        return [index for index in batch if index not in self.not_finite]

    def collect(self, pieces: Pieces | None) -> None:
        """Unpack the batches that other ranks have drawn, from the pieces as they are now.

        Raises:
            FatalError: one of them is missing or damaged.
        """
        self._pieces = pieces
        for batch in self.others:
            if not self._unpack(batch):
                name = self._name(batch.start)
                raise FatalError(f"evaluate: {name} of another process is missing; run again, which draws it")
            self._collected += len(batch)

    def add(self, pictures: Sequence[Image.Image | None]) -> None:
        """Write pictures, for the first rows of `missing`. None: not finite, nothing is written."""
        for picture in pictures:
            index = self._missing[self._added]
            if picture is None:
                self.not_finite.add(index)
            else:
                picture.save(self.files.paths[index])
                self.blank += is_blank(picture)
            self._added += 1
            batch = self._batch(index)
            if index == batch[-1]:
                self._pack(batch)

    def check_finite(self, fix: str, section: str = "evaluate") -> None:
        """Log a warning if pictures are not finite. `fix` says what to do about it, `section` where the settings are.

        Raises:
            FatalError: none of a subject's pictures is finite, so methods could not be compared on the same subjects.
        """
        if not self.not_finite:
            return
        problem = f"{len(self.not_finite)} of {len(self.rows)} pictures of {self.method} hold NaN or infinity"
        left = {row.subject.name for index, row in enumerate(self.rows) if index not in self.not_finite}
        if lacking := [row.subject.name for row in self.rows if row.subject.name not in left]:
            raise FatalError(f"{problem}, among them all of {lacking[0]}; {fix}")
        _LOG.warning("%s: %s; %s", section, problem, fix)

    def _batch(self, index: int) -> range:
        begin = index - index % self._batch_size
        return range(begin, min(begin + self._batch_size, len(self.rows)))

    def _name(self, index: int) -> str:
        """Name of a picture in its piece. A piece has the name of its first picture."""
        return f"{self.method}-{index:06d}"

    def _pack(self, batch: range) -> None:
        if self._pieces is not None:
            self._pieces.put(self._name(batch.start), write_shard(self._member(index) for index in batch))

    def _member(self, index: int) -> tuple[str, bytes]:
        if index in self.not_finite:
            return f"{self._name(index)}.{NOT_FINITE}", b""
        return f"{self._name(index)}.png", self.files.paths[index].read_bytes()

    def _unpack(self, batch: range) -> bool:
        """Unpack a batch that was drawn earlier and update `blank`. False if there is no usable piece."""
        data = None if self._pieces is None else self._pieces.get(self._name(batch.start))
        try:
            members = dict(read_shard(data)) if data is not None else {}
        except CorruptPart:
            members = {}
        if [*members] != [self._name(index) for index in batch] or any(
            [*files] not in (["png"], [NOT_FINITE]) for files in members.values()
        ):
            members = self._of_earlier(batch)
        if not members:
            return False
        for index, files in zip(batch, members.values(), strict=True):
            if NOT_FINITE in files:
                self.not_finite.add(index)
                continue
            self.files.paths[index].write_bytes(files["png"])
            self.blank += is_blank(self.files[index])
        return True

    def _of_earlier(self, batch: range) -> dict[str, dict[str, bytes]]:
        """The members of a batch from an earlier result. Empty if it lacks a picture."""
        found: dict[str, dict[str, bytes]] = {}
        for index in batch if self._earlier is not None else ():
            assert self._earlier is not None
            data = self._earlier(self.rows[index].file)
            if data is None:
                return {}
            found[self._name(index)] = {"png": data} if data else {NOT_FINITE: b""}
        return found
