"""Sets of pictures of the toy world, and runs of the pictures stage over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from bootpig.models.toy.world import render_scene
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.engine import Engine, UnitReport
from tests.stages.doubles import config as small_config


def write_pictures(folder: Path, numbers: range, side: int = 64) -> None:
    """Pictures `000.png`, … with captions beside them; numbers name pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        scene = render_scene(f"real/{number}")
        Image.fromarray(scene.image).resize((side, side)).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"{scene.caption}\n")


def configured(root: Path, url: Path | str, count: int, unit_size: int = 4, **pictures: Any) -> PipelineConfig:
    section = {"url": str(url), "count": count, "size": 64, **pictures}
    return small_config(root, unit_size=unit_size, caption=None, synthesize=None, pictures=section)


def run(config: PipelineConfig, **options: bool) -> list[UnitReport]:
    engine = Engine(config)
    return [engine.run_unit("pictures", unit, **options) for unit in engine.units()]


def rows(config: PipelineConfig) -> list[dict[str, Any]]:
    markers = Engine(config).survey("pictures").markers
    return [row for unit in sorted(markers) for row in markers[unit].rows]


def states(config: PipelineConfig) -> dict[int, str]:
    return dict(Engine(config).survey("pictures").units)


def messages(root: Path) -> dict[str, str]:
    """Sample id → message in the logs."""
    logs = [json.loads(path.read_text().splitlines()[-1]) for path in sorted(root.rglob("log-*.jsonl"))]
    return {entry["id"]: entry["message"] for log in logs for entry in log["messages"]}
