"""The bootstrap of a sweep against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from bootpig.stages.evaluate.metrics import bootstrap_interval
from bootpig.stages.sweep.bootstrap import interval, paired_difference

RNG = np.random.default_rng(0)


def test_a_constant_has_no_spread() -> None:
    found = interval(np.full((3, 5), 0.25))
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)


def test_one_seed_is_the_interval_of_evaluate_up_to_the_correction() -> None:
    values = RNG.normal(size=200)
    found = interval(values[None])
    low, high = bootstrap_interval(list(values), seed=0)
    assert found.mean == pytest.approx(values.mean(), abs=1e-6)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)


def test_seeds_that_only_repeat_the_subjects_add_nothing() -> None:
    """Thirty subjects judged by three equal models are thirty subjects, not ninety."""
    subjects = RNG.normal(size=30)
    once, thrice = interval(subjects[None]), interval(np.tile(subjects, (3, 1)))
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.02)


def test_the_spread_over_seeds_counts_when_subjects_are_equal() -> None:
    seeds = np.tile(np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]]), (1, 50))
    found = interval(seeds)
    # the standard error of the mean of six values of variance 3.5
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(np.sqrt(3.5 / 6), rel=0.05)


def test_what_is_common_to_both_cancels() -> None:
    hard = RNG.normal(size=(3, 30))
    found = paired_difference(hard + 0.01, hard)
    assert (found.mean, found.low, found.high) == pytest.approx((0.01, 0.01, 0.01), abs=1e-6)
    assert interval(hard).high - interval(hard).low > 0.5


def test_equal_input_gives_equal_output_and_the_sign_is_that_of_scores_minus_baseline() -> None:
    a, b = RNG.normal(size=(2, 3, 10))
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert paired_difference(a, b) == forth
    assert forth.mean == pytest.approx((a - b).mean(), abs=1e-6)
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low), abs=0.05)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros((0, 3)), "must be seeds × subjects"),
        (np.zeros(3), "must be seeds × subjects"),
        (np.array([[0.0, np.nan]]), "not finite"),
    ],
)
def test_what_has_no_interval_is_named(scores: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interval(scores)
    with pytest.raises(ValueError, match="that of the baseline"):
        paired_difference(np.zeros((2, 3)), np.zeros((3, 2)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "subject", "rest", "at_least"),
    [(0.05, 1.0, 0.3, 0.92), (0.2, 1.0, 1.0, 0.93), (0.0, 0.0, 1.0, 0.95), (0.3, 0.3, 0.3, 0.82)],
    ids=["subjects differ", "subjects and noise", "noise", "seeds differ as much"],
)
def test_coverage_with_three_seeds(seed: float, subject: float, rest: float, at_least: float) -> None:
    """How often the 95 % interval holds the true mean 0, for three seeds and thirty subjects of known spread."""
    dice = np.random.default_rng(7)
    held = 0
    for _ in range(400):
        scores = (
            seed * dice.normal(size=(3, 1)) + subject * dice.normal(size=(1, 30)) + rest * dice.normal(size=(3, 30))
        )
        found = interval(scores, resamples=1000)
        held += found.low <= 0 <= found.high
    assert held / 400 >= at_least
