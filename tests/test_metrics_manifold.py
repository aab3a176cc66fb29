"""Neighbours: published values, brute force, ties, and what copies do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm import UserError
from ddpm.metrics import manifold
from ddpm.metrics.manifold import memorisation, nearest, precision_recall_density_coverage
from ddpm.metrics.margin import margin

R = np.arange(6.0)[:, None]


def test_published_values():
    """By hand for k = 1: every real ball has radius 1; 0.5 and 1.2 lie in two balls each, 9 in none."""
    scores = precision_recall_density_coverage(R, np.array([0.5, 1.2, 9])[:, None], k=1)
    assert scores == pytest.approx((2 / 3, 1, 4 / 3, 1 / 2))
    scores = precision_recall_density_coverage(R, np.array([0.5, 1.2, 4.6, 9])[:, None], k=2)
    assert scores == pytest.approx((0.75, 1, 0.875, 5 / 6))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(4, 12), st.integers(4, 12), st.integers(0, 2**32 - 1))
def test_scores_are_those_of_the_definition(k, n, m, seed):
    """Point by point in integers, so that many distances are equal and "<" differs from "<="."""
    rng = np.random.default_rng(seed)
    real, fake = rng.integers(0, 4, (n, 2)), rng.integers(0, 5, (m, 2))

    def squared(p, q):
        return int(((p - q) ** 2).sum())

    def radius(points, i):
        return sorted(squared(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    in_real = [[squared(fake[j], real[i]) < radius(real, i) for i in range(n)] for j in range(m)]
    in_fake = [[squared(real[i], fake[j]) < radius(fake, j) for j in range(m)] for i in range(n)]
    expected = (
        np.mean([any(row) for row in in_real]),
        np.mean([any(row) for row in in_fake]),
        np.sum(in_real) / (k * m),
        np.mean([any(in_real[j][i] for j in range(m)) for i in range(n)]),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifold, "BLOCK", 5)
        assert precision_recall_density_coverage(real, fake, k) == pytest.approx(expected, abs=1e-12)


def test_equal_distributions_have_the_expected_scores():
    """E[coverage] = 1 - prod_i (N - i) / (M + N - i), Naeem et al., Lemma 2; density 1."""
    n, k = 200, 5
    expected = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    assert expected == pytest.approx(0.96992, abs=1e-5)
    rng = np.random.default_rng(0)
    scores = [precision_recall_density_coverage(*rng.normal(size=(2, n, 3)), k) for _ in range(40)]
    assert np.mean([s.coverage for s in scores]) == pytest.approx(expected, abs=0.006)
    assert np.mean([s.density for s in scores]) == pytest.approx(1, abs=0.04)


def test_each_score_sees_what_it_is_for():
    rng = np.random.default_rng(0)
    real, far = rng.normal(size=(300, 4)), rng.normal(size=(300, 4)) + 100
    assert precision_recall_density_coverage(real, far) == (0, 0, 0, 0)
    collapsed = real[:1] + 1e-3 * rng.normal(size=(300, 4))
    scores = precision_recall_density_coverage(real, collapsed)
    assert scores.precision == 1 and scores.recall < 0.02 and scores.coverage < 0.2
    shared = np.concatenate([real[:150], far[:150]])  # half of the samples are nonsense, half are copies
    scores = precision_recall_density_coverage(real, shared)
    assert scores.precision == 0.5 and scores.density < 0.6 and scores.coverage > 0.5


def test_copies_tie_exactly_however_far_from_zero():
    """Samples equal to the real set: point j has exactly k - 1 other points and itself strictly inside its ball, so
    the density is exactly 1. In |x|^2 + |y|^2 - 2 x.y rounding would leave nothing of these distances."""
    x = np.random.default_rng(0).normal(size=(700, 33)) * 1e-3 + 1e6
    assert precision_recall_density_coverage(x, x, k=5) == (1, 1, 1, 1)


def test_too_few_for_k():
    with pytest.raises(UserError, match="the second set of features: too few samples, 5 where.*at least 6"):
        precision_recall_density_coverage(np.zeros((9, 1)), np.zeros((5, 1)))
    with pytest.raises(UserError, match="k is 0"):
        precision_recall_density_coverage(R, R, k=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_nearest_is_brute_force(n, m, seed):
    rng = np.random.default_rng(seed)
    queries, references = rng.normal(size=(m, 3)), rng.normal(size=(n, 3))
    references = np.concatenate([references, references[: n // 2]])  # copies: the first of two is found
    distance = np.sqrt(((queries[:, None] - references) ** 2).sum(axis=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifold, "BLOCK", 5)
        values, indices = nearest(queries, references)
    assert values.dtype == np.float64 and indices.dtype == np.int64
    np.testing.assert_allclose(values, distance.min(axis=1), rtol=1e-15)
    assert np.array_equal(indices, distance.argmin(axis=1))


def test_nearest_is_exact_where_the_expanded_form_is_not():
    """Far from zero and along one direction, |q|^2 + |r|^2 - 2 q.r has no digit of the distances left."""
    references = 1e6 + 1e-6 * np.random.default_rng(0).permutation(np.arange(300.0))[:, None] * np.ones((1, 5))
    queries = references[:50] + 2e-7
    squared = (queries**2).sum(axis=1)[:, None] + (references**2).sum(axis=1) - 2 * queries @ references.T
    assert np.abs(squared).max() > 1e-4 > 300**2 * 5e-12
    values, indices = nearest(queries, references)
    assert np.array_equal(indices, np.arange(50))
    np.testing.assert_allclose(values, np.linalg.norm(queries - references[:50], axis=1), rtol=1e-12)


def test_a_copy_is_at_distance_zero():
    x = np.random.default_rng(0).normal(size=(300, 50)) + 1e4
    values, indices = nearest(x[::-1], x)
    assert (values == 0).all() and np.array_equal(indices, np.arange(300)[::-1])
    values, _ = nearest(x[:1] + 1e-6, x)
    assert values[0] == pytest.approx(1e-6 * np.sqrt(50), rel=1e-5)


def memorised(fake, train, held_out):
    return memorisation(nearest(fake, train)[0], nearest(held_out, train)[0])


def test_memorisation_of_copies_of_new_images_and_of_nonsense():
    rng = np.random.default_rng(0)
    train, held_out = rng.normal(size=(400, 6)), rng.normal(size=(300, 6))
    assert memorised(train[:200], train, held_out) == 1
    assert memorised(rng.normal(size=(200, 6)) + 50, train, held_out) == 0
    assert memorised(rng.normal(size=(300, 6)), train, held_out) == pytest.approx(0.5, abs=0.05)
    assert memorised(held_out, train, held_out) == 0.5
    half = np.concatenate([train[:150], rng.normal(size=(150, 6))])  # 150 copies of 300: 1/2 + 1/2 . 1/2
    assert memorised(half, train, held_out) == pytest.approx(0.75, abs=0.04)


def test_memorisation_margin_has_the_width_of_mann_whitney():
    """Under equality the statistic has variance (n + m + 1) / (12 n m)."""
    rng = np.random.default_rng(1)
    fake, held_out = rng.normal(size=250), rng.normal(size=150)
    got = margin(memorisation, (fake, np.arange(250)), (held_out, np.arange(150)), rounds=1000)
    assert got == pytest.approx(1.97 * np.sqrt((250 + 150 + 1) / (12 * 250 * 150)), rel=0.15)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_a_tie_counts_half(a, b):
    expected = np.mean([(p < q) + 0.5 * (p == q) for p in a for q in b])
    assert memorisation(np.array(a), np.array(b)) == pytest.approx(expected, abs=1e-12)
