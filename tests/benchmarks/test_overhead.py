"""The benchmarks of stages run against their own raw loops. Speed is not tested."""

from __future__ import annotations

import pytest

from benchmarks import overhead


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synthesize", "segment"])
def test_both_ways_run(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(overhead, "UNITS", 2)
    monkeypatch.setattr(overhead, "UNIT_SIZE", 2)
    monkeypatch.setattr(overhead, "TURNS", {"synthesize": 1, "segment": 1})
    found = getattr(overhead, name)()
    assert {"ratio", "value", "baseline", "unit"} <= found.keys()
