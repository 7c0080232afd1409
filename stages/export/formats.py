"""The formats of an export: webdataset tar files, Parquet files, or folders of pictures with `metadata.parquet`.

A shard is written to a local file, or for folders picture by picture, and published as a whole by `finish`.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from bootpig.stages.export.records import DataSet, Record
from bootpig.storage.fingerprint import canonical_json, file_digest
from bootpig.storage.root import Root
from bootpig.storage.shards import end_blocks, member_blocks

ROW_GROUP_BYTES = 2**25
"""Pictures in a row group of a Parquet file. Readers hold a whole group in memory."""

_UPLOADS = 16
"""Pictures of a folder that are written at the same time."""

METADATA_TABLE = "metadata.parquet"
"""The file of a folder that lists its pictures."""

FILES_PER_FOLDER = 10_000
"""The hub takes no more."""

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How `datasets` stores a picture."""

VIEW_COLUMNS = (("view_scenes", pa.list_(pa.string())), ("view_identity", pa.list_(pa.float32())))
"""What is known of a sample's views, in their order."""

_DTYPES = {"float": "float32", "double": "float64", "bool": "bool", "halffloat": "float16"}
"""Names that `datasets` has for types of Arrow, where they differ."""


@dataclass(frozen=True)
class Published:
    """The file of a finished shard; for a folder, its `metadata.parquet`."""

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

    def takes(self, record: Record, limit: int) -> bool:
        """Whether the shard has room for a sample.

        Args:
            record: the sample.
            limit: bytes that a shard may have.
        """
        return self.size + self.room(record) <= limit

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
    """`<id>.png`, `.mask.png`, `.reference.0.png`, …, `.view.0.png`, `.view.0.mask.png`, …, `.json` in a tar file, with
    fixed order, time and owner."""

    extension = ".tar"

    def __init__(self, target: Root, name: str, scratch: Path, data: DataSet) -> None:
        super().__init__(target, name, scratch, data)
        self._stream = self.file.open("wb")

    @staticmethod
    def _blocks(record: Record) -> Iterator[bytes]:
        members = [("png", record.image), ("mask.png", record.mask)]
        members += [(f"reference.{k}.png", data) for k, data in enumerate(record.references)]
        for k, view in enumerate(record.views):
            members += [(f"view.{k}.png", view.image), (f"view.{k}.mask.png", view.mask)]
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
        self._has_views = data.has_views
        self.schema = parquet_schema(data)
        small = [field.name for field in self.schema if not (pa.types.is_nested(field.type))]
        self._writer = pq.ParquetWriter(
            self.file, self.schema, compression="zstd", use_dictionary=False, write_statistics=small
        )
        self._rows: list[dict[str, Any]] = []
        self._held = 0

    def add(self, record: Record) -> None:
        references = [{"bytes": data, "path": None} for data in record.references]
        pictures: dict[str, Any] = {
            "image": {"bytes": record.image, "path": f"{record.id}.png"},
            "mask": {"bytes": record.mask, "path": f"{record.id}.mask.png"},
            "references": references,
        }
        if self._has_views:
            pictures["views"] = [{"bytes": view.image, "path": None} for view in record.views]
            pictures["view_masks"] = [{"bytes": view.mask, "path": None} for view in record.views]
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
    """Pictures in a folder with `metadata.parquet`, as `datasets`' imagefolder reads it. The metadata is written last.

    In `metadata.jsonl`, a column that has no value in some split would have no type, which `datasets` refuses.
    """

    extension = f"/{METADATA_TABLE}"

    def __init__(self, target: Root, name: str, scratch: Path, data: DataSet) -> None:
        super().__init__(target, name, scratch, data)
        self._has_views = data.has_views
        self._schema = folder_schema(data)
        self._rows: list[dict[str, Any]] = []
        self._most = 0
        """Files in the fullest of its folders."""
        self._pool = ThreadPoolExecutor(_UPLOADS)
        self._writes: list[Future[None]] = []

    def takes(self, record: Record, limit: int) -> bool:
        return super().takes(record, limit) and self._most + _fullest(record) <= FILES_PER_FOLDER

    def add(self, record: Record) -> None:
        names = [f"reference/{record.id}.{k}.png" for k in range(len(record.references))]
        files = {f"image/{record.id}.png": record.image, f"mask/{record.id}.png": record.mask}
        files |= dict(zip(names, record.references, strict=True))
        image, mask = list(files)[:2]
        row = {"file_name": image, "mask_file_name": mask, "references_file_names": names, "id": record.id}
        if self._has_views:
            views = {f"view/{record.id}.{k}.png": view.image for k, view in enumerate(record.views)}
            masks = {f"view_mask/{record.id}.{k}.png": view.mask for k, view in enumerate(record.views)}
            files |= views | masks
            row |= {"views_file_names": list(views), "view_masks_file_names": list(masks)}
        self._rows.append(row | record.values)
        while len(self._writes) >= 4 * _UPLOADS:  # bounds what is held in memory
            self._writes.pop(0).result()
        self._writes += [self._pool.submit(self.target.write, f"{self.name}/{name}", d) for name, d in files.items()]
        self._most += _fullest(record)
        self.samples += 1
        self.size += record.size

    def finish(self) -> Published:
        try:
            for write in self._writes:
                write.result()
        finally:
            self._pool.shutdown(cancel_futures=True)
        pq.write_table(pa.Table.from_pylist(self._rows, schema=self._schema), self.file, compression="zstd")
        table = self._publish()
        return replace(table, size=self.size + table.size)

    def drop(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _fullest(record: Record) -> int:
    return max(1, len(record.references), len(record.views))


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
    fields: list[tuple[str, pa.DataType]] = [("id", pa.string()), ("image", IMAGE), ("mask", IMAGE)]
    fields += [("references", pa.list_(IMAGE))]
    if data.has_views:
        fields += [("views", pa.list_(IMAGE)), ("view_masks", pa.list_(IMAGE)), *VIEW_COLUMNS]
    fields += [("caption", pa.string()), ("object", pa.string()), ("seed", pa.int64())]
    fields += [*((column.name, column.type) for column in data.columns)]
    fields += [(model.name, pa.string()) for model in data.models]
    features = {name: _feature(type) for name, type in fields}
    facts = json.dumps({"info": {"features": features}})
    return pa.schema(fields, metadata={"huggingface": facts})


def folder_schema(data: DataSet) -> pa.Schema:
    """The columns of a folder's `metadata.parquet`: those of a Parquet file, with paths in place of pictures."""
    fields = []
    for field in parquet_schema(data):
        if field.type == IMAGE:
            fields.append(("file_name" if field.name == "image" else f"{field.name}_file_name", pa.string()))
        elif _holds_pictures(field.type):
            fields.append((f"{field.name}_file_names", pa.list_(pa.string())))
        else:
            fields.append((field.name, field.type))
    return pa.schema(fields)


def _feature(type: pa.DataType) -> dict[str, Any]:
    if type == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(type):
        return {"feature": _feature(type.value_type), "_type": "Sequence"}
    name = str(type)
    return {"dtype": _DTYPES.get(name, name), "_type": "Value"}


def webdataset_features(data: DataSet) -> list[dict[str, Any]]:
    """The members of a sample in a tar file as features of `datasets`, in the form of a card's header."""
    pictures = ["png", "mask.png", *(f"reference.{k}.png" for k in range(data.references))]
    pictures += [name for k in range(data.views) for name in (f"view.{k}.png", f"view.{k}.mask.png")]
    fields = [_yaml_feature(field) for field in parquet_schema(data) if not _holds_pictures(field.type)]
    features: list[dict[str, Any]] = [{"name": name, "dtype": "image"} for name in pictures]
    features += [{"name": "json", "struct": fields}]
    return features + [{"name": name, "dtype": "string"} for name in ("__key__", "__url__")]


def _holds_pictures(type: pa.DataType) -> bool:
    return bool(type == IMAGE or (pa.types.is_list(type) and type.value_type == IMAGE))


def _yaml_feature(field: pa.Field) -> dict[str, Any]:
    if pa.types.is_list(field.type):
        return {"name": field.name, "list": _feature(field.type.value_type)["dtype"]}
    return {"name": field.name, "dtype": _feature(field.type)["dtype"]}


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
