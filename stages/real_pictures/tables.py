"""Pictures in a column of Parquet files, as `datasets` and our own export write them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bootpig.stages.engine.contract import InputError
from bootpig.stages.real_pictures.source import MAX_BYTES, Entry, Raw, Source
from bootpig.storage.outside import FoundFile

ROWS = 32
"""Rows that are held in memory."""


class _Place(NamedTuple):
    file: str
    row: int
    """In the file."""


class TableSource(Source):
    """The rows of all `.parquet` files in natural order of their paths.

    The column of pictures holds encoded pictures: binary, or structs with a field `bytes`. Paths and URLs in it are not
    followed.
    """

    suffix = ".parquet"

    @cached_property
    def entries(self) -> list[Entry]:
        found = [entry for name, file in self.shards().items() for entry in self._rows(name, file)]
        if not found:
            raise InputError(f"pictures.url: {self.config.url!r} → its tables have no rows; check the path")
        return found

    def read(self, entries: Sequence[Entry]) -> Iterator[Raw]:
        for name, some in groupby(entries, key=lambda entry: entry.place.file):
            rows = [entry.place.row for entry in some]
            with self._open(name) as file:
                yield from self._read_rows(name, file, rows)

    def _read_rows(self, name: str, file: pq.ParquetFile, rows: Sequence[int]) -> Iterator[Raw]:
        """Rows of one file, which are in increasing order."""
        wanted = iter(rows)
        row = next(wanted, None)
        first = 0
        try:
            for group in range(file.metadata.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if row is not None and row < first + count:
                    at = first
                    columns = self._columns(file)
                    for batch in file.iter_batches(ROWS, row_groups=[group], columns=columns, use_threads=False):
                        while row is not None and row < at + len(batch):
                            yield self._raw(batch, row - at)
                            row = next(wanted, None)
                        at += len(batch)
                        if row is None:
                            return
                first += count
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(name, error) from None
        if row is not None:
            raise self.changed(name)

    def _raw(self, batch: pa.RecordBatch, row: int) -> Raw:
        fields = {name: batch.column(name)[row].as_py() for name in batch.schema.names}
        picture = fields.pop(self.config.image_column)
        if isinstance(picture, dict):
            picture = picture.get("bytes")
        words = self.text_of_fields(fields)
        if not picture:
            return Raw(None, words, "missing", "its column is empty")
        if len(picture) > MAX_BYTES:
            return Raw(None, words, "too_large", f"{len(picture)} bytes")
        return Raw(picture, words)

    def _columns(self, file: pq.ParquetFile) -> list[str]:
        config, there = self.config, set(file.schema_arrow.names)
        texts = [config.caption_column, config.object_column] if self.given else []
        return list(dict.fromkeys([config.image_column, *(name for name in texts if name in there)]))

    def _rows(self, name: str, found: FoundFile) -> list[Entry]:
        with self._open(name) as file:
            self._check(name, file.schema_arrow)
            count = file.metadata.num_rows
        version = found.version if found.settled else ""
        return [Entry(f"{name}/{row}", version and f"{version} {row}", _Place(name, row)) for row in range(count)]

    def _check(self, name: str, schema: pa.Schema) -> None:
        """Raises InputError if a column is missing or of the wrong type."""
        wanted = ["image_column", *(["caption_column"] if self.given else [])]
        for setting in wanted:
            column = getattr(self.config, setting)
            if column not in schema.names:
                raise InputError(
                    f"pictures.{setting}: {column!r} → is no column of {name!r}, which has {', '.join(schema.names)}"
                )
        kind = schema.field(self.config.image_column).type
        if pa.types.is_struct(kind) and "bytes" in [kind.field(k).name for k in range(kind.num_fields)]:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise InputError(
                f"pictures.image_column: {self.config.image_column!r} → holds {kind} in {name!r}, not encoded "
                "pictures; name a column of bytes"
            )

    @contextmanager
    def _open(self, name: str) -> Iterator[pq.ParquetFile]:
        with self.root.stream(name) as stream:
            try:
                file = pq.ParquetFile(stream)
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(name, error) from None
            yield file

    def _damaged(self, name: str, error: Exception) -> InputError:
        why = " ".join(str(error).split())[:100]
        return InputError(f"pictures.url: {name!r} → is not a readable Parquet file ({why}); replace it")
