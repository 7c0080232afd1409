"""Computes the metrics of the DreamBooth protocol: pairwise cosines, means over subjects, bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000

Vectors = NDArray[np.floating[Any]]


def cosines(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    """Cosine of every row of `a` (N×d) with every row of `b` (M×d): N×M float64 in [-1, 1].

    Raises:
        ValueError: a row is all zeros or contains NaN or infinity.
    """
    return _unit_rows(a) @ _unit_rows(b).T


def mean_cosine(generated: Vectors, real: Vectors) -> NDArray[np.float64]:
    """CLIP-I or DINO of each generated picture (N×d): the mean cosine with all real ones (M×d). N float64."""
    return cosines(generated, real).mean(axis=1)


def mean_cosine_among(real: Vectors) -> float:
    """The ceiling of CLIP-I or DINO: the mean cosine over all pairs of different rows of `real` (M×d), M ≥ 2.

    Raises:
        ValueError: fewer than two rows.
    """
    count = len(real)
    if count < 2:
        raise ValueError(f"real pictures: {count} given; at least 2 are needed to compare them with each other")
    return float(cosines(real, real)[~np.eye(count, dtype=bool)].mean())


def aligned_cosine(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    """CLIP-T: the cosine of row i of `a` with row i of `b` (both N×d). N float64."""
    return (_unit_rows(a) * _unit_rows(b)).sum(axis=1)


def bootstrap_interval(values: Sequence[float], seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of `values`, which has one value per subject.

    Subjects are resampled, not pictures, because pictures of one subject are not independent.
    """
    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(array), size=(resamples, len(array)))
    low, high = np.percentile(array[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def summary(values: Sequence[float], seed: int) -> dict[str, Any]:
    """`{"mean": …, "ci95": [low, high]}` of `values`, which has one value per subject. Rounded to six digits."""
    low, high = bootstrap_interval(values, seed)
    return {"mean": round(float(np.mean(values)), 6), "ci95": [round(low, 6), round(high, 6)]}


def gap_closed(text_only: float, bootpig: float, real: float) -> float | None:
    """The closed fraction of the gap between base model and ceiling: (bootpig − text_only) / (real − text_only).

    None if the ceiling is not above the base, since there is no gap then.
    """
    gap = real - text_only
    return round((bootpig - text_only) / gap, 6) if gap > 0 else None


def collect(scores: Mapping[str, Mapping[str, Sequence[float]]], seed: int) -> dict[str, dict[str, Any]]:
    """`{method: {metric: {"mean", "ci95"}}}` from lists with one value per subject. An empty list gives None."""
    return {
        method: {metric: summary(values, seed) if len(values) else None for metric, values in metrics.items()}
        for method, metrics in scores.items()
    }


def _unit_rows(rows: Vectors) -> NDArray[np.float64]:
    rows = np.atleast_2d(np.asarray(rows, dtype=np.float64))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        bad = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
        raise ValueError(f"embeddings: rows {bad.tolist()} have no direction (all zeros, NaN or infinity)")
    return rows / norms
