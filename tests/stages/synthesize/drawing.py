"""Runs of the synthesize stage through an images endpoint, over captions of the toy world."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.engine import Engine, UnitReport
from bootpig.stages.engine.shardio import unpack
from bootpig.storage.parts import Parts
from tests.stages.caption.llm.runs import VARIABLE
from tests.stages.doubles import config as small_config


def configured(root: Path, url: str, *, units: int = 2, openai: dict[str, Any] | None = None, **changes: Any):
    """Units of four pictures of 64 by 48 pixels."""
    endpoint = {"base_url": url, "model": "canvas-1", "api_key_env": VARIABLE, "concurrency": 2, "max_retries": 1}
    drawn = {"source": "openai", "width": 64, "height": 48, "openai": endpoint | (openai or {}), **changes}
    return small_config(root, unit_size=4, synthesize=drawn, caption__count=4 * units)


def run(config: PipelineConfig, **options: bool) -> list[UnitReport]:
    engine = Engine(config)
    for unit in engine.units():
        engine.run_unit("caption", unit)
    return [engine.run_unit("synthesize", unit, **options) for unit in engine.units()]


def rows(config: PipelineConfig) -> list[dict[str, Any]]:
    markers = Engine(config).survey("synthesize").markers
    return [row for unit in sorted(markers) for row in markers[unit].rows]


def pictures(config: PipelineConfig) -> dict[str, np.ndarray]:
    """Sample id → picture, HWC uint8."""
    engine = Engine(config)
    survey = engine.survey("synthesize")
    parts = Parts(engine.root, "synthesize", survey.fingerprint)
    return {
        sample.id: np.asarray(Image.open(io.BytesIO(sample.files["png"])))
        for unit, marker in survey.markers.items()
        for sample in unpack(marker.rows, parts.payload(unit, marker))
    }


def messages(root: Path) -> list[dict[str, str]]:
    """The messages of the last log line of each unit."""
    logs = sorted(root.glob("synthesize/*/log-*.jsonl"))
    return [entry for path in logs for entry in json.loads(path.read_text().splitlines()[-1]).get("messages", ())]
