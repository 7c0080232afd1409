"""Measures the search for near-duplicates among 200,000 embeddings, compared with comparing each with all."""

from __future__ import annotations

import time

import numpy as np

from bootpig.stages.select import duplicates

COUNT, WIDTH, COPIES, LIMIT = 200_000, 384, 0.1, 0.95
"""As many embeddings as the paper's data set has samples, as wide as those of DINO ViT-S."""
SMALL = 20_000
"""Embeddings that are compared with all others; the time grows with the square of their number."""
SPREAD = 0.25


def embeddings(count: int, seed: int = 0) -> np.ndarray:
    """count×WIDTH float32 in about a thousand clusters. A tenth are copies of others with a cosine of about 0.98."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(1000, WIDTH)).astype(np.float32)
    rows = centres[rng.integers(len(centres), size=count)] + rng.normal(size=(count, WIDTH)).astype(np.float32)
    copies = rng.choice(count, int(COPIES * count), replace=False)
    rows[copies] = rows[rng.integers(count, size=len(copies))]
    rows[copies] += SPREAD * rng.normal(size=(len(copies), WIDTH)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def measure() -> dict[str, float | str]:
    """CPU seconds for all of them, and the share of near-duplicates that are found.

    Returns:
        `value` (ours), `baseline` (each with all, extrapolated), `ratio` of the two, `unit`.
    """
    small = embeddings(SMALL)
    begin = time.process_time()
    exact = duplicates.nearest_kept(small, LIMIT).cosines > LIMIT
    baseline = (time.process_time() - begin) * (COUNT / SMALL) ** 2
    rows = embeddings(COUNT)
    begin = time.process_time()
    found = duplicates.nearest_kept(rows, LIMIT).cosines > LIMIT
    value = time.process_time() - begin
    before, duplicates.EXACT = duplicates.EXACT, 0
    try:
        recall = ((duplicates.nearest_kept(small, LIMIT).cosines > LIMIT) & exact).sum() / exact.sum()
    finally:
        duplicates.EXACT = before
    unit = f"CPU s; {found.sum()} of {COUNT} are near-duplicates; of {SMALL}, {recall:.1%} of them are found in cells"
    return {"ratio": baseline / value, "value": value, "baseline": baseline, "unit": unit}
