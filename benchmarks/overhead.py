"""Measures the overhead of a stage over a plain loop of the same model calls: IO, rows, PNG, shards, commits."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import cast

from bootpig.flows.loading import load_config
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import MapStage, Sample
from bootpig.stages.engine.engine import Engine
from bootpig.stages.engine.loaded import loaded
from bootpig.stages.engine.survey import make_stage
from bootpig.stages.pictures import decode_png
from bootpig.stages.segment.stage import Segment
from bootpig.stages.synthesize.stage import Synthesize
from bootpig.storage.parts import Parts

UNITS, UNIT_SIZE = 6, 100
TURNS = {"synthesize": 2, "segment": 6}
"""How often each unit is made: one run of a half-second unit is too short to measure a percent."""


def _config(root: str) -> PipelineConfig:
    sizes = [f"root={root}", f"caption.count={UNITS * UNIT_SIZE}", f"unit_size={UNIT_SIZE}"]
    return load_config("configs/toy.yaml", sizes)


def _samples(engine: Engine, stage: str, unit: int) -> list[Sample]:
    from bootpig.stages.engine.shardio import unpack

    survey = engine.survey(stage)
    marker = survey.markers[unit]
    return unpack(marker.rows, Parts(engine.root, stage, survey.fingerprint).payload(unit, marker))


def _paint(stage: MapStage, samples: Sequence[Sample]) -> None:
    """Only the calls of the pipeline, with the stage's own arguments."""
    import torch

    from bootpig.stages.engine.contract import sample_seed

    painter = cast(Synthesize, stage)
    for begin in range(0, len(samples), painter.slice_size):
        batch = samples[begin : begin + painter.slice_size]
        seeds = [sample_seed(painter.seed, painter.name, sample.id) for sample in batch]
        painter._painter.pipeline(
            [sample.meta["caption"] for sample in batch],
            height=painter.config.height,
            width=painter.config.width,
            num_inference_steps=painter.config.steps,
            guidance_scale=painter.config.guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="np",
        )


def _cut(stage: MapStage, samples: Sequence[Sample]) -> None:
    """Only the calls of the detector and SAM."""
    cutter = cast(Segment, stage)
    for begin in range(0, len(samples), cutter.slice_size):
        batch = samples[begin : begin + cutter.slice_size]
        images = [decode_png(sample.files["png"]).convert("RGB") for sample in batch]
        queries = [cutter.config.query.replace("{object}", sample.meta["object"]) for sample in batch]
        found = cutter._detector.detect(images, queries, cutter.config.detection_threshold)
        kept = [i for i, d in enumerate(found) if d is not None and d.score >= cutter.config.min_score]
        cutter._segmenter.segment([images[i] for i in kept], [found[i].box for i in kept])  # type: ignore[union-attr]


def _measure(name: str, above: str, raw: Callable[[MapStage, Sequence[Sample]], None]) -> dict[str, float | str]:
    """Run units in a plain loop and through the engine, in alternating order, so that drift affects both equally."""
    with tempfile.TemporaryDirectory() as root:
        engine = Engine(_config(root))
        names = ["caption", "synthesize"][: ["caption", "synthesize"].index(above) + 1]
        for unit in engine.units():
            for before in names:
                engine.run_unit(before, unit)
        stage = cast(MapStage, make_stage(engine.config, name))
        inputs = {unit: _samples(engine, above, unit) for unit in engine.units()}
        seconds: dict[str, list[float]] = {"raw": [], "stage": []}

        def run_raw(unit: int) -> None:
            with loaded(stage, engine.config) as ready:
                raw(cast(MapStage, ready), inputs[unit])

        def run_stage(unit: int) -> None:
            assert engine.run_unit(name, unit, force=True).state == "done"

        run_raw(0)  # load and warm up
        order = [("raw", run_raw), ("stage", run_stage)]
        for unit in list(engine.units()) * TURNS[name]:
            for label, work in order:
                started = time.perf_counter()
                work(unit)
                seconds[label].append(time.perf_counter() - started)
            order.reverse()
    ratios = [b / a for a, b in zip(seconds["raw"], seconds["stage"], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 4),
        "value": round(statistics.median(seconds["stage"]), 4),
        "baseline": round(statistics.median(seconds["raw"]), 4),
        "unit": f"seconds for {UNIT_SIZE} samples; the stage over a raw loop of the same model calls",
    }


def synthesize() -> dict[str, float | str]:
    return _measure("synthesize", "caption", _paint)


def segment() -> dict[str, float | str]:
    return _measure("segment", "synthesize", _cut)
