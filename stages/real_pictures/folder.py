"""Pictures as files in folders, with captions in `.txt` or `.json` files beside them, or in a list of the pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bootpig.stages.engine.contract import InputError
from bootpig.stages.picture_files.reader import is_picture_name
from bootpig.stages.real_pictures.source import MAX_BYTES, Entry, Raw, Source, leads_outside
from bootpig.storage.fingerprint import bytes_digest
from bootpig.storage.jsonio import parse_json
from bootpig.storage.outside import FoundFile

METADATA = ("metadata.jsonl", "metadata.parquet")
"""List the pictures of their folder, as for `datasets`' imagefolder. Our own export writes the second."""

AT_ONCE = 16
"""Files that are fetched together."""


@dataclass(frozen=True)
class _Place:
    picture: str | None
    """None: `listed` names a file that is not there."""
    size: int
    txt: str | None = None
    json: str | None = None
    fields: dict[str, Any] | None = None
    """The line of `metadata.jsonl`, or the row of `metadata.parquet`."""
    listed: str = ""
    """That file."""


class FolderSource(Source):
    """All pictures below a folder in natural order of their paths. If there is any `metadata.jsonl` or `.parquet`, only
    the pictures that are listed in one, in its order."""

    suffix = ""

    @cached_property
    def entries(self) -> list[Entry]:
        files = self.files()
        listed = [name for name in files if PurePosixPath(name).name in METADATA]
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
                    yield Raw(None, words, "missing", f"{place.listed} names it, but there is no such file")
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
            folder = metadata[: metadata.rfind("/") + 1]
            lines = self._rows(metadata, data) if metadata.endswith(".parquet") else _json_lines(data)
            for number, line, fields in lines:
                fields = self._checked(fields, f"{metadata}, line {number}")
                name = folder + fields["file_name"]
                found = files.get(name)
                place = _Place(
                    None if found is None else name, found.size if found else 0, fields=fields, listed=metadata
                )
                if name in entries:
                    raise InputError(
                        f"pictures.url: {metadata!r}, line {number} → names {name!r} again; remove the line"
                    )
                entries[name] = _entry(name, place, [found] if found else [], bytes_digest(line))
        return list(entries.values())

    def _rows(self, metadata: str, data: bytes) -> Iterator[tuple[int, bytes, Any]]:
        """Number, digested bytes and fields of each row of a table."""
        wanted = ["file_name", self.config.caption_column, self.config.object_column]
        try:
            file = pq.ParquetFile(pa.BufferReader(data))
            columns = [name for name in dict.fromkeys(wanted) if name in file.schema_arrow.names]
            rows = file.read(columns, use_threads=False).to_pylist()  # see storage.tables
        except (pa.ArrowException, OSError) as error:
            why = " ".join(str(error).split())[:100]
            raise InputError(
                f"pictures.url: {metadata!r} → is not a readable Parquet file ({why}); replace it"
            ) from None
        for number, row in enumerate(rows, 1):
            yield number, repr(row).encode(errors="replace"), row

    def _checked(self, fields: Any, where: str) -> dict[str, Any]:
        if not isinstance(fields, dict) or not isinstance(fields.get("file_name"), str):
            raise InputError(f"pictures.url: {where} → has no file_name; correct it")
        name = fields["file_name"]
        if leads_outside(name):
            raise InputError(f"pictures.url: {where} → file_name {name[:80]!r} leads outside of its folder; correct it")
        return fields if self.given else {"file_name": name}


def _json_lines(data: bytes) -> Iterator[tuple[int, bytes, Any]]:
    """Number, bytes and value of each line that is not blank; None for one that is no JSON."""
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            try:
                yield number, line, parse_json(line)
            except ValueError:
                yield number, line, None


def _entry(name: str, place: _Place, found: Sequence[FoundFile], more: str = "") -> Entry:
    settled = bool(found) and all(file.settled for file in found)
    return Entry(name, " ".join([*(file.version for file in found), more]) if settled else "", place)
