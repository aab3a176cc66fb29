"""The percentile bootstrap against what is known of the mean."""

import numpy as np
import pytest

from ddpm.metrics.bootstrap import interval


def test_interval_of_a_mean_is_two_standard_errors_wide():
    x = np.random.default_rng(0).normal(3, 2, 2000)
    low, high = interval(np.mean, x, rounds=2000)
    error = x.std() / np.sqrt(len(x))
    assert low == pytest.approx(x.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(x.mean() + 1.96 * error, abs=0.15 * error)


def test_interval_covers_the_truth_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        low, high = interval(np.mean, np.random.default_rng(seed).normal(size=50), seed=seed)
        hits += low <= 0 <= high
    assert 180 <= hits <= 199  # 95 % of 200, give or take 2.9 standard deviations (and N = 50 is a little narrow)


def test_samples_are_resampled_apart_and_rows_stay_whole():
    a, b = np.arange(30).reshape(15, 2), np.arange(7)
    seen = []

    def statistic(x, y):
        assert x.shape == (15, 2) and y.shape == (7,)
        assert (x[:, 1] == x[:, 0] + 1).all()
        seen.append((tuple(x[:, 0] // 2), tuple(y)))
        return 0.0

    assert interval(statistic, a, b, rounds=20) == (0.0, 0.0)
    assert len(set(seen)) == len(seen) == 20
    assert any(len(set(x)) < 15 for x, _ in seen)  # with replacement
    assert len({x[:7] for x, _ in seen} & {y for _, y in seen}) == 0


def test_a_seed_gives_the_same_interval():
    x = np.random.default_rng(0).normal(size=40)
    assert interval(np.mean, x, seed=3) == interval(np.mean, x, seed=3) != interval(np.mean, x, seed=4)
