"""An S3 server for each test module that needs one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.s3 import FAULTS, Faults, s3_bucket


@pytest.fixture(scope="module")
def s3_server() -> Iterator[Faults]:
    with s3_bucket() as faults:
        yield faults


@pytest.fixture
def s3(s3_server: Faults) -> Iterator[Faults]:
    """The bucket `s3://data`, with a fault layer that is reset: no faults, no recorded calls."""
    s3_server.rate, s3_server.kinds, s3_server.in_a_row, s3_server.calls = 0.0, FAULTS, None, []
    s3_server.checksums = ""
    yield s3_server
    s3_server.rate = 0.0
    s3_server.checksums = ""
