"""The formats of an export: webdataset tar files, Parquet files, or folders of pictures with `metadata.jsonl`.

A shard is written to a local file, or for folders picture by picture, and published as a whole by `finish`.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from bootpig.stages.export.records import DataSet, Record
from bootpig.storage.fingerprint import bytes_digest, canonical_json, file_digest
from bootpig.storage.root import Root
from bootpig.storage.shards import end_blocks, member_blocks

ROW_GROUP_BYTES = 2**25
"""Pictures in a row group of a Parquet file. Readers hold a whole group in memory."""

_UPLOADS = 16
"""Pictures of a folder that are written at the same time."""

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How `datasets` stores a picture."""

_DTYPES = {"float": "float32", "double": "float64", "bool": "bool", "halffloat": "float16"}
"""Names that `datasets` has for types of Arrow, where they differ."""


@dataclass(frozen=True)
class Published:
    """The file of a finished shard; for a folder, its `metadata.jsonl`."""

    name: str
    bytes: int
    sha256: str
    size: int
    """Bytes of all files of the shard."""


class Shard(ABC):
    """A shard that is being written.

    Args:
        target: where it will be published.
        name: its name without extension, such as `data/train-00000`.
        scratch: an empty local folder on the disk that holds unfinished shards.
        data: the data set, for its schema.
    """

    extension: ClassVar[str]
    """Of the file whose presence makes the shard complete, added to the shard's name."""

    def __init__(self, target: Root, name: str, scratch: Path, data: DataSet) -> None:
        self.target = target
        self.name = name
        self.samples = 0
        self.size = 0
        """Bytes so far."""
        self.file = scratch / f"{name.replace('/', '-')}.part"

    @abstractmethod
    def add(self, record: Record) -> None:
        """Append a sample."""

    def room(self, record: Record) -> int:
        """Bytes that a sample takes, about."""
        return record.size

    @abstractmethod
    def finish(self) -> Published:
        """Publish the shard.

        Raises:
            StoreError: the target cannot be written.
        """

    @abstractmethod
    def drop(self) -> None:
        """Close its files without publishing it."""

    def _publish(self) -> Published:
        path = f"{self.name}{self.extension}"
        size = self.file.stat().st_size
        facts = Published(path, size, file_digest(self.file), size)
        self.target.upload(path, self.file)
        self.file.unlink()
        return facts


class WebDataset(Shard):
    """`<id>.png`, `.mask.png`, `.reference.0.png`, …, `.json` in a tar file, with fixed order, time and owner."""

    extension = ".tar"

    def __init__(self, target: Root, name: str, scratch: Path, data: DataSet) -> None:
        super().__init__(target, name, scratch, data)
        self._stream = self.file.open("wb")

    @staticmethod
    def _blocks(record: Record) -> Iterator[bytes]:
        members = [("png", record.image), ("mask.png", record.mask)]
        members += [(f"reference.{k}.png", data) for k, data in enumerate(record.references)]
        members += [("json", canonical_json({"id": record.id, **plain(record.values)}))]
        for extension, data in members:
            yield from member_blocks(f"{record.id}.{extension}", data)

    def room(self, record: Record) -> int:
        return sum(map(len, self._blocks(record)))

    def add(self, record: Record) -> None:
        for block in self._blocks(record):
            self.size += self._stream.write(block)
        self.samples += 1

    def finish(self) -> Published:
        with self._stream:
            self._stream.write(end_blocks(self.size))
        return self._publish()

    def drop(self) -> None:
        self._stream.close()


class Parquet(Shard):
    """A row per sample, with pictures as `datasets` stores them and its features in the schema's metadata."""

    extension = ".parquet"

    def __init__(self, target: Root, name: str, scratch: Path, data: DataSet) -> None:
        super().__init__(target, name, scratch, data)
        self.schema = parquet_schema(data)
        small = [field.name for field in self.schema if not (pa.types.is_nested(field.type))]
        self._writer = pq.ParquetWriter(
            self.file, self.schema, compression="zstd", use_dictionary=False, write_statistics=small
        )
        self._rows: list[dict[str, Any]] = []
        self._held = 0

    def add(self, record: Record) -> None:
        references = [{"bytes": data, "path": None} for data in record.references]
        pictures = {
            "image": {"bytes": record.image, "path": f"{record.id}.png"},
            "mask": {"bytes": record.mask, "path": f"{record.id}.mask.png"},
            "references": references,
        }
        self._rows.append({"id": record.id, **pictures, **record.values})
        self.samples += 1
        self.size += record.size
        self._held += record.size
        if self._held >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self.schema))
        self._rows, self._held = [], 0

    def finish(self) -> Published:
        self._flush()
        self._writer.close()
        return self._publish()

    def drop(self) -> None:
        self._writer.close()


class Folder(Shard):
    """Pictures in a folder with `metadata.jsonl`, as `datasets`' imagefolder reads it. The metadata is written last."""

    extension = "/metadata.jsonl"

    def __init__(self, target: Root, name: str, scratch: Path, data: DataSet) -> None:
        super().__init__(target, name, scratch, data)
        self._lines: list[bytes] = []
        self._pool = ThreadPoolExecutor(_UPLOADS)
        self._writes: list[Future[None]] = []

    def add(self, record: Record) -> None:
        names = [f"reference/{record.id}.{k}.png" for k in range(len(record.references))]
        files = {f"image/{record.id}.png": record.image, f"mask/{record.id}.png": record.mask}
        files |= dict(zip(names, record.references, strict=True))
        image, mask = list(files)[:2]
        line = {"file_name": image, "mask_file_name": mask, "references_file_names": names, "id": record.id}
        self._lines.append(json.dumps(line | plain(record.values), ensure_ascii=False, allow_nan=False).encode())
        while len(self._writes) >= 4 * _UPLOADS:  # bounds what is held in memory
            self._writes.pop(0).result()
        self._writes += [self._pool.submit(self.target.write, f"{self.name}/{name}", d) for name, d in files.items()]
        self.samples += 1
        self.size += record.size

    def finish(self) -> Published:
        try:
            for write in self._writes:
                write.result()
        finally:
            self._pool.shutdown(cancel_futures=True)
        data = b"\n".join(self._lines) + b"\n"
        path = f"{self.name}{self.extension}"
        self.target.write(path, data)
        return Published(path, len(data), bytes_digest(data), self.size + len(data))

    def drop(self) -> None:
        self._pool.shutdown(cancel_futures=True)


FORMATS: Mapping[str, type[Shard]] = {"parquet": Parquet, "webdataset": WebDataset, "folder": Folder}


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with null in place of NaN and infinity, which JSON does not have."""
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parquet_schema(data: DataSet) -> pa.Schema:
    """The columns of a Parquet file, with the features of `datasets` in the metadata `huggingface`."""
    picture = {"_type": "Image"}
    fields: list[tuple[str, pa.DataType]] = [("id", pa.string()), ("image", IMAGE), ("mask", IMAGE)]
    fields += [("references", pa.list_(IMAGE)), ("caption", pa.string()), ("object", pa.string())]
    fields += [("seed", pa.int64()), *((column.name, column.type) for column in data.columns)]
    fields += [(model.name, pa.string()) for model in data.models]
    features = {name: _feature(type) for name, type in fields}
    features |= {"image": picture, "mask": picture, "references": {"feature": picture, "_type": "Sequence"}}
    facts = json.dumps({"info": {"features": features}})
    return pa.schema(fields, metadata={"huggingface": facts})


def _feature(type: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(type):
        return {"feature": _feature(type.value_type), "_type": "Sequence"}
    name = str(type)
    return {"dtype": _DTYPES.get(name, name), "_type": "Value"}


def shard_maker(format: str, target: Root, scratch: Path, data: DataSet) -> Callable[[str, int], Shard]:
    """A function that starts shard `number` of a split."""
    kind = FORMATS[format]

    def start(split: str, number: int) -> Shard:
        name = f"data/{split}/{number:05d}" if kind is Folder else f"data/{split}-{number:05d}"
        return kind(target, name, scratch, data)

    return start


def shard_pattern(format: str, split: str) -> str:
    """The glob pattern of a split's shards, as in the card's `data_files`."""
    return f"data/{split}/**" if format == "folder" else f"data/{split}-*{FORMATS[format].extension}"
