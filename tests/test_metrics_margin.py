"""The delete-half jackknife over subjects, against what is known of the mean; and the interval of a share."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.metrics.fid import frechet_distance_of_features
from ddpm.metrics.margin import clopper_pearson, margin, share_interval


def test_margin_of_a_mean_is_the_textbooks():
    x = np.random.default_rng(0).normal(3, 2, 400)
    assert margin(np.mean, (x, np.arange(400)), rounds=2000) == pytest.approx(1.966 * x.std(ddof=1) / 20, rel=0.05)


@pytest.mark.parametrize("subjects", [2, 3, 5, 10])
def test_it_covers_the_truth_as_often_as_it_says_however_many_slices_a_subject_has(subjects):
    """Slices of a subject resemble each other, and taken for independent the nominal 95 % would cover a quarter."""
    hits, naive, rng, whose = 0, 0, np.random.default_rng(0), np.repeat(np.arange(subjects), 40)
    for seed in range(200):
        x = rng.normal(size=subjects)[whose] + rng.normal(0, 0.3, len(whose))
        hits += abs(x.mean()) <= margin(np.mean, (x, whose), rounds=40, seed=seed)
        naive += abs(x.mean()) <= 1.96 * x.std() / np.sqrt(len(x))
    assert hits >= 176 and naive < 80  # 88 %, as 40 rounds leave some noise


def test_both_sides_count():
    """The difference of two means: the variances add."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 300), rng.normal(0, 3, 200)
    got = margin(lambda x, y: x.mean() - y.mean(), (a, np.arange(300)), (b, np.arange(200)), rounds=2000)
    assert got == pytest.approx(1.97 * np.sqrt(1 / 300 + 9 / 200), rel=0.12)


def test_subjects_stay_whole_and_are_halved():
    whose, seen = np.repeat([4, 7, 9, 11, 20], [1, 2, 3, 4, 5]), []
    margin(lambda x: seen.append(sorted(set(x.tolist()))) or float(len(x)), (whose, whose), rounds=20)
    assert {len(half) for half in seen} == {2, 3} and len({tuple(half) for half in seen}) > 5
    counts = dict(zip([4, 7, 9, 11, 20], [1, 2, 3, 4, 5], strict=True))
    sizes = []
    margin(lambda x: sizes.append(x.tolist()) or 0.0, (whose, whose), rounds=20)
    assert all(half.count(subject) == counts[subject] for half in sizes for subject in set(half))


def test_one_subject_has_no_margin_and_many_values_have_one_each():
    x = np.arange(20.0)
    assert margin(np.mean, (x, np.zeros(20))) is None
    assert margin(lambda a, b: 0.0, (x, np.arange(20)), (x, np.zeros(20))) is None
    three = margin(lambda a: np.array([a.mean(), 2 * a.mean(), 5.0]), (x, np.arange(20)))
    assert three[1] == pytest.approx(2 * three[0]) and three[2] == 0


def test_a_half_too_small_for_the_score_costs_the_margin_alone():
    """One subject of two has one picture: half of the halves are that one, and a Frechet distance wants two."""
    x, whose = np.random.default_rng(0).normal(size=(61, 3)), np.repeat([0, 1], [1, 60])
    assert margin(frechet_distance_of_features, (x, whose), (x + 1, whose)) is None
    assert margin(frechet_distance_of_features, (x, np.arange(61)), (x + 1, np.arange(61))) > 0


def test_a_seed_gives_the_same_margin():
    x = np.random.default_rng(0).normal(size=40)
    one, again, other = (margin(np.mean, (x, np.arange(40)), seed=seed) for seed in (3, 3, 4))
    assert one == again != other


@pytest.mark.parametrize("share, slices", [(0.01, 1), (0.05, 1), (0.5, 1), (0.02, 10), (0.4, 10)])
def test_the_interval_of_a_share_covers_it_also_near_0_and_1(share, slices):
    """Of 60 subjects: all slices of one are alike, so they are 60 observations. The jackknife alone would say 0 +- 0."""
    hits, rng, whose = 0, np.random.default_rng(0), np.repeat(np.arange(60), slices)
    for seed in range(200):
        low, high = share_interval((rng.random(60) < share)[whose], whose, seed)
        assert 0 <= low < high <= 1
        hits += low <= share <= high
    assert hits >= 184  # 92 %


def test_a_share_of_independent_images_has_the_exact_interval_and_of_one_subject_none():
    right = np.arange(20) < 3
    assert share_interval(right, np.arange(20)) == clopper_pearson(3, 20)
    assert share_interval(right, np.zeros(20)) is None
    assert share_interval(np.ones(200, bool), np.arange(200) // 50) == clopper_pearson(4, 4)


@pytest.mark.parametrize(
    "correct, n, published",
    [(81, 263, (0.2527, 0.3676)), (15, 148, (0.0578, 0.1617)), (0, 20, (0, 0.1684)), (1, 29, (0.0009, 0.1776))],
)
def test_interval_has_the_published_values(correct, n, published):
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", Table I, method 5."""
    assert clopper_pearson(correct, n) == pytest.approx(published, abs=5e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.data())
def test_interval_ends_where_the_tails_hold_2_5_percent(n, data):
    correct = data.draw(st.integers(0, n))
    low, high = clopper_pearson(correct, n)
    weight = [math.comb(n, k) for k in range(n + 1)]
    if correct > 0:
        assert sum(w * low**k * (1 - low) ** (n - k) for k, w in enumerate(weight) if k >= correct) == pytest.approx(
            0.025
        )
    else:
        assert low == 0
    if correct < n:
        assert sum(w * high**k * (1 - high) ** (n - k) for k, w in enumerate(weight) if k <= correct) == pytest.approx(
            0.025
        )
    else:
        assert high == 1
