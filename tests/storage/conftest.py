"""One S3 server for the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.s3 import FAULTS, Faults, s3_bucket


@pytest.fixture(scope="session")
def s3_session() -> Iterator[Faults]:
    with s3_bucket() as faults:
        yield faults


@pytest.fixture
def s3(s3_session: Faults) -> Iterator[Faults]:
    """The bucket `s3://data`, behind a layer of faults that begins with none and has seen no calls."""
    s3_session.rate, s3_session.kinds, s3_session.in_a_row, s3_session.calls = 0.0, FAULTS, None, []
    yield s3_session
    s3_session.rate = 0.0
