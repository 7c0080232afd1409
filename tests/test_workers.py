"""The suite's workers: what shares a server or a module's fixtures runs on one of them."""

from __future__ import annotations

import os

import pytest


def test_a_group_is_written_into_the_name_that_the_scheduler_reads(request: pytest.FixtureRequest) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("only with pytest-xdist's workers (make test)")
    assert request.node.nodeid.endswith("@tests/test_workers.py")
