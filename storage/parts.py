"""Reads and writes parts. A part is the result of one unit: an immutable payload and the marker that names it.

The payload is written first, under a name that contains its hash, then the marker in one atomic write. A reader sees a
complete part or none. If two writers commit the same unit, both payloads are complete and the last marker wins.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bootpig.storage.errors import CorruptPart
from bootpig.storage.fingerprint import bytes_digest, digest
from bootpig.storage.jsonio import parse_json
from bootpig.storage.root import Root
from bootpig.storage.secrets import mask
from bootpig.storage.tables import read_table

ROW_SCHEMA = pa.schema([("id", pa.string()), ("unit", pa.int64()), ("status", pa.string()), ("reason", pa.string())])
"""The first columns of every row."""

_METADATA = b"bootpig"
_PAYLOAD = re.compile(r"part-\d{5,}-[0-9a-f]{8}\.tar")
"""A payload's file name. Any other name in a marker could point outside its folder."""
_SEAL = b'"seal": "'
_BLANK = "0" * 64


def _sealed(data: bytes) -> bytes:
    """The marker with its seal filled in: the sha256 hex of all its other bytes, stored in its own metadata.

    Without it, a flipped bit on disk could be read as a different row. In a Parquet file the metadata comes last, so
    text in a caption cannot be mistaken for the seal.
    """
    begin = data.rfind(_SEAL) + len(_SEAL)
    head, tail = data[:begin], data[begin + len(_BLANK) :]
    return head + bytes_digest(head + _BLANK.encode() + tail).encode() + tail


@dataclass(frozen=True)
class Marker:
    """The marker of one unit."""

    data: bytes
    input: str
    """Digest of the upstream markers; for a source stage, of what the unit was made from."""
    payload: str
    """File name of the payload, in the same folder as the marker."""
    payload_sha256: str
    payload_size: int
    """Bytes."""
    counts: Counter[tuple[str, str]]
    """Number of rows by (status, reason), available without reading the rows."""
    digest: str
    """Identifies rows and payload together, see `content_digest`. Markers written before it existed do not contain
    one; theirs is the sha256 of the marker's bytes, so that downstream units stay valid."""

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return self.read()

    def columns(self) -> list[str]:
        """The names of the stage's own columns."""
        names: list[str] = pq.read_schema(pa.BufferReader(self.data)).names
        return names[len(ROW_SCHEMA) :]

    def read(self, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows, with all columns or only the given ones."""
        rows: list[dict[str, Any]] = read_table(self.data, columns).to_pylist()
        return rows

    def content(self) -> str:
        """The marker's `content_digest`, computed from its rows."""
        schema = pq.read_schema(pa.BufferReader(self.data)).remove_metadata()
        return content_digest(self.rows, schema, self.payload_sha256)

    @classmethod
    def parse(cls, data: bytes) -> Marker:
        """Parse a marker file. Raises CorruptPart."""
        if _sealed(data) != data:
            raise CorruptPart("marker: its checksum does not match")
        try:
            facts = parse_json(pq.read_schema(pa.BufferReader(data)).metadata[_METADATA])
            counts = Counter({(str(status), str(reason)): int(count) for status, reason, count in facts["counts"]})
            if not _PAYLOAD.fullmatch(facts["payload"]):
                raise ValueError(f"{facts['payload']!r} is not a payload's name")
            digest = facts.get("digest") or bytes_digest(data)
            return cls(data, facts["input"], facts["payload"], facts["sha256"], int(facts["size"]), counts, digest)
        except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
            raise CorruptPart(f"marker: not readable ({error})") from None


def content_digest(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, payload_sha256: str) -> str:
    """sha256 over columns, rows and the payload's digest in canonical form.

    Parquet bytes are not hashed, because they name the library that wrote them: the same unit made again with another
    version of it has the same digest. Neither is `input`: if a unit comes out the same, downstream units stay valid.

    Args:
        rows: the unit's rows in order, with the values that Parquet returns (a float32 column holds float32 values).
        schema: schema of the rows.
        payload_sha256: hex digest of the payload.
    """
    columns = [[field.name, str(field.type)] for field in schema]
    values = [[_canonical(row[name]) for name, _ in columns] for row in rows]
    return digest({"columns": columns, "rows": values, "payload": payload_sha256})


def _canonical(value: Any) -> Any:
    """`value` in a form that JSON can encode. Floats become exact hexadecimal strings, or "nan" and "inf"."""
    if isinstance(value, float):
        return {"float": value.hex() if math.isfinite(value) else str(value)}
    return [_canonical(entry) for entry in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Listing:
    """What is in a stage's folder."""

    markers: dict[int, Marker]
    """Markers of the complete units."""
    broken: set[int]
    """Units whose marker cannot be read, or whose payload is missing or has the wrong size."""
    failures: dict[int, str]
    """Units whose last attempt was not committed, with the error message."""


class Parts:
    """The parts of one stage under one fingerprint: `<root>/<stage>/<fingerprint>/part-…`."""

    def __init__(self, root: Root, stage: str, fingerprint: str) -> None:
        self.root = root
        self.stage = stage
        self.folder = f"{stage}/{fingerprint}"

    def describe(self, identity: Mapping[str, Any]) -> None:
        """Write `stage.json`, the fingerprint's input, once."""
        path = f"{self.folder}/stage.json"
        if not self.root.exists(path):
            self.root.write(path, json.dumps(identity, indent=2, sort_keys=True, ensure_ascii=False).encode())

    def _marker_path(self, unit: int) -> str:
        return f"{self.folder}/part-{unit:05d}.parquet"

    def listing(self, units: Iterable[int], known: Mapping[int, Marker] | None = None) -> Listing:
        """What is stored for `units`. Takes one listing, then one batched read of all markers and error messages.

        A marker counts only if its payload exists with the right size.

        Args:
            known: markers from an earlier listing. A marker is not read again if its unit has only one payload. (A unit
                that was made again with a different result has two, until gc removes the older one.)
        """
        names = self.root.names(self.folder)
        payloads = Counter(int(name.split("-")[1]) for name in names if _PAYLOAD.fullmatch(name))
        there = {unit for unit in units if f"part-{unit:05d}.parquet" in names}
        kept = {
            unit: marker
            for unit, marker in (known or {}).items()
            if unit in there and payloads[unit] == 1 and names.get(marker.payload) == marker.payload_size
        }
        wanted = {self._marker_path(unit): unit for unit in sorted(there - kept.keys())}
        failures = [f"{self.folder}/{name}" for name in names if name.startswith("failed-")]
        found = Listing(kept, set(), {})
        for path, data in self.root.read_many([*wanted, *failures]).items():
            if path not in wanted:
                found.failures[int(path.rsplit("-", 1)[1].split(".")[0])] = data.decode(errors="replace")
                continue
            try:
                marker = Marker.parse(data)
            except CorruptPart:
                found.broken.add(wanted[path])
                continue
            if names.get(marker.payload) == marker.payload_size:
                found.markers[wanted[path]] = marker
            else:
                found.broken.add(wanted[path])
        return found

    def whole(self, unit: int) -> Marker | None:
        """The marker of one unit if it can be read and its payload has the right size. Does not list the folder."""
        try:
            marker = self.marker(unit)
        except CorruptPart:
            return None
        if marker is None or self.root.size(f"{self.folder}/{marker.payload}") != marker.payload_size:
            return None
        return marker

    def marker(self, unit: int) -> Marker | None:
        """The marker of one unit, or None. Raises CorruptPart if it cannot be read."""
        try:
            return Marker.parse(self.root.read(self._marker_path(unit)))
        except FileNotFoundError:
            return None

    def payload(self, unit: int, marker: Marker) -> bytes:
        """The payload, with its checksum verified.

        Raises:
            CorruptPart: it is missing or altered. The message names stage, unit and file.
        """
        path = f"{self.folder}/{marker.payload}"
        try:
            data = self.root.read(path)
        except FileNotFoundError:
            raise CorruptPart(f"{self.stage} unit {unit}: {path} is missing; run again to rebuild it") from None
        if bytes_digest(data) != marker.payload_sha256:
            raise CorruptPart(f"{self.stage} unit {unit}: {path} does not match its checksum; run again to rebuild it")
        return data

    def commit(
        self, unit: int, rows: Sequence[Mapping[str, Any]], columns: pa.Schema, payload: bytes, input: str
    ) -> Marker:
        """Publish a unit: first the payload, then the marker.

        Raises:
            StoreFull, StoreError: the store cannot be written; the unit stays as it was.
        """
        sha256 = bytes_digest(payload)
        name = f"part-{unit:05d}-{sha256[:8]}.tar"
        counts = Counter((row["status"], row["reason"]) for row in rows)
        schema = pa.schema([*ROW_SCHEMA, *columns])
        table = pa.Table.from_pylist(list(rows), schema=schema)  # missing columns become null
        content = content_digest(table.to_pylist(), schema, sha256)
        if (same := self._same(unit, content, input)) is not None:
            self.root.remove(f"{self.folder}/failed-{unit:05d}.txt")
            return same
        facts = {
            "counts": [[*kind, count] for kind, count in sorted(counts.items())],
            "digest": content,
            "input": input,
            "payload": name,
            "seal": _BLANK,
            "sha256": sha256,
            "size": len(payload),
        }
        described = schema.with_metadata({_METADATA: json.dumps(facts, sort_keys=True).encode()})
        buffer = io.BytesIO()
        pq.write_table(table.cast(described), buffer, compression="zstd", store_schema=True)
        marker = Marker(_sealed(buffer.getvalue()), input, name, sha256, len(payload), counts, content)
        self.root.write(f"{self.folder}/{name}", payload)
        self.root.write(self._marker_path(unit), marker.data)
        self.root.remove(f"{self.folder}/failed-{unit:05d}.txt")
        return marker

    def _same(self, unit: int, content: str, input: str) -> Marker | None:
        """The existing marker, if a new one would have the same content. A unit of an earlier release that comes out
        the same thus keeps its digest, and downstream units stay valid."""
        before = self.whole(unit)
        if before is None or before.input != input or before.content() != content:
            return None
        try:
            self.payload(unit, before)
        except CorruptPart:
            return None
        return before

    def replaced(self) -> dict[str, int]:
        """Payloads that no marker names any more because their unit was made again: file name → size in bytes.

        Payloads of units without a complete marker are left out: a writer may be about to write the marker.
        """
        names = self.root.names(self.folder)
        payloads = {name: int(name.split("-")[1]) for name in names if _PAYLOAD.fullmatch(name)}
        markers = self.listing(set(payloads.values())).markers
        return {
            name: names[name] for name, unit in payloads.items() if unit in markers and markers[unit].payload != name
        }

    def discard_payload(self, unit: int) -> None:
        """Remove a damaged payload, so that its unit becomes stale. A unit with a damaged marker already is."""
        try:
            marker = self.marker(unit)
        except CorruptPart:
            return
        if marker is not None:
            self.root.remove(f"{self.folder}/{marker.payload}")

    def note_failure(self, unit: int, message: str) -> None:
        """Record why the last attempt at a unit was not committed."""
        self.root.write(f"{self.folder}/failed-{unit:05d}.txt", mask(message).encode())

    def log(self, unit: int, record: Mapping[str, Any]) -> None:
        """Add a line to the unit's log: times, host, messages; everything that is not part of the unit's identity."""
        line = mask(json.dumps(record, ensure_ascii=False)).encode() + b"\n"
        self.root.append(f"{self.folder}/log-{unit:05d}.jsonl", line)
