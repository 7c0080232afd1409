"""An LLM endpoint on loopback, shared by several test files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.llm import KEY, Endpoint, serving
from tests.stages.caption.llm.runs import VARIABLE


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Endpoint, str]]:
    endpoint = Endpoint()
    with serving(endpoint) as url:
        yield endpoint, url


@pytest.fixture
def endpoint(server: tuple[Endpoint, str], monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    monkeypatch.setenv(VARIABLE, KEY)
    endpoint, _ = server
    endpoint.key, endpoint.schema, endpoint.surprise = KEY, True, False
    for kept in (endpoint.faults, endpoint.log, endpoint.files, endpoint.batches):
        kept.clear()
    return endpoint


@pytest.fixture
def url(server: tuple[Endpoint, str]) -> str:
    return server[1]
