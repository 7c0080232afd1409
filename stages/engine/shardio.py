"""Converts samples to shard members and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bootpig.stages.engine.contract import Sample
from bootpig.storage.errors import CorruptPart
from bootpig.storage.fingerprint import canonical_json
from bootpig.storage.jsonio import parse_json
from bootpig.storage.parts import ROW_SCHEMA
from bootpig.storage.shards import read_shard, write_shard


def pack(samples: Sequence[Sample]) -> bytes:
    """Write the `ok` samples to a shard, in order: `<id>.json`, then the other members sorted by extension."""

    def members() -> Iterator[tuple[str, bytes]]:
        for sample in samples:
            if sample.status == "ok":
                yield f"{sample.id}.json", canonical_json(sample.meta)
                for extension, data in sorted(sample.files.items()):
                    yield f"{sample.id}.{extension}", data

    return write_shard(members())


UNPACKED = ("id", "unit", "status")
"""The columns that `unpack` needs."""


def unpack(rows: Sequence[Mapping[str, Any]], payload: bytes) -> list[Sample]:
    """Read the `ok` samples of a part, in row order, with those of the stage's columns that the rows have.

    Raises:
        CorruptPart: a sample is missing in the shard, or its JSON is not an object.
    """
    members = dict(read_shard(payload))
    samples = []
    for row in rows:
        if row["status"] == "ok":
            try:
                files = dict(members[row["id"]])
                meta = parse_json(files.pop("json"))
            except (KeyError, ValueError) as error:
                raise CorruptPart(f"shard: sample {row['id']} is not readable ({error})") from None
            if not isinstance(meta, dict):
                raise CorruptPart(f"shard: the JSON of sample {row['id']} is not an object")
            columns = {name: value for name, value in row.items() if name not in ROW_SCHEMA.names}
            samples.append(Sample(row["id"], row["unit"], meta, files, columns))
    return samples
