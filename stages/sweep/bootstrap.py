"""The bootstrap of a sweep: mean scores over seeds and subjects, and paired differences, with 95 % intervals.

A score is measured once for each pair of a seed and a subject. Both are samples: another seed trains another model, and
other subjects are easier or harder. Every seed is judged on the same subjects, so the two are crossed, not nested. A
resample draws seeds with replacement, and subjects with replacement, the same ones in all of its seeds (Owen, "The
pigeonhole bootstrap", Annals of Applied Statistics 1(2), 2007). If it drew other subjects in each seed, three seeds of
thirty subjects would count as ninety subjects, and the interval would be too narrow.

Two settings are compared by the differences of their scores for the same seed and subject, resampled in the same way.
What is common to both, such as a difficult subject, cancels.

The mean of a resample of k values varies (k-1)/k times as much as that of k new ones, which matters for three seeds.
So the deviations of its mean over seeds, and of its mean over subjects, are scaled by sqrt(k/(k-1)) (Hesterberg, "What
teachers should know about the bootstrap", The American Statistician 69(4), 2015, on narrowness bias). With one seed,
nothing is known of others: the interval is then about subjects alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000

Scores = NDArray[np.floating[Any]]
"""K×N: one row per seed, one column per subject."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval, rounded to six digits."""

    mean: float
    low: float
    high: float


def interval(scores: Scores, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The mean of `scores` (K×N, K seeds and N subjects) and its interval. Deterministic: `seed` is that of the draws.

    Raises:
        ValueError: `scores` is not K×N with at least one of each, or a score is not finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores: shape {scores.shape} → must be seeds × subjects, at least one of each")
    if not np.isfinite(scores).all():
        raise ValueError("scores: some are not finite → leave out these subjects")
    mean = scores.mean()
    by_seed, by_subject = (_shares(count, (seed, axis), resamples) for axis, count in enumerate(scores.shape))
    drawn = ((by_subject @ scores.T) * by_seed).sum(axis=1)
    for shares, margin in ((by_seed, scores.mean(axis=1)), (by_subject, scores.mean(axis=0))):
        count = len(margin)
        if count > 1:
            drawn += (np.sqrt(count / (count - 1)) - 1) * (shares @ margin - mean)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(*(round(float(value), 6) for value in (mean, low, high)))


def paired_difference(scores: Scores, baseline: Scores, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The mean of `scores - baseline` and its interval. Both are K×N, with the same seeds and subjects in one order.

    Raises:
        ValueError: their shapes differ, or as in `interval`.
    """
    scores, baseline = np.asarray(scores, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if scores.shape != baseline.shape:
        raise ValueError(f"scores: shape {scores.shape} is not {baseline.shape}, that of the baseline")
    return interval(scores - baseline, seed, resamples)


@lru_cache(maxsize=4)
def _shares(count: int, seed: tuple[int, int], resamples: int) -> NDArray[np.float64]:
    """resamples×count: the share of each of `count` values in each resample. Its rows sum to 1."""
    draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
    places = draws + count * np.arange(resamples)[:, None]
    shares: NDArray[np.float64] = np.bincount(places.ravel(), minlength=resamples * count) / count
    return shares.reshape(resamples, count)
