"""The contents of a picture set by their digests: what a unit is made from, and which pictures repeat an earlier one.

Both depend only on the set and the order in it, so any unit can be made at any time, by any process. To know them,
every picture up to the unit's last one is hashed, once on a machine (see `seen`).
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from bootpig.stages.caption.phrases import object_phrase
from bootpig.stages.real_pictures.config import PicturesConfig
from bootpig.stages.real_pictures.seen import Seen
from bootpig.stages.real_pictures.source import Entry, Raw, Source, Text
from bootpig.storage.fingerprint import bytes_digest, digest

AT_ONCE = 256
"""Entries that are looked up together."""


class Content(NamedTuple):
    """Digests of an entry."""

    picture: str
    """sha256 of the encoded picture; of the reason where there is none to read."""
    text: str
    """sha256 of caption and object."""
    usable: bool
    """Whether there are both a picture and what is needed of a caption. Other entries repeat nothing, and no other
    entry repeats them."""


class Index:
    """The contents of the first entries of a source, as many as were asked for so far. For use by several threads."""

    def __init__(self, config: PicturesConfig, source: Source) -> None:
        self.config = config
        self.source = source
        self._seen = Seen()
        self._contents: list[Content] = []
        self._first: dict[str, int] = {}
        """sha256 of a picture → position of the first usable entry with it."""
        self._lock = threading.Lock()

    def content(self, position: int) -> Content:
        self._reach(position + 1)
        return self._contents[position]

    def first(self, position: int) -> int:
        """The position of the first usable entry with the same picture; `position` itself if there is none before."""
        self._reach(position + 1)
        return min(self._first.get(self._contents[position].picture, position), position)

    def repeats(self, position: int) -> bool:
        """Whether the entry is usable and an earlier one is, too, and has the same picture."""
        return self.content(position).usable and self.first(position) < position

    def sample_id(self, position: int) -> str:
        """16 hex digits: of the picture's sha256, so that a picture keeps its id wherever it is in the set. An
        entry that makes no sample has one of its own, because its picture may belong to a sample."""
        content = self.content(position)
        if content.usable and self.first(position) == position:
            return content.picture[:16]
        return digest([content.picture, self.source.entries[position].name])[:16]

    def digest(self, span: range) -> str:
        """Digest of everything that the samples of `span` are made from, besides the settings."""
        entries = self.source.entries
        found = [
            [entries[place].name, self.content(place).picture, self.content(place).text, self.repeats(place)]
            for place in range(span.start, min(span.stop, len(entries)))
        ]
        return digest(found)

    def is_still(self, position: int, raw: Raw) -> bool:
        """Whether an entry that was read now is what it was."""
        return self._of(self.source.entries[position], raw) == self.content(position)

    def _reach(self, stop: int) -> None:
        if len(self._contents) >= stop:
            return
        with self._lock:
            while (begin := len(self._contents)) < stop:
                contents = self._look(self.source.entries[begin : begin + AT_ONCE])
                for place, content in enumerate(contents, begin):
                    if content.usable:
                        self._first.setdefault(content.picture, place)
                self._contents += contents

    def _look(self, entries: list[Entry]) -> list[Content]:
        keys = {entry.name: self._key(entry) for entry in entries if entry.version}
        known = self._seen.get(list(keys.values()))
        contents = {e.name: _parse(known[keys[e.name]]) for e in entries if keys.get(e.name) in known}
        missing = [entry for entry in entries if entry.name not in contents]
        news = {}
        for entry, raw in zip(missing, self.source.read(missing), strict=True):
            content = contents[entry.name] = self._of(entry, raw)
            if entry.name in keys:
                news[keys[entry.name]] = " ".join((content.picture, content.text, str(int(content.usable))))
        self._seen.put(news)
        return [contents[entry.name] for entry in entries]

    def _key(self, entry: Entry) -> str:
        config = self.config
        settings = [config.format, config.captions, config.image_column, config.caption_column, config.object_column]
        return digest([self.source.root.address(entry.name), entry.version, *settings])

    def _of(self, entry: Entry, raw: Raw) -> Content:
        text = Text() if self.config.captions == "openai" else raw.text
        words = digest([text.caption, text.object])
        if raw.picture is None:
            return Content(digest([raw.reason, raw.message, entry.name]), words, False)
        usable = self.config.captions == "openai" or phrase_of(text) is not None
        return Content(bytes_digest(raw.picture), words, usable)


def phrase_of(text: Text) -> str | None:
    """The phrase that names a picture's subject: as given, or that of its caption. None if there is none."""
    return None if text.caption is None else text.object or object_phrase(text.caption)


def _parse(value: str) -> Content:
    picture, text, usable = value.split()
    return Content(picture, text, usable == "1")
