"""Runs LLM caption units in this process."""

from __future__ import annotations

from pathlib import Path

from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.engine import Engine, UnitReport
from tests.stages.doubles import config as small_config

VARIABLE = "BOOTPIG_TEST_LLM_KEY"


def configured(root: Path, url: str, *, units: int = 3, **changes) -> PipelineConfig:
    """Units of 20 captions with five per request: four requests per unit."""
    llm = {"base_url": url, "model": "writer-1", "api_key_env": VARIABLE, "captions_per_request": 5}
    llm |= {"concurrency": 4, "max_retries": 2, "batch_poll": 0.01}
    caption = {"source": "openai", "count": 20 * units, "openai": llm | changes}
    return small_config(root, unit_size=20, caption=caption)


def run(config: PipelineConfig, **options) -> list[UnitReport]:
    engine = Engine(config)
    return [engine.run_unit("caption", unit, **options) for unit in engine.units()]


def rows(config: PipelineConfig) -> list[dict]:
    markers = Engine(config).survey("caption").markers
    return [row for unit in sorted(markers) for row in markers[unit].rows]
