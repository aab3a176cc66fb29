"""MMD with a cubic and with a Gaussian kernel: published values, loops over pairs, no bias."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.metrics import kid as module
from ddpm.metrics.kid import cmmd, gaussian_mmd, kid, median_distance

X = np.arange(12).reshape(4, 3) / 10
Y = 0.5 * X[::-1] + 0.2


def test_kid_has_the_published_values():
    assert kid(X, Y)[0] == pytest.approx(-0.2232961560, rel=1e-9)
    assert kid(X, X)[0] == pytest.approx(-0.622738, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_kid_is_the_sum_over_pairs(n, d, seed):
    x, y = np.random.default_rng(seed).normal(size=(2, n, d))

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / d + 1) ** 3

    different = [(i, j) for i in range(n) for j in range(n) if i != j]
    expected = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in different) / (n * (n - 1))
    expected -= 2 * sum(k(a, b) for a in x for b in y) / n**2
    mean, std = kid(x, y)
    assert mean == pytest.approx(expected, rel=1e-9, abs=1e-9) and std == 0


def test_kid_has_no_bias_in_n():
    """Two sets of one distribution: the mean over many small draws is 0 within four standard errors. The plain
    estimate, which counts each row with itself, is far above."""
    rng = np.random.default_rng(0)
    values = [kid(rng.normal(size=(10, 4)), rng.normal(size=(10, 4)))[0] for _ in range(3000)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error < 0.2 < module.cubic(np.ones((1, 4)), np.ones((1, 4)))[0, 0] / 10


def slices_of(subjects: int, slices: int, rng) -> np.ndarray:
    """Rows of N(0, I), those of a subject alike."""
    return 0.84 * rng.normal(size=(subjects, 1, 4)).repeat(slices, 1).reshape(-1, 4) + 0.54 * rng.normal(
        size=(subjects * slices, 4)
    )


def test_slices_of_a_subject_add_no_bias():
    """Taken for independent they do: E k(x, x') is then larger within a set than between two."""
    rng, whose = np.random.default_rng(0), np.repeat(np.arange(10), 5)
    of = {"of_a": whose, "of_b": whose}
    draws = [(slices_of(10, 5, rng), slices_of(10, 5, rng)) for _ in range(600)]
    for distance in (lambda a, b, **of: kid(a, b, **of)[0], lambda a, b, **of: gaussian_mmd(a, b, 2.0, **of)):
        right, naive = ([distance(a, b, **which) for a, b in draws] for which in (of, {}))
        error = np.std(right) / np.sqrt(len(right))
        assert abs(np.mean(right)) < 4 * error and np.mean(naive) > 10 * error


@pytest.mark.parametrize("block", [3, 1024])
def test_with_subjects_the_pairs_are_of_two(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    rng = np.random.default_rng(0)
    a, b, of_a, of_b = rng.normal(size=(7, 2)), rng.normal(size=(5, 2)), np.array([3, 3, 0, 1, 0, 3, 9]), np.arange(5)

    def expected(k):
        pairs = [[(p, q) for p, s in zip(x, of, strict=True) for q, t in zip(x, of, strict=True) if s != t]
                 for x, of in ((a, of_a), (b, of_b))]  # fmt: skip
        return sum(np.mean([k(p, q) for p, q in one]) for one in pairs) - 2 * np.mean([k(p, q) for p in a for q in b])

    got = gaussian_mmd(a, b, 0.7, 1.0, of_a, of_b)
    assert got == pytest.approx(expected(lambda p, q: np.exp(-((p - q) ** 2).sum() / (2 * 0.7**2))))
    got = kid(a[:5], b, of_a=of_a[:5], of_b=of_b)[0]
    a, of_a = a[:5], of_a[:5]
    assert got == pytest.approx(expected(lambda p, q: (p @ q / 2 + 1) ** 3))


def test_of_one_subject_its_rows_are_taken_for_others():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 3))
    assert kid(a, b, of_a=np.zeros(6), of_b=np.arange(6)) == kid(a, b)
    assert gaussian_mmd(a, b, 1.0, of_a=np.zeros(6)) == gaussian_mmd(a, b, 1.0)
    mostly_one = np.arange(6) == 5  # many subsets of three rows are of one subject
    assert np.isfinite(kid(a, b, subset_size=3, of_a=mostly_one, of_b=mostly_one)).all()


def test_kid_of_two_gaussians_has_a_closed_form():
    """In one dimension k = (x y + 1)^3 = sum over j of (3 choose j) x^j y^j, so MMD^2 is the sum of
    (3 choose j) (difference of the j-th moments)^2. N(0, 1) has moments 0, 1, 0; N(1, 1) has 1, 2, 4."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (60_000, 1)), rng.normal(1, 1, (60_000, 1))
    mean, std = kid(x, y, subsets=150, subset_size=500)
    assert mean == pytest.approx(3 * 1 + 3 * 1 + 16, abs=4 * std / np.sqrt(150))


def test_subsets_are_of_the_size_that_was_asked_for_or_of_the_smaller_set(monkeypatch):
    shapes = []
    cubic = module.cubic
    monkeypatch.setattr(module, "cubic", lambda x, y: shapes.append((len(x), len(y))) or cubic(x, y))
    x, y = np.random.default_rng(0).normal(size=(30, 2)), np.random.default_rng(1).normal(size=(20, 2))
    assert kid(x, y, subsets=5, subset_size=8)[1] > 0
    assert shapes == [(8, 8)] * 15
    for one, other in ((x, y), (y, x)):
        shapes.clear()
        kid(one, other, subsets=5, subset_size=1000)
        assert shapes == [(20, 20)] * 15


def test_unless_told_otherwise_there_are_100_subsets_of_1000_and_the_seed_is_0(monkeypatch):
    """As in the paper. A kernel that looks at one row of each is enough to tell the draws apart."""
    shapes = []
    monkeypatch.setattr(
        module, "cubic", lambda x, y: shapes.append((len(x), len(y))) or np.broadcast_to(x[:1] * y[:1], shapes[-1])
    )
    x, y = np.arange(1100.0)[:, None], np.arange(1200.0)[:, None]
    assert kid(x, y) == kid(x, y, subsets=100, subset_size=1000, seed=0)
    assert shapes == [(1000, 1000)] * 600


def test_rows_of_a_subset_differ_and_a_seed_repeats_it():
    x, y = np.arange(20.0)[:, None], np.arange(15.0)[:, None]
    seen = []

    def recording(a, b):
        seen.append((a, b))
        return np.zeros((len(a), len(b)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "cubic", recording)
        kid(x, y, subsets=10, subset_size=15)
    assert all(len(np.unique(a)) == 15 for a, _ in seen)
    assert len({tuple(a.ravel()) for a, _ in seen}) > 10  # subsets of x, and of y, in ever new order
    a, b = np.random.default_rng(0).normal(size=(2, 50, 3))
    assert kid(a, b, subset_size=10, seed=1) == kid(a, b, subset_size=10, seed=1) != kid(a, b, subset_size=10, seed=2)


def test_a_subset_size_of_one_is_a_mistake():
    with pytest.raises(ValueError, match="subset_size is 1"):
        kid(X, Y, subset_size=1)


def test_cmmd_has_the_published_values():
    assert cmmd([[1.0, 0]], [[0, 1.0]]) == pytest.approx(19.9003325, rel=1e-8)
    assert cmmd([[1.0, 0]], [[-1.0, 0]]) == pytest.approx(39.6026534, rel=1e-8)
    assert cmmd([[5.0, 0]], [[0, 0.1]]) == pytest.approx(19.9003325, rel=1e-8)  # length does not count


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.sampled_from([0.3, 10.0]), st.integers(0, 2**32 - 1))
def test_cmmd_is_the_mean_over_pairs_whatever_the_blocks(n, m, sigma, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 3)), rng.normal(size=(m, 3))
    u, v = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))

    def mean(a, b):
        return np.mean([np.exp(-((p - q) ** 2).sum() / (2 * sigma**2)) for p in a for q in b])

    expected = 7 * (mean(u, u) + mean(v, v) - 2 * mean(u, v))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", 3)
        assert cmmd(x, y, sigma=sigma, scale=7.0) == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_cmmd_of_equal_sets_is_zero_and_never_negative():
    x = np.random.default_rng(0).normal(size=(50, 4))
    assert cmmd(x, x) == 0
    assert cmmd(x, x[::-1]) == pytest.approx(0, abs=1e-9)
    assert cmmd(x, x[:25]) > 0


def test_a_row_without_direction_stays_zero():
    """|0 - e|^2 = 1."""
    assert cmmd([[0.0, 0]], [[0, 3.0]]) == pytest.approx(2000 * (1 - np.exp(-1 / 200)), rel=1e-9)


def test_the_median_bandwidth_sees_what_cmmds_does_not():
    """60 of 64 dimensions collapsed: to rows of length 1 under a kernel of width 10 that is next to nothing."""
    rng = np.random.default_rng(0)
    real, alike, collapsed = rng.normal(size=(3, 500, 64))
    collapsed[:, 4:] *= 0.01
    sigma = median_distance(real)
    assert sigma == pytest.approx(np.sqrt(2 * 64), rel=0.02)
    blind = cmmd(collapsed, real) / cmmd(alike, real)
    assert gaussian_mmd(collapsed, real, sigma) > 100 * abs(gaussian_mmd(alike, real, sigma)) and blind < 5


def test_the_gaussian_mmd_has_no_bias_and_a_closed_form():
    """E exp(-(x - y)^2 / (2 s^2)) = s / sqrt(s^2 + 2) exp(-d^2 / (2 (s^2 + 2))) for N(0, 1) and N(d, 1)."""
    rng = np.random.default_rng(0)
    values = [gaussian_mmd(*rng.normal(size=(2, 10, 2)), sigma=2.0) for _ in range(2000)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(2000)
    x, y = rng.normal(0, 1, (4000, 1)), rng.normal(1, 1, (4000, 1))
    expected = 2 * 2 / np.sqrt(6) * (1 - np.exp(-1 / 12))
    assert gaussian_mmd(x, y, sigma=2.0, scale=1.0) == pytest.approx(expected, rel=0.1)
    assert gaussian_mmd(x, y, sigma=2.0) == pytest.approx(1000 * gaussian_mmd(x, y, sigma=2.0, scale=1.0))


def test_the_median_is_taken_over_pairs_of_different_rows():
    assert median_distance([[0.0], [1], [3]]) == 2  # 1, 2, 3
    assert median_distance(np.arange(5000.0)[:, None], most=3) == 2500  # rows 0, 2499, 4999
    many = np.random.default_rng(0).normal(size=(1500, 2))
    assert median_distance(many) == median_distance(many, most=1000) != median_distance(many, most=1001)
