"""Near-duplicates: the same as by comparing every pair, also where only cells are searched."""

from __future__ import annotations

import numpy as np
import pytest

from bootpig.stages.select import duplicates
from bootpig.stages.select.duplicates import nearest_kept


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(count: int, seed: int = 0) -> np.ndarray:
    """Three in four are alone, the others near one of those."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, 16))
    copies = rng.choice(count, count // 4, replace=False)
    rows[copies] = rows[rng.integers(count, size=len(copies))] + 0.1 * rng.normal(size=(len(copies), 16))
    return unit(rows)


def by_pairs(rows: np.ndarray, limit: float) -> list[bool]:
    dropped: list[bool] = []
    for place, row in enumerate(rows):
        kept = [other for other in range(place) if not dropped[other]]
        dropped.append(bool(kept) and bool((rows[kept] @ row).max() > limit))
    return dropped


@pytest.mark.parametrize("block", [7, 64, 10_000])
def test_each_is_compared_with_those_that_are_kept(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", block)
    rows = clustered(300)
    found = nearest_kept(rows, 0.9)
    dropped = found.cosines > 0.9
    assert dropped.tolist() == by_pairs(rows, 0.9)
    assert 20 < dropped.sum() < 100
    assert found.partners[0] == -1
    for place in np.flatnonzero(dropped):
        partner = found.partners[place]
        assert partner < place and not dropped[partner]
        assert rows[place] @ rows[partner] == pytest.approx(found.cosines[place], abs=1e-5)


def test_of_many_equal_ones_the_first_is_kept() -> None:
    rows = np.repeat(clustered(3), 500, axis=0)
    assert np.flatnonzero(nearest_kept(rows, 0.999).cosines <= 0.999).tolist() == [0, 500, 1000]


def test_searching_cells_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clustered(1500)
    exact = nearest_kept(rows, 0.9).cosines > 0.9
    monkeypatch.setattr(duplicates, "EXACT", 100)
    monkeypatch.setattr(duplicates, "BLOCK", 256)
    cells = nearest_kept(rows, 0.9).cosines > 0.9
    assert (cells & exact).sum() / exact.sum() > 0.98
    assert (nearest_kept(rows, 0.9).cosines > 0.9).tolist() == cells.tolist()


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_compare(count: int) -> None:
    found = nearest_kept(np.ones((count, 4), np.float32), 0.9)
    assert found.partners.tolist() == [-1] * count
