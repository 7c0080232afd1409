"""Pictures as files in folders, with captions in `.txt` or `.json` files beside them, or in `metadata.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from bootpig.stages.engine.contract import InputError
from bootpig.stages.picture_files.reader import is_picture_name
from bootpig.stages.real_pictures.source import MAX_BYTES, Entry, Raw, Source, leads_outside
from bootpig.storage.fingerprint import bytes_digest
from bootpig.storage.jsonio import parse_json
from bootpig.storage.outside import FoundFile

METADATA = "metadata.jsonl"
"""Lists the pictures of its folder, as `datasets`' imagefolder and our own export write it."""

AT_ONCE = 16
"""Files that are fetched together."""


@dataclass(frozen=True)
class _Place:
    picture: str | None
    """None: `metadata.jsonl` names a file that is not there."""
    size: int
    txt: str | None = None
    json: str | None = None
    fields: dict[str, Any] | None = None
    """The line of `metadata.jsonl`."""


class FolderSource(Source):
    """All pictures below a folder in natural order of their paths. If there is any `metadata.jsonl`, only the pictures
    that are listed in one, in the order of its lines."""

    suffix = ""

    @cached_property
    def entries(self) -> list[Entry]:
        files = self.files()
        listed = [name for name in files if PurePosixPath(name).name == METADATA]
        found = self._listed(files, listed) if listed else self._beside(files)
        if not found:
            raise InputError(self.nothing(files, "pictures"))
        return found

    @property
    def has_captions(self) -> bool:
        key = self.config.caption_column
        return any(e.place.txt or e.place.json or key in (e.place.fields or ()) for e in self.entries)

    def read(self, entries: Sequence[Entry]) -> Iterator[Raw]:
        for begin in range(0, len(entries), AT_ONCE):
            some = entries[begin : begin + AT_ONCE]
            wanted: dict[str, None] = {}
            for place in (entry.place for entry in some):
                whole = place.picture if place.size <= MAX_BYTES else None
                wanted |= dict.fromkeys(name for name in (whole, place.txt, place.json) if name)
            data = self.root.read_many(list(wanted))
            if gone := [name for name in wanted if name not in data]:
                raise self.changed(gone[0])
            for place in (entry.place for entry in some):
                txt, text = data.get(place.txt or ""), data.get(place.json or "")
                words = self.text_of_fields(place.fields) if place.fields is not None else self.text_of_files(txt, text)
                if place.picture is None:
                    yield Raw(None, words, "missing", f"{METADATA} names it, but there is no such file")
                elif place.size > MAX_BYTES:
                    yield Raw(None, words, "too_large", f"{place.size} bytes")
                else:
                    yield Raw(data[place.picture], words)

    def _beside(self, files: dict[str, FoundFile]) -> list[Entry]:
        entries = []
        for name, found in files.items():
            if not Path(name).suffix or not is_picture_name(Path(name)):
                continue
            stem = name[: -len(Path(name).suffix)]
            txt, json = (
                f"{stem}{end}" if self.given and f"{stem}{end}" in files else None for end in (".txt", ".json")
            )
            beside = [files[other] for other in (txt, json) if other]
            entries.append(_entry(name, _Place(name, found.size, txt, json), [found, *beside]))
        return entries

    def _listed(self, files: dict[str, FoundFile], listed: Sequence[str]) -> list[Entry]:
        entries: dict[str, Entry] = {}
        for metadata, data in zip(listed, self.root.read_many(list(listed)).values(), strict=True):
            folder = metadata[: -len(METADATA)]
            for number, line in enumerate(data.splitlines(), 1):
                if not line.strip():
                    continue
                fields = self._line(line, f"{metadata}, line {number}")
                name = folder + fields["file_name"]
                found = files.get(name)
                place = _Place(None if found is None else name, found.size if found else 0, fields=fields)
                if name in entries:
                    raise InputError(
                        f"pictures.url: {metadata!r}, line {number} → names {name!r} again; remove the line"
                    )
                entries[name] = _entry(name, place, [found] if found else [], bytes_digest(line))
        return list(entries.values())

    def _line(self, line: bytes, where: str) -> dict[str, Any]:
        try:
            fields = parse_json(line)
        except ValueError:
            fields = None
        if not isinstance(fields, dict) or not isinstance(fields.get("file_name"), str):
            raise InputError(f"pictures.url: {where} → is no JSON object with file_name; correct it")
        name = fields["file_name"]
        if leads_outside(name):
            raise InputError(f"pictures.url: {where} → file_name {name[:80]!r} leads outside of its folder; correct it")
        return fields if self.given else {"file_name": name}


def _entry(name: str, place: _Place, found: Sequence[FoundFile], more: str = "") -> Entry:
    settled = bool(found) and all(file.settled for file in found)
    return Entry(name, " ".join([*(file.version for file in found), more]) if settled else "", place)
