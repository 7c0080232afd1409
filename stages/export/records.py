"""Reads the samples of a finished data set: picture, mask, references and what is known of them, unit by unit."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bootpig.models.pretrained.source import local_path
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.graph import Graph
from bootpig.stages.engine.survey import StageSurvey, graph_of, input_digest
from bootpig.stages.pictures import decode_mask, encode_png
from bootpig.stages.select.stage import SELECTED
from bootpig.storage.errors import CorruptPart
from bootpig.storage.fingerprint import bytes_digest, digest
from bootpig.storage.folders import read_manifest
from bootpig.storage.jsonio import parse_json
from bootpig.storage.parts import ROW_SCHEMA, Marker, Parts
from bootpig.storage.root import Root
from bootpig.storage.shards import read_shard

LAST = "encode"
"""The map stage whose `ok` samples are the data set: those that training reads."""
CUT_OUT = "segment"
"""The stage with `png` and `mask.json`."""
REFERENCES = "augment"
"""The stage with `reference0.png`, …"""
VIEWS = "view"
"""The stage with `view0.png` and `view0.mask.json`, …, if there is one."""

_MEND = "finish it with bootpig run, and export again"

_NAMED = {(stage, name) for stage in ("caption", "pictures") for name in ("caption", "object")} | {("score", "object")}
"""Columns (stage, name) that every record has anyway."""


@dataclass(frozen=True)
class Column:
    """A column of a stage's rows that is exported, such as a score."""

    stage: str
    column: str
    type: pa.DataType

    @property
    def name(self) -> str:
        return f"{self.stage}_{self.column}"


@dataclass(frozen=True)
class Model:
    """A model that made some of the data."""

    stage: str
    role: str
    """The config field, such as `model` or `detector`."""
    source: str
    """Hub id, URL, or the last part of a local path."""
    identity: str
    """Hub commit or digest; empty for a service."""
    location: str
    """The value in the config, with which its licence can be found."""

    @property
    def name(self) -> str:
        return f"{self.stage}_{self.role}"

    @property
    def id(self) -> str:
        return f"{self.source}@{self.identity}" if self.identity else self.source


@dataclass(frozen=True)
class View:
    """The subject of a sample in another scene."""

    image: bytes
    """A PNG in RGB."""
    mask: bytes
    """As that of the sample."""
    scene: str
    identity: float
    """Cosine similarity of the subject with that of the target, both cut out."""


@dataclass(frozen=True)
class Record:
    """One sample of the data set."""

    id: str
    image: bytes
    """The target, a PNG in RGB."""
    mask: bytes
    """The subject's mask, a PNG in greyscale of the target's size: 255 is the subject."""
    references: tuple[bytes, ...]
    """PNGs in RGB."""
    views: tuple[View, ...]
    """Those that the view stage kept."""
    values: dict[str, Any]
    """Everything else by name: caption, object, seed, scenes of views, the stages' columns, the models."""

    @property
    def size(self) -> int:
        """Bytes of its pictures."""
        views = sum(len(view.image) + len(view.mask) for view in self.views)
        return len(self.image) + len(self.mask) + sum(map(len, self.references)) + views


class DataSet:
    """The complete units of a run's map stages.

    Args:
        root: the store.
        config: the run's settings.
        name: the run's id, or the name of the configuration; for messages and the card.
        units: the run's units, in order.
        fingerprints: stage → fingerprint. Map stages that encode does not depend on may be missing. Of the others, only
            that of select is read: its samples are the data set.

    Raises:
        InputError: a unit of a stage that encode depends on is missing or stale, select is not complete, or no sample
            has passed all stages.
    """

    def __init__(
        self, root: Root, config: PipelineConfig, name: str, units: Sequence[int], fingerprints: Mapping[str, str]
    ) -> None:
        self.root = root
        self.config = config
        self.name = name
        self.units = list(units)
        graph = graph_of(config)
        needed = [stage for stage in graph.above([LAST]) if graph.is_map(stage)]
        if missing := [stage for stage in needed if not fingerprints.get(stage)]:
            raise InputError(f"run: {name!r} → has no finished data set: it did not run {missing[0]}; {_MEND}")
        self.parts = {
            stage: Parts(root, stage, fingerprints[stage]) for stage in graph.maps() if fingerprints.get(stage)
        }
        self.markers = {stage: parts.listing(self.units).markers for stage, parts in self.parts.items()}
        for stage in list(self.markers):
            incomplete = [unit for unit in self.units if not self._is_fresh(graph, stage, unit)]
            if incomplete and stage in needed:
                raise InputError(_incomplete(name, stage, incomplete, len(self.units)))
            if incomplete:
                del self.markers[stage], self.parts[stage]
        self.selected = self._selection(graph, fingerprints.get("select"))
        if not self.total:
            raise InputError(f"run: {name!r} → no sample has passed all stages; see bootpig status for the reasons")

    @classmethod
    def of_surveys(cls, root: Root, config: PipelineConfig, surveys: Mapping[str, StageSurvey]) -> DataSet:
        """The data set that a configuration has now, from the surveys of its map stages and of select. Raises the same
        errors."""
        for name in graph_of(config).above([LAST]):
            left = [unit for unit, state in surveys[name].units.items() if state != "complete"]
            if left:
                raise InputError(_incomplete(config.name, name, left, len(surveys[name].units)))
        fingerprints = {name: survey.fingerprint for name, survey in surveys.items()}
        return cls(root, config, config.name, config.unit_numbers(), fingerprints)

    def _selection(self, graph: Graph, fingerprint: str | None) -> frozenset[str] | None:
        """The samples that select has chosen. None without select: all of them."""
        if "select" not in graph.stages:
            return None
        result = read_manifest(self.root, f"select/{fingerprint}/result") if fingerprint else None
        if result is None:
            raise InputError(f"run: {self.name!r} → has no finished data set: it did not run select; {_MEND}")
        data = self.root.read(f"{result.path}/{SELECTED}")
        if bytes_digest(data) != result.files[SELECTED]["sha256"]:
            raise CorruptPart(f"{result.path}/{SELECTED} does not match its checksum; run bootpig verify")
        return frozenset(parse_json(data))

    def _is_fresh(self, graph: Graph, stage: str, unit: int) -> bool:
        """Whether a unit is there, and made from what the stages above hold today."""
        if unit not in self.markers[stage]:
            return False
        above = {name: self.markers[name].get(unit) for name in graph.upstream[stage] if name in self.markers}
        read = {name: marker for name, marker in above.items() if marker is not None}
        return not above or (
            len(read) == len(graph.upstream[stage]) and self.markers[stage][unit].input == input_digest(read)
        )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What determines the exported samples."""
        stages = {
            stage: [self.parts[stage].folder, digest([[unit, markers[unit].digest] for unit in self.units])]
            for stage, markers in self.markers.items()
        }
        chosen = {} if self.selected is None else {"selected": digest(sorted(self.selected))}
        return {"stages": stages, "units": len(self.units), **chosen}

    @cached_property
    def total(self) -> int:
        """The number of samples."""
        return sum(self.ok(unit) for unit in self.units)

    def ok(self, unit: int) -> int:
        """The number of samples of a unit."""
        if self.selected is not None:
            return len(self.ids(unit))
        counts = self.markers[LAST][unit].counts
        return sum(count for (status, _), count in counts.items() if status == "ok")

    def ids(self, unit: int) -> list[str]:
        """The ids of a unit's samples, in order."""
        rows = self.markers[LAST][unit].read(["id", "status"])
        ids = [row["id"] for row in rows if row["status"] == "ok"]
        return ids if self.selected is None else [key for key in ids if key in self.selected]

    @property
    def has_views(self) -> bool:
        """Whether there is a view stage. A sample may have no view nevertheless."""
        return VIEWS in self.markers

    @property
    def views(self) -> int:
        """The most views that a sample can have."""
        return self.config.view.count if self.has_views and self.config.view is not None else 0

    @property
    def references(self) -> int:
        """The references of each sample."""
        return self.config.augment.references if self.config.augment.enabled else 1

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns that the stages' rows have beyond those of all rows."""
        found = []
        for stage, markers in self.markers.items():
            if stage == VIEWS:  # its columns are also about views that were dropped
                continue
            # a unit without samples lacks the optional columns
            unit = max(self.units, key=lambda unit: len(markers[unit].columns()))
            schema = pq.read_schema(pa.BufferReader(markers[unit].data))
            found += [Column(stage, field.name, field.type) for field in schema if field.name not in ROW_SCHEMA.names]
        return tuple(column for column in found if (column.stage, column.column) not in _NAMED)

    @cached_property
    def models(self) -> tuple[Model, ...]:
        """The models that made captions, pictures, masks and references, from each stage's `stage.json`."""
        models = []
        for endpoint in self.config.endpoints:
            stage = endpoint.section.partition(".")[0]
            if stage in self.parts:  # the judge of an evaluation made none of the data
                models.append(Model(stage, "model", endpoint.model, "", endpoint.model))
        for stage, parts in self.parts.items():
            if stage == LAST:  # latents are not exported
                continue
            settings = getattr(self.config, stage)
            for role, identity in sorted(_identities(self.root, parts).items()):
                location = str(getattr(settings, role, None) or role)
                known = str(identity.get("commit") or identity.get("digest") or "")
                is_file = local_path(location) is not None or location.startswith(("/", "./", "../", "~"))
                source = location.rstrip("/").rsplit("/", 1)[-1] if is_file else location
                models.append(Model(stage, role, source, known, location))
        return tuple(models)

    def rows(self, unit: int) -> dict[str, dict[str, dict[str, Any]]]:
        """Stage → sample id → the `ok` row."""
        return {stage: _ok_rows(markers[unit]) for stage, markers in self.markers.items()}

    def records(self, unit: int, begin: int = 0) -> Iterator[Record]:
        """The samples of a unit from position `begin` on, in order.

        Raises:
            CorruptPart: a shard is missing, altered, or lacks a sample or one of its members.
        """
        rows = self.rows(unit)
        models = {model.name: model.id for model in self.models}
        source = VIEWS if self.has_views else CUT_OUT
        cut_outs = read_shard(self.parts[source].payload(unit, self.markers[source][unit]))
        augmented = read_shard(self.parts[REFERENCES].payload(unit, self.markers[REFERENCES][unit]))
        for key in self.ids(unit)[begin:]:
            try:
                cut_out, files = _seek(cut_outs, key), _seek(augmented, key)
                meta = parse_json(files["json"])
                values = {"caption": str(meta["caption"]), "object": str(meta["object"]), "seed": self.config.seed}
                image = cut_out["png"]
                mask = _mask(image, cut_out["mask.json"])
                views = _views(cut_out, rows[VIEWS][key]) if self.has_views else ()
            except (KeyError, OSError, ValueError, StopIteration) as error:
                raise CorruptPart(
                    f"unit {unit}: sample {key} is not readable ({type(error).__name__}: {error}); run bootpig verify"
                ) from None
            for column in self.columns:
                values[column.name] = rows[column.stage].get(key, {}).get(column.column)
            count = sum(name.startswith("reference") for name in files)
            references = tuple(files[f"reference{k}.png"] for k in range(count))
            if self.has_views:
                values |= {"view_scenes": [v.scene for v in views], "view_identity": [v.identity for v in views]}
            yield Record(key, image, mask, references, views, {**values, **models})


def _incomplete(run: str, stage: str, left: Sequence[int], units: int) -> str:
    listed = ", ".join(map(str, left[:8])) + (", …" if len(left) > 8 else "")
    return (
        f"run: {run!r} → has no finished data set: {len(left)} of {units} units of {stage} are not complete "
        f"({listed}); {_MEND}"
    )


def _seek(shard: Iterator[tuple[str, dict[str, bytes]]], key: str) -> dict[str, bytes]:
    """The members of a sample. Samples of all shards are in the same order."""
    return next(members for found, members in shard if found == key)


def _mask(image: bytes, runs: bytes) -> bytes:
    width, height = Image.open(io.BytesIO(image)).size
    return encode_png(Image.fromarray(decode_mask(runs, height, width)).convert("L"))


def _views(files: Mapping[str, bytes], row: Mapping[str, Any]) -> tuple[View, ...]:
    """The views that were kept. The row describes all that were drawn."""
    kept = [number for number, reason in enumerate(row["dropped"]) if not reason]
    views = []
    for place, number in enumerate(kept):
        image = files[f"view{place}.png"]
        mask = _mask(image, files[f"view{place}.mask.json"])
        views.append(View(image, mask, row["scenes"][number], row["identity"][number]))
    return tuple(views)


def _ok_rows(marker: Marker) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in marker.rows if row["status"] == "ok"}


def _identities(root: Root, parts: Parts) -> dict[str, dict[str, Any]]:
    try:
        found = parse_json(root.read(f"{parts.folder}/stage.json"))["models"]
        return {str(role): dict(identity) for role, identity in found.items()}
    except (FileNotFoundError, KeyError, TypeError, ValueError, AttributeError):
        return {}
