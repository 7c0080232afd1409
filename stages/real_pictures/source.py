"""What the formats of picture sets have in common: an ordered list of entries, their bytes and captions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from glob import has_magic
from pathlib import PurePosixPath
from typing import Any

from bootpig.stages.engine.contract import FatalError, InputError
from bootpig.stages.picture_files.folders import natural_order, of_systems
from bootpig.stages.plain_text import one_line
from bootpig.stages.real_pictures.config import PicturesConfig
from bootpig.stages.text_files import decoded
from bootpig.storage.jsonio import parse_json
from bootpig.storage.outside import FoundFile, Outside

MAX_BYTES = 2**28
"""Of a picture's file. Larger ones are not read."""
MAX_TEXT_BYTES = 2**20
"""Of a caption's file."""


@dataclass(frozen=True)
class Text:
    """What is known of a picture in words. Untrusted, and one line each."""

    caption: str | None = None
    object: str | None = None
    """The name of the subject, if the set has one."""
    message: str = ""
    """Why there is no caption."""


@dataclass(frozen=True)
class Entry:
    """One picture of a set."""

    name: str
    """Its path in the set, or that of its shard and its key there. Unique."""
    version: str
    """Differs when picture or text do. Empty if equal versions may have different content."""
    place: Any
    """Where it is; known to its source."""


@dataclass(frozen=True)
class Raw:
    """An entry as it is stored."""

    picture: bytes | None
    """The encoded picture; None if there is none to read."""
    text: Text
    reason: str = ""
    """Why there is no picture, one of the stage's reasons."""
    message: str = ""


class Source(ABC):
    """The pictures of one URL, in an order that stays the same when others are added at the end.

    Raises:
        StoreError: the URL cannot be opened.
    """

    suffix: str
    """Of the files that hold pictures; empty for picture files themselves."""

    def __init__(self, config: PicturesConfig) -> None:
        self.config = config
        self.given = config.captions == "given"
        single = self.suffix and config.url.endswith(self.suffix)
        folder, _, name = config.url.rpartition("/") if single else (config.url, "", "")
        self.root = Outside(folder or ("/" if config.url.startswith("/") else "."), "pictures.url")
        self._only = name

    @cached_property
    @abstractmethod
    def entries(self) -> list[Entry]:
        """All pictures in order. Reads no picture.

        Raises:
            InputError: the set is empty, damaged, or not of this format.
            StoreError: it cannot be listed.
        """

    @abstractmethod
    def read(self, entries: Sequence[Entry]) -> Iterator[Raw]:
        """The content of entries, in their order. Holds only some of them in memory.

        Raises:
            FatalError: a file has changed since it was listed.
            InputError, StoreError: a file is damaged or cannot be read.
        """

    @property
    def has_captions(self) -> bool:
        """Whether any entry has a text beside it, as far as is known without reading it."""
        return True

    def files(self) -> dict[str, FoundFile]:
        """The visible files of the set in natural order. Raises InputError if the URL does not exist."""
        local = self.root.local
        if self._only:
            found = self.root.file(self._only)
            if found is None and has_magic(self._only):
                beside = self.root.files()
                names = [name for name in beside if fnmatchcase(name, self._only) and "/" not in name]
                if names:
                    return {name: beside[name] for name in sorted(names, key=path_order)}
            if found is None:
                raise InputError(f"pictures.url: {self.config.url!r} → there is no such file; correct the path")
            return {self._only: found}
        if local is not None and local.is_file():
            raise InputError(f"pictures.url: {self.config.url!r} → is a file; {self._fix_of_file(local.suffix)}")
        if local is not None and not local.exists():
            raise InputError(f"pictures.url: {self.config.url!r} → there is no such folder; correct the path")
        all_files = self.root.files()
        return {name: all_files[name] for name in sorted(all_files, key=path_order) if not of_systems(name)}

    @staticmethod
    def _fix_of_file(suffix: str) -> str:
        fixes = {".tar": "set format to webdataset", ".parquet": "set format to parquet"}
        return fixes.get(suffix.lower(), "give the folder that holds the pictures")

    def shards(self) -> dict[str, FoundFile]:
        """The files with the format's suffix, in order. Raises InputError if there are none."""
        files = self.files()
        shards = {name: found for name, found in files.items() if name.endswith(self.suffix)}
        if not shards:
            raise InputError(self.nothing(files, f"{self.suffix} files"))
        return shards

    def nothing(self, files: Mapping[str, FoundFile], wanted: str) -> str:
        """The message about a set without anything of its format."""
        other = {".tar": "webdataset", ".parquet": "parquet"}
        found = next(
            (
                f"holds {suffix} files; set format to {other[suffix]}"
                for suffix in other
                if suffix != self.suffix and any(name.endswith(suffix) for name in files)
            ),
            "check the path and pictures.format",
        )
        return f"pictures.url: {self.config.url!r} → holds no {wanted}; {found}"

    def changed(self, name: str) -> FatalError:
        """The error about a file that is not what it was when it was listed."""
        return FatalError(f"pictures.url: {name!r} changed while it was read; run again")

    def text_of_files(self, txt: bytes | None, data: bytes | None) -> Text:
        """The text of a picture from the `.txt` and `.json` beside it. The caption of `.txt` goes first."""
        fields: Any = {}
        message = ""
        if data is not None:
            try:
                fields = parse_json(data[:MAX_TEXT_BYTES])
            except ValueError as error:
                message = f"its .json cannot be read ({one_line(str(error), 80)})"
            if not isinstance(fields, dict):
                fields, message = {}, "its .json is not an object"
        caption = None
        if txt is not None:
            try:
                lines = (one_line(line) for line in decoded(txt[:MAX_TEXT_BYTES]).splitlines())
                caption = next(filter(None, lines), None)
            except UnicodeDecodeError:
                message = "its .txt is not UTF-8"
        found = self.text_of_fields(fields)
        return Text(caption or found.caption, found.object, message)

    def text_of_fields(self, fields: Mapping[str, Any]) -> Text:
        """The text of a picture from a row of a table or a JSON object."""
        return Text(_words(fields.get(self.config.caption_column)), _words(fields.get(self.config.object_column)))


def _words(value: Any) -> str | None:
    """A field's text in one line; of several, the first. None if there is none."""
    if isinstance(value, list) and value:
        value = value[0]
    return (one_line(value) or None) if isinstance(value, str) else None


def path_order(name: str) -> tuple[Any, ...]:
    """A key that sorts paths folder by folder, numbers by value."""
    return tuple(natural_order(part) for part in name.split("/"))


def leads_outside(name: str) -> bool:
    """Whether a path in a data set is absolute, a URL, or leaves its folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or "://" in name or name.startswith("pipe:") or "\0" in name
