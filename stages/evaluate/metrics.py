"""The arithmetic of the DreamBooth protocol: pairwise cosines, means over subjects, their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

METRICS = ("clip_t", "clip_i", "dino")
"""CLIP-T: caption against image. CLIP-I, DINO: generated against real pictures of the subject."""

RESAMPLES = 10_000

Vectors = NDArray[np.floating[Any]]


def cosines(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    """Cosine of every row of `a` (N×d) with every row of `b` (M×d): N×M float64 in [-1, 1].

    Raises:
        ValueError: a row is all zeros or holds a NaN or an infinity.
    """
    return _unit_rows(a) @ _unit_rows(b).T


def mean_cosine(generated: Vectors, real: Vectors) -> NDArray[np.float64]:
    """CLIP-I or DINO of each generated picture (N×d): its mean cosine with all real ones (M×d). N float64."""
    return cosines(generated, real).mean(axis=1)


def mean_cosine_among(real: Vectors) -> float:
    """The ceiling: the mean cosine of all pairs of different rows of `real` (M×d), M ≥ 2; no row with itself.

    Raises:
        ValueError: fewer than two rows.
    """
    count = len(real)
    if count < 2:
        raise ValueError(f"real pictures: {count} given; a real-vs-real mean needs at least 2")
    return float(cosines(real, real)[~np.eye(count, dtype=bool)].mean())


def aligned_cosine(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    """CLIP-T: the cosine of row i of `a` with row i of `b` (both N×d). N float64."""
    return (_unit_rows(a) * _unit_rows(b)).sum(axis=1)


def bootstrap_interval(values: Sequence[float], seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The percentile bootstrap's 95 % interval of the mean of `values`, one value a subject.

    Subjects, not pictures, are drawn: pictures of one subject are not independent.
    """
    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(array), size=(resamples, len(array)))
    low, high = np.percentile(array[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def summary(values: Sequence[float], seed: int) -> dict[str, Any]:
    """`{"mean": …, "ci95": [low, high]}` of one value a subject, rounded to six digits."""
    low, high = bootstrap_interval(values, seed)
    return {"mean": round(float(np.mean(values)), 6), "ci95": [round(low, 6), round(high, 6)]}


def gap_closed(text_only: float, bootpig: float, real: float) -> float | None:
    """How much of the way from the base model to the ceiling was gone: (bootpig − text_only) / (real − text_only).

    None where the ceiling is not above the base: there is no gap to close.
    """
    gap = real - text_only
    return round((bootpig - text_only) / gap, 6) if gap > 0 else None


def collect(scores: Mapping[str, Mapping[str, Sequence[float]]], seed: int) -> dict[str, dict[str, Any]]:
    """`{method: {metric: {"mean", "ci95"}}}` from one value a subject; an empty list gives a null metric."""
    return {
        method: {metric: summary(values, seed) if len(values) else None for metric, values in metrics.items()}
        for method, metrics in scores.items()
    }


def _unit_rows(rows: Vectors) -> NDArray[np.float64]:
    rows = np.atleast_2d(np.asarray(rows, dtype=np.float64))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        bad = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
        raise ValueError(f"embeddings: rows {bad.tolist()} have no direction (all zeros, NaN or infinite)")
    return rows / norms
