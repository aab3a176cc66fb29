"""The Fréchet distance: closed forms, singular covariances, and independent ways held to one value."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm import UserError
from ddpm.metrics import fid
from ddpm.metrics.fid import (
    fid_infinity,
    frechet_distance,
    frechet_distance_by_factors,
    frechet_distance_of_features,
)

WAYS = [frechet_distance, frechet_distance_by_factors]

pytestmark = pytest.mark.filterwarnings("ignore:Matrix is singular")  # sqrtm, when it is: that is what is tested


def moments(x):
    return x.mean(axis=0), np.cov(x.T).reshape(x.shape[1], x.shape[1])


def correlated(seed, n, d, decay=0.0):
    """n features with a random covariance, whose eigenvalues fall by 10^-decay if decay > 0."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * 10 ** -(np.linspace(0, decay, d) / 2) @ rng.normal(size=(d, d)) + rng.normal(
        size=d
    )


def with_moments(mu, cov, n, seed=0):
    """n features whose sample mean and unbiased sample covariance are exactly mu and cov."""
    x = np.random.default_rng(seed).normal(size=(n, len(mu)))
    x -= x.mean(axis=0)
    whiten = np.linalg.inv(np.linalg.cholesky(np.cov(x.T)))
    return x @ whiten.T @ np.linalg.cholesky(cov).T + mu


@pytest.mark.parametrize("n", [4, 5, 6, 5000])
def test_mean_and_factor_of_features_far_from_zero(n):
    """A mean of 1e4 beside a spread of 1 costs raw sums of squares half of their digits."""
    x = np.random.default_rng(n).normal(1e4, 1, (n, 5))
    mu, factor = fid.mean_and_factor(x)
    np.testing.assert_allclose(mu, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(factor @ factor.T, np.cov(x.T), rtol=1e-8, atol=1e-9)


# The distance of two Gaussians


@pytest.mark.parametrize("way", WAYS)
def test_distance_has_the_published_values(way):
    eye = np.eye(4)
    assert way(np.zeros(4), eye, np.ones(4), 4 * eye) == pytest.approx(8, rel=1e-12)
    a, b = [[2, 0.5], [0.5, 1]], [[1, -0.3], [-0.3, 3]]
    assert way([0, 0], a, [1, -1], b) == pytest.approx(2.9293118550, rel=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_what_comes_in_float32_is_computed_in_float64(way):
    singles = [array.astype(np.float32) for x in (correlated(0, 50, 6), correlated(1, 60, 6)) for array in moments(x)]
    assert way(*singles) == way(*(array.astype(np.float64) for array in singles))


@pytest.mark.parametrize("way", WAYS)
def test_equal_covariances_leave_the_means(way):
    mu, cov = moments(correlated(0, 50, 6))
    assert way(mu, cov, mu + [3, 0, 0, 4, 0, 0], cov) == pytest.approx(25, abs=1e-9)
    assert way(mu, cov, mu, cov) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_covariances_that_commute_have_a_closed_form(way):
    """The same eigenvectors: sum of (sqrt(a_i) - sqrt(b_i))^2. Zeros make either, or both, singular."""
    a, b = np.array([4.0, 9, 0, 1, 0]), np.array([1.0, 0, 16, 25, 0])
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    A, B = (turn * a) @ turn.T, (turn * b) @ turn.T
    truth = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert way(np.zeros(5), A, np.zeros(5), B) == pytest.approx(truth, abs=2e-6)
    assert way(np.zeros(5), np.diag(a), np.zeros(5), np.diag(b)) == pytest.approx(truth, abs=2e-6)
    assert way(np.zeros(5), np.zeros((5, 5)), np.ones(5), B) == pytest.approx(5 + b.sum(), abs=1e-4)
    assert way(np.zeros(5), np.zeros((5, 5)), np.ones(5), np.zeros((5, 5))) == pytest.approx(5, abs=2e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 8), st.integers(0, 8), st.integers(0, 2**32 - 1))
def test_the_three_ways_agree(d, more_1, more_2, seed):
    """Cases of full rank: sqrtm of the product, factors with symmetric eigenvalues, and the features themselves."""
    x, y = correlated(seed, d + 1 + more_1, d), correlated(seed + 1, d + 1 + more_2, d)
    (mu_1, cov_1), (mu_2, cov_2) = moments(x), moments(y)
    scale = np.trace(cov_1) + np.trace(cov_2)
    by_sqrtm = frechet_distance(mu_1, cov_1, mu_2, cov_2)
    assert frechet_distance_by_factors(mu_1, cov_1, mu_2, cov_2) == pytest.approx(by_sqrtm, rel=1e-6, abs=1e-7 * scale)
    assert frechet_distance_of_features(x, y) == pytest.approx(by_sqrtm, rel=1e-6, abs=1e-7 * scale)


@pytest.mark.parametrize("n_1, n_2", [(7, 9), (7, 200), (200, 7), (30, 30), (31, 200), (2, 2), (200, 300)])
@pytest.mark.parametrize("decay", [0, 4])
def test_fewer_samples_than_features(n_1, n_2, decay):
    """30 features. The truth is the sum of the singular values of X_1c X_2c^T, by numpy, on the samples alone."""
    x, y = correlated(n_1, n_1, 30, decay), correlated(n_2 + 1000, n_2, 30, decay)
    (mu_1, cov_1), (mu_2, cov_2) = moments(x), moments(y)
    product = (x - mu_1) @ (y - mu_2).T / np.sqrt((n_1 - 1) * (n_2 - 1))
    root = np.linalg.svd(product, compute_uv=False).sum()
    truth = ((mu_1 - mu_2) ** 2).sum() + np.trace(cov_1) + np.trace(cov_2) - 2 * root
    assert frechet_distance_of_features(x, y) == pytest.approx(truth, rel=1e-9 if min(n_1, n_2) < 30 else 1e-7)
    by_eigh = frechet_distance_by_factors(mu_1, cov_1, mu_2, cov_2)
    assert by_eigh == pytest.approx(truth, rel=1e-7 if decay or min(n_1, n_2) > 30 else 1e-10)
    assert frechet_distance(mu_1, cov_1, mu_2, cov_2) == pytest.approx(truth, rel=1e-5)


def test_as_many_samples_as_features():
    """Then one singular value is 0, and its square comes out of the eigenvalues a little above or below."""
    for d in range(2, 40):
        x, y = correlated(d, d, d), correlated(d + 1000, d, d)
        assert frechet_distance_of_features(x, y) == pytest.approx(frechet_distance(*moments(x), *moments(y)), rel=1e-5)


def test_few_samples_never_form_a_covariance(monkeypatch):
    x, y = correlated(0, 10, 10), correlated(1, 8, 10)  # as many as features are few, too
    truth = frechet_distance_by_factors(*moments(x), *moments(y))
    monkeypatch.setattr(fid, "covariance_factor", None)
    assert frechet_distance_of_features(x, y) == pytest.approx(truth, rel=1e-9)


def test_a_set_has_no_distance_to_itself():
    for n in (5, 40):
        x = correlated(0, n, 20)
        scale = np.cov(x.T).trace()
        assert frechet_distance_of_features(x, x) == pytest.approx(0, abs=1e-7 * scale)
    assert frechet_distance_of_features(x[:5], x[:5]) == pytest.approx(0, abs=1e-12 * scale)


@pytest.mark.parametrize(
    "way", [frechet_distance_of_features, lambda x, y: frechet_distance_by_factors(*moments(x), *moments(y))]
)
def test_features_that_never_fire(way):
    """Dead units leave zero rows, where a Cholesky factor does not exist; they must change nothing."""
    x, y = correlated(0, 60, 8), correlated(1, 80, 8)
    dead = [np.insert(features, [0, 3, 8], 0, axis=1) for features in (x, y)]
    assert way(*dead) == pytest.approx(way(x, y), rel=1e-9)


def test_distance_is_a_metric_of_features_not_of_their_axes_or_order():
    x, y = correlated(0, 40, 6), correlated(1, 50, 6)
    truth = frechet_distance_of_features(x, y)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    assert frechet_distance_of_features(y, x) == pytest.approx(truth, rel=1e-9)
    assert frechet_distance_of_features(x @ turn + 5, y @ turn + 5) == pytest.approx(truth, rel=1e-9)
    assert frechet_distance_of_features(x[::-1], y) == pytest.approx(truth, rel=1e-9)
    assert frechet_distance_of_features(3 * x, 3 * y) == pytest.approx(9 * truth, rel=1e-9)


def test_a_root_that_is_not_finite_is_taken_again_beside_the_identity(monkeypatch):
    """As the reference code has it, 1e-6 I on both."""
    asked = []

    def failing_once(product):
        asked.append(product)
        return np.full_like(product, np.nan) if len(asked) == 1 else np.diag(np.sqrt(np.diag(product)))

    monkeypatch.setattr(fid, "sqrtm", failing_once)
    value = frechet_distance(np.zeros(2), np.diag([4.0, 0]), np.zeros(2), np.diag([9.0, 0]))
    np.testing.assert_allclose(np.diag(asked[1]), [(4 + 1e-6) * (9 + 1e-6), 1e-12], rtol=1e-12)
    assert value == pytest.approx(1, abs=1e-5)


def test_a_small_imaginary_part_is_dropped_and_a_large_one_refused(monkeypatch):
    eye, zero = np.eye(3), np.zeros(3)
    monkeypatch.setattr(fid, "sqrtm", lambda product: product + 1e-4j * np.eye(3))
    assert frechet_distance(zero, eye, zero, eye) == pytest.approx(0, abs=1e-12)
    monkeypatch.setattr(fid, "sqrtm", lambda product: product - 1e-2j * np.eye(3))
    with pytest.raises(UserError, match="complex"):
        frechet_distance(zero, eye, zero, eye)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_covariance_is_refused(way):
    for impostor in (np.diag([1.0, 1, -1]), np.diag([1.0, 1, -0.01]), np.fliplr(np.eye(3))):
        for order in ((impostor, np.eye(3)), (np.eye(3), impostor)):
            with pytest.raises(UserError, match="negative"):
                way(np.zeros(3), order[0], np.zeros(3), order[1])


@pytest.mark.parametrize("way", WAYS)
def test_a_covariance_that_went_through_float32_is_still_one(way):
    x, y = correlated(0, 12, 20), correlated(1, 15, 20)  # rank 11 of 20: rounding makes eigenvalues negative
    truth = frechet_distance_of_features(x, y)
    (mu_1, cov_1), (mu_2, cov_2) = moments(x), moments(y)
    cov_1, cov_2 = cov_1.astype(np.float32), cov_2.astype(np.float32)
    assert np.linalg.eigvalsh(cov_1.astype(float))[0] < 0
    assert way(mu_1, cov_1, mu_2, cov_2) == pytest.approx(truth, rel=1e-2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place, name", list(enumerate(["first mean", "first cov", "second mean", "second cov"])))
def test_nan_and_wrong_shapes(way, place, name):
    arrays = [np.zeros(2), np.eye(2), np.zeros(2), np.eye(2)]
    arrays[place].flat[0] = np.nan
    with pytest.raises(UserError, match=f"the {name}.*NaN"):
        way(*arrays)
    arrays[place] = np.eye(3)
    with pytest.raises(ValueError, match="shapes"):
        way(*arrays)


@pytest.mark.slow
def test_the_fast_way_at_2048_features():
    x, y = correlated(0, 3000, 2048), correlated(1, 4000, 2048)
    by_sqrtm = frechet_distance(*moments(x), *moments(y))
    assert frechet_distance_by_factors(*moments(x), *moments(y)) == pytest.approx(by_sqrtm, rel=1e-6)
    assert frechet_distance_of_features(x, y) == pytest.approx(by_sqrtm, rel=1e-6)


# The bias in N


@pytest.mark.parametrize("seed", range(4))
def test_fid_infinity_is_nearer_to_the_truth_than_the_largest_n(seed):
    """Samples of N(shift, 1.1^2 I) in 48 dimensions, a reference with exactly N(0, I): the truth is known."""
    d, n = 48, 1500
    shift = np.full(d, 0.05)
    samples = np.random.default_rng(seed).normal(shift, 1.1, (n, d))
    reference = with_moments(np.zeros(d), np.eye(d), 500)
    truth = (shift**2).sum() + d * 0.1**2
    result = fid_infinity(samples, reference, seed=seed)
    assert result.values[-1] - truth > 0.3  # the bias at the largest N; about 1.1 d (d + 1) / 4 n + 1.2 d / n = 0.47
    assert abs(result.fid_infinity - truth) < 0.25 * (result.values[-1] - truth)
    assert result.slope == pytest.approx(n * (result.values[-1] - truth), rel=0.25)


def test_fid_infinity_says_what_it_did():
    x, y = correlated(0, 400, 5), correlated(1, 300, 5)
    result = fid_infinity(x, y, sizes=8)
    assert len(result.sizes) == len(result.values) == 8
    assert result.sizes[0] == 40 and result.sizes[-1] == 400 and (np.diff(result.sizes) > 0).all()
    assert result.values[-1] == pytest.approx(frechet_distance_of_features(x, y), rel=1e-9)
    line = result.fid_infinity + result.slope / result.sizes
    assert (result.values - line).sum() == pytest.approx(0, abs=1e-6)  # a least-squares line has no mean residual
    assert ((result.values - line) / result.sizes).sum() == pytest.approx(0, abs=1e-6)


def test_fid_infinity_draws_its_subsets_at_random():
    """Sorted features, so that the first rows are not like the others."""
    x = np.sort(np.random.default_rng(0).normal(size=(500, 1)), axis=0)
    result = fid_infinity(x, np.random.default_rng(1).normal(size=(500, 1)))
    assert result.values.max() < 0.2
    again = fid_infinity(x, np.random.default_rng(1).normal(size=(500, 1)))
    assert np.array_equal(again.values, result.values)
    assert not np.array_equal(fid_infinity(x, x, seed=1).values, fid_infinity(x, x, seed=2).values)


def test_fid_infinity_of_few_samples_keeps_two_sizes():
    result = fid_infinity(correlated(0, 10, 30), correlated(1, 10, 30))
    assert result.sizes.tolist() == [5, 6, 7, 8, 9, 10] and np.isfinite(result.fid_infinity)


def test_sizes_run_evenly_from_a_tenth_to_all_but_not_below_two_samples():
    x = correlated(0, 39, 1)
    assert fid_infinity(x, x, sizes=9).sizes.tolist() == [3, 7, 12, 16, 21, 25, 30, 34, 39]
    assert fid_infinity(x[:10], x).sizes.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    x = correlated(0, 13, 30)  # from half of the samples, if there are more features
    assert fid_infinity(x, x, sizes=5).sizes.tolist() == [6, 7, 9, 11, 13]


def test_fid_infinity_has_15_sizes_and_the_seed_0_unless_told_otherwise():
    x, y = correlated(0, 200, 3), correlated(1, 200, 3)
    assert np.array_equal(fid_infinity(x, y).values, fid_infinity(x, y, sizes=15, seed=0).values)


def test_fid_infinity_takes_ten_samples():
    for sets in ((9, 10), (10, 9)):
        with pytest.raises(UserError, match="9 where this score needs at least 10"):
            fid_infinity(*(correlated(0, n, 2) for n in sets))


def test_floor_is_what_n_new_real_images_would_get():
    """The expected distance of two sets of n and m of the same Gaussian is (d + d (d + 1) / 4)(1/n + 1/m)."""
    d, m, n = 20, 3000, 400
    real = np.random.default_rng(0).normal(size=(m, d))
    assert frechet_distance_of_features(real[:n], real[n:]) == pytest.approx(
        (d + d * (d + 1) / 4) * (1 / 400 + 1 / 2600), rel=0.2
    )
