"""Pictures in webdataset shards. Shards are untrusted: nothing is unpacked, no link is followed, no URL is opened."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from bootpig.stages.engine.contract import InputError
from bootpig.stages.picture_files.reader import is_picture_name
from bootpig.stages.real_pictures.source import MAX_BYTES, MAX_TEXT_BYTES, Entry, Raw, Source, leads_outside
from bootpig.storage.outside import FoundFile, is_utf8

AT_ONCE = 16
"""Samples that are fetched together."""

_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)

Span = tuple[int, int]
"""First byte in the shard, and the byte after the last one."""


@dataclass
class _Place:
    shard: str
    picture: Span | None = None
    texts: dict[str, Span] = field(default_factory=dict)
    """`txt` and `json`."""


class ShardSource(Source):
    """The samples of all `.tar` files in natural order of their paths, each in its own order.

    Members with the same path up to the first dot of the file name are a sample, as in webdataset. Its picture is the
    first member whose rest is the suffix of a picture, such as `png` (but not `mask.png`).
    """

    suffix = ".tar"

    @cached_property
    def entries(self) -> list[Entry]:
        found = [entry for name, file in self.shards().items() for entry in self._samples(name, file)]
        if not found:
            raise InputError(f"pictures.url: {self.config.url!r} → its shards are empty; check the path")
        return found

    @property
    def has_captions(self) -> bool:
        return any(entry.place.texts for entry in self.entries)

    def read(self, entries: Sequence[Entry]) -> Iterator[Raw]:
        for begin in range(0, len(entries), AT_ONCE):
            some = [entry.place for entry in entries[begin : begin + AT_ONCE]]
            spans = [(place.shard, *span) for place in some for span in _spans(place)]
            try:
                data = iter(self.root.ranges(spans))
            except FileNotFoundError:
                raise self.changed(some[0].shard) from None
            for place in some:
                picture = next(data) if _is_read(place) else None
                texts = {kind: next(data) for kind in place.texts}
                words = self.text_of_files(texts.get("txt"), texts.get("json"))
                if place.picture is None:
                    yield Raw(None, words, "missing", "no member is a picture")
                elif picture is None:
                    yield Raw(None, words, "too_large", f"{place.picture[1] - place.picture[0]} bytes")
                else:
                    yield Raw(picture, words)

    def _samples(self, shard: str, file: FoundFile) -> list[Entry]:
        samples: list[tuple[str, _Place]] = []
        for name, span in self._members(shard, file):
            folder, _, base = name.rpartition("/")
            stem, _, end = base.partition(".")
            if not stem or stem.startswith("__"):
                continue
            key = f"{folder}/{stem}" if folder else stem
            if not samples or samples[-1][0] != key:
                samples.append((key, _Place(shard)))
            place, kind = samples[-1][1], end.lower()
            if kind in ("txt", "json"):
                if self.given:
                    place.texts.setdefault(kind, (span[0], min(span[1], span[0] + MAX_TEXT_BYTES)))
            elif place.picture is None and "." not in kind and kind and is_picture_name(Path(f"_.{kind}")):
                place.picture = span
        keys = [key for key, _ in samples]
        if len(set(keys)) < len(keys):
            twice = next(key for place, key in enumerate(keys) if key in keys[:place])
            raise InputError(
                f"pictures.url: {shard!r} → has the sample {twice!r} twice, with others in between; write its members "
                "one after the other"
            )
        version = file.version if file.settled else ""
        return [
            Entry(f"{shard}/{key}", version and f"{version} {place.picture} {place.texts}", place)
            for key, place in samples
        ]

    def _members(self, shard: str, file: FoundFile) -> Iterator[tuple[str, Span]]:
        """Name and place of each plain file in a shard, in order. Reads the headers only."""

        def refused(why: str, fix: str = "replace it") -> InputError:
            return InputError(f"pictures.url: {shard!r} → {why}; {fix}")

        with self.root.stream(shard) as stream:
            try:
                with tarfile.open(fileobj=stream, mode="r:") as archive:
                    while (member := archive.next()) is not None:
                        archive.members = []  # type: ignore[attr-defined]  # tarfile keeps them all
                        if not is_utf8(member.name):
                            raise refused(f"the name of its member {member.name[:80]!r} is not UTF-8", "rename it")
                        if leads_outside(member.name):
                            raise refused(f"its member {member.name[:80]!r} leads outside", "the shard is not used")
                        if member.isdir():
                            continue
                        if member.type not in _PLAIN or member.issparse():
                            raise refused(
                                f"its member {member.name[:80]!r} is not a plain file", "the shard is not used"
                            )
                        end = member.offset_data + member.size
                        if end > file.size:
                            raise refused("is cut short", "get it again")
                        if not PurePosixPath(member.name).name.startswith("."):
                            yield member.name, (member.offset_data, end)
                    stream.seek(archive.offset)
                    if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
                        raise refused(f"is damaged at byte {archive.offset}", "get it again")
            except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
                if isinstance(error, InputError):
                    raise
                raise refused(f"is not a readable tar file ({type(error).__name__})") from None


def _is_read(place: _Place) -> bool:
    return place.picture is not None and place.picture[1] - place.picture[0] <= MAX_BYTES


def _spans(place: _Place) -> Iterator[Span]:
    if place.picture is not None and _is_read(place):
        yield place.picture
    yield from place.texts.values()
