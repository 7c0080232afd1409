"""Random pipelines that several files draw with."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig.models.pipelines.sd import BootPIGPipeline
from tests.models.networks import sd_pipeline, train_a_little


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def shared(folder: Path) -> BootPIGPipeline:
    """Trained a little; tests that change it make their own."""
    pipeline = sd_pipeline(folder)
    train_a_little(pipeline)
    return pipeline
