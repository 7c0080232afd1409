"""Every kind of pipeline, shared by tests that do not change it, or new for those that do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.models.pipelines_suite.kinds import KINDS, build


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("words")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def shared(kind: str, words: Path) -> Any:
    return build(kind, words)


@pytest.fixture
def fresh(kind: str, words: Path) -> Callable[[], Any]:
    return lambda: build(kind, words)
