"""Describes an export as Croissant metadata: JSON-LD with its files, their checksums and its columns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from bootpig.stages.export.card import PAPER, is_drawn, split_names
from bootpig.stages.export.facts import Facts
from bootpig.stages.export.formats import parquet_schema, shard_pattern
from bootpig.stages.export.records import DataSet
from bootpig.stages.export.target import ShardFacts

# The vocabulary of https://docs.mlcommons.org/croissant/docs/croissant-spec-1.0.html, as its validator expects it
_CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_ENCODINGS = {"parquet": "application/x-parquet", "webdataset": "application/x-tar", "folder": "application/x-parquet"}


def croissant_json(data: DataSet, facts: Facts, shards: Sequence[ShardFacts], format: str, name: str) -> str:
    """The export as Croissant 1.0 metadata: its files with checksums, and for Parquet its columns."""
    order = sorted(shards, key=lambda shard: shard.name)
    files: list[dict[str, Any]] = [
        {
            "@type": "cr:FileObject",
            "@id": shard.name,
            "name": shard.name,
            "contentUrl": shard.name,
            "contentSize": f"{shard.bytes} B",
            "encodingFormat": _ENCODINGS[format],
            "sha256": shard.sha256,
        }
        for shard in order
    ]
    document: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": re.sub(r"[^A-Za-z0-9_-]+", "-", f"bootpig-{data.config.name}"),
        "description": "Pictures of one subject each with mask, caption and references, for training subject-driven "
        f"generation. Run {name} of the BootPIG pipeline.",
        "url": PAPER,
        "citeAs": PAPER,
        "keywords": ["bootpig", "subject-driven generation", *(["synthetic"] if is_drawn(data) else [])],
        "rai:dataCollection": _made_by(data),
        "distribution": files,
    }
    if facts.licence:
        document["license"] = facts.licence
    if format == "parquet":
        document["distribution"] = [*files, *(_file_set(split) for split in split_names(shards))]
        document["recordSet"] = [_record_set(split, data) for split in split_names(shards)]
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _made_by(data: DataSet) -> str:
    models = "; ".join(f"{model.stage}.{model.role}: {model.id}" for model in data.models)
    return f"Made by the stages {', '.join(data.markers)}. Models: {models or 'none'}."


def _file_set(split: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{split}-files",
        "name": f"{split}-files",
        "encodingFormat": _ENCODINGS["parquet"],
        "includes": shard_pattern("parquet", split),
    }


def _record_set(split: str, data: DataSet) -> dict[str, Any]:
    """The columns that are no lists, with pictures as their bytes."""
    fields = []
    for column in parquet_schema(data):
        if pa.types.is_list(column.type):
            continue
        picture = pa.types.is_struct(column.type)
        source: dict[str, Any] = {"fileSet": {"@id": f"{split}-files"}, "extract": {"column": column.name}}
        if picture:
            source["transform"] = {"jsonPath": "bytes"}
        field = {"@type": "cr:Field", "@id": f"{split}/{column.name}", "name": f"{split}/{column.name}"}
        fields.append({**field, "dataType": "sc:ImageObject" if picture else _data_type(column.type), "source": source})
    return {"@type": "cr:RecordSet", "@id": split, "name": split, "field": fields}


def _data_type(type: pa.DataType) -> str:
    if pa.types.is_integer(type):
        return "sc:Integer"
    if pa.types.is_boolean(type):
        return "sc:Boolean"
    return "sc:Float" if pa.types.is_floating(type) else "sc:Text"
