"""A pipeline with stages that take milliseconds, to test the engine: same contract and files, but no networks.

Captions, augment and the configs are the real ones; the painter renders the toy world where a network would paint it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from safetensors.numpy import save

import bootpig.stages.engine.loaded
from bootpig.models.toy.world import KINDS, POSITIONS, SCENES, render_scene, with_article
from bootpig.stages.config import PipelineConfig
from bootpig.stages.encode import EncodeConfig
from bootpig.stages.engine.contract import MapStage, Progress, ReduceInput, ReduceStage, Sample
from bootpig.stages.engine.saved import Checkpoints
from bootpig.stages.evaluate.stage import EvaluateConfig
from bootpig.stages.pictures import encode_mask
from bootpig.stages.registry import STAGES
from bootpig.stages.segment.stage import SegmentConfig
from bootpig.stages.synthesize.config import SynthesizeConfig
from bootpig.stages.train.chosen import selected_samples
from bootpig.stages.train.config import TrainConfig
from bootpig.storage.shards import read_shard

MAPS = ("caption", "synthesize", "segment", "augment", "encode")
"""The map stages of `config`."""

FAULTS: dict[str, set[str]] = {}
"""Stage → sample ids that raise when they meet it."""

CALLS: list[tuple[str, int]] = []
"""(stage, unit) of every slice that was processed."""


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class _Double(MapStage):
    reasons: ClassVar = {"blank": "nothing to see"}

    @property
    def slice_size(self) -> int:
        return 4

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        CALLS.append((self.name, samples[0].unit))
        if any(sample.id in FAULTS.get(self.name, ()) for sample in samples):
            raise RuntimeError("the painter dropped its brush")
        return [self.make(sample) for sample in samples]

    def make(self, sample: Sample) -> Sample:
        raise NotImplementedError


class Painter(_Double):
    name, upstream, config_class = "synthesize", ("caption",), SynthesizeConfig
    columns = pa.schema([("brightness", pa.float64())])

    def make(self, sample: Sample) -> Sample:
        kind = sample.meta["object"].split()[-1]
        picture = render_scene(sample.id, kind=kind).image
        return sample.ok(files={"png": _png(picture)}, brightness=float(picture.mean()))


class Cutter(_Double):
    name, upstream, config_class = "segment", ("synthesize",), SegmentConfig

    def make(self, sample: Sample) -> Sample:
        if int(sample.id, 16) % 4 == 0:
            return sample.rejected("blank")
        scene = render_scene(sample.id, kind=sample.meta["object"].split()[-1])
        return sample.ok(files={"png": sample.files["png"], "mask.json": encode_mask(scene.mask)})


class Encoder(_Double):
    name, upstream, config_class = "encode", ("augment",), EncodeConfig

    def make(self, sample: Sample) -> Sample:
        target = np.asarray(Image.open(io.BytesIO(sample.files["target.png"])), np.float16)
        return sample.ok(files={"safetensors": save({"target": target})})


class Counter(ReduceStage):
    """Replaces train: its model is the list of sample ids it has read."""

    name, upstream, config_class, identity_prefix = "train", ("encode", "select"), TrainConfig, "model/"

    def run(self, data: ReduceInput, workdir: Path, checkpoints: Checkpoints, progress: Progress) -> None:
        CALLS.append((self.name, 0))
        chosen = selected_samples(data)
        ids = [key for unit in data.units for key, _ in read_shard(data.shard(unit.unit))]
        ids = [key for key in ids if chosen is None or key in chosen]
        (workdir / "model").mkdir()
        (workdir / "model" / "ids.json").write_text(json.dumps(ids))


class Judge(ReduceStage):
    name, upstream, config_class = "evaluate", ("train",), EvaluateConfig

    def run(self, data: ReduceInput, workdir: Path, checkpoints: Checkpoints, progress: Progress) -> None:
        CALLS.append((self.name, 0))
        assert data.result is not None
        ids = json.loads((data.result / "model" / "ids.json").read_text())
        (workdir / "metrics.json").write_text(json.dumps({"samples": len(ids)}))


@pytest.fixture
def doubles(monkeypatch):
    """Put the doubles in the registry; the real caption and augment stay."""
    for double in (Painter, Cutter, Encoder, Counter, Judge):
        monkeypatch.setitem(STAGES, double.name, double)
        FAULTS.pop(double.name, None)
    CALLS.clear()
    yield
    bootpig.stages.engine.loaded.release()


def config(root: Path, **changes) -> PipelineConfig:
    """A small run: 4 units of 5; `segment__border=0.1` changes one field of a stage."""
    grammar = {
        "objects": [with_article(kind) for kind in KINDS],
        "positions": list(POSITIONS),
        "scenes": list(SCENES),
    }
    values: dict = {
        "name": "story",
        "root": str(root),
        "unit_size": 5,
        "caption": {"count": 20, **grammar},
        "synthesize": {"model": "none"},
        "segment": {"detector": "none", "sam": "none"},
        "encode": {"model": "none"},
        "train": {"model": "none"},
        "evaluate": {"subjects": "none", "clip": "none", "dino": "none"},
    }
    for key, value in changes.items():
        stage, _, field = key.partition("__")
        if field:
            values[stage] = {**values.get(stage, {}), field: value}
        else:
            values[key] = value
    return PipelineConfig.model_validate(values)


def image_bytes(root: Path) -> dict[str, bytes]:
    """Everything in a store that must be equal in equal runs: payloads and markers, by relative path."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("part-*")) if p.is_file()}
