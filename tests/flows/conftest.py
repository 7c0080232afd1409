"""A Prefect server for the session, and a pipeline small enough for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bootpig.flows.loading import load_config
from bootpig.models.pretrained.source import PROJECT
from bootpig.stages.config import PipelineConfig
from tests.flows.live import Live, running
from tests.servers.llm import KEY

TOY = Path(__file__).parents[2] / "configs" / "toy.yaml"


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a test server; its home is a temporary folder."""
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    os.environ["PREFECT_SERVER_LOGGING_LEVEL"] = "CRITICAL"
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        yield str(PREFECT_API_URL.value())


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """`prefect server start`, `bootpig setup-server`, `prefect deploy --all`, and a process worker."""
    with running(tmp_path_factory.mktemp("live"), BOOTPIG_LLM_KEY=KEY) as live:
        live.deploy()
        live.start_worker()
        yield live


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the held-out subjects, in a folder as evaluate reads it."""
    folder = tmp_path_factory.mktemp("subjects")
    source = PROJECT / "models/toy/subjects_held_out"
    names = sorted(path.name for path in source.iterdir() if path.is_dir())[:2]
    for name in names:
        shutil.copytree(source / name, folder / name)
    listed = yaml.safe_load((source / "subjects.yaml").read_text())
    (folder / "subjects.yaml").write_text(yaml.safe_dump({name: listed[name] for name in names}))
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """Overrides for configs/toy.yaml: a separate store, four units of ten, models that are never loaded, no
    scores and no selection."""
    model = tmp_path / "model"
    model.mkdir()
    for entry in ("model_index.json", "config.json"):
        (model / entry).write_text("{}")
    fields = ("synthesize.model", "segment.detector", "encode.model", "train.model")
    fields += ("evaluate.model", "evaluate.clip", "evaluate.dino")
    overrides = [f"root={tmp_path / 'store'}", "caption.count=40", "unit_size=10", "score=null", "select=null"]
    overrides.append(f"segment.sam={model / 'model_index.json'}")
    return overrides + [f"{field}={model}" for field in fields]


@pytest.fixture
def config(settings: list[str]) -> PipelineConfig:
    return load_config(TOY, settings)
