import numpy as np
import pytest

from bootpig.stages.evaluate import metrics


def test_mean_cosine_is_over_all_pairs_and_ignores_length():
    generated = np.array([[2.0, 0.0], [0.0, 3.0]])
    real = np.array([[1.0, 0.0], [5.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert metrics.mean_cosine(generated, real) == pytest.approx([(1 + 1 + 0 - 1) / 4, 1 / 4])


def test_the_ceiling_has_no_self_pairs():
    real = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    # pairs: (0,1) 0, (0,2) 0, (1,2) 1; with self-pairs it would be 5/9
    assert metrics.mean_cosine_among(real) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="at least 2"):
        metrics.mean_cosine_among(real[:1])


def test_aligned_cosine_takes_row_with_row():
    a, b = np.array([[1.0, 1.0], [1.0, 0.0]]), np.array([[3.0, 3.0], [-2.0, 0.0]])
    assert metrics.aligned_cosine(a, b) == pytest.approx([1.0, -1.0])


@pytest.mark.parametrize("bad", [np.zeros((1, 3)), np.array([[1.0, np.nan, 0.0]]), np.array([[np.inf, 0.0, 0.0]])])
def test_an_embedding_without_direction_is_an_error(bad):
    with pytest.raises(ValueError, match=r"rows \[0\]"):
        metrics.cosines(bad, np.ones((1, 3)))


def test_bootstrap_interval_agrees_with_the_normal_approximation():
    values = np.random.default_rng(0).normal(0.5, 0.1, size=200)
    low, high = metrics.bootstrap_interval(values.tolist(), seed=1)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.002)
    assert high == pytest.approx(values.mean() + half, abs=0.002)


def test_bootstrap_interval_is_seeded_and_degenerates():
    values = np.random.default_rng(1).normal(size=30).tolist()
    assert metrics.bootstrap_interval(values, seed=3) == metrics.bootstrap_interval(values, seed=3)
    assert metrics.bootstrap_interval(values, seed=3) != metrics.bootstrap_interval(values, seed=4)
    assert metrics.bootstrap_interval([0.7], seed=0) == (0.7, 0.7)


def test_gap_closed():
    assert metrics.gap_closed(text_only=0.4, bootpig=0.5, real=0.6) == pytest.approx(0.5)
    assert metrics.gap_closed(text_only=0.4, bootpig=0.3, real=0.6) == pytest.approx(-0.5)
    assert metrics.gap_closed(text_only=0.6, bootpig=0.7, real=0.6) is None


def test_collect_has_the_layout_of_metrics_json():
    scores = {"real": {"clip_t": [], "dino": [0.5, 0.7]}}
    table = metrics.collect(scores, seed=0)
    assert table["real"]["clip_t"] is None
    assert table["real"]["dino"]["mean"] == 0.6
    low, high = table["real"]["dino"]["ci95"]
    assert 0.5 <= low <= 0.6 <= high <= 0.7
