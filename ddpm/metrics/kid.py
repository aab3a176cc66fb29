"""Maximum mean discrepancy (MMD) between two sets of features: no Gaussian is fitted, and KID has no bias in N.

MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y) for a kernel k (Gretton et al. 2012). KID takes a cubic polynomial and
the unbiased estimate; CMMD a Gaussian and the plain one. What a Gaussian kernel sees is a matter of its bandwidth sigma:
far wider than the rows are apart, exp(-d^2 / (2 sigma^2)) is 1 - d^2 / (2 sigma^2), and MMD^2 no more than the distance of
the means. So it is with CMMD's sigma of 10 on rows of length 1. The median of the distances sees the shape as well.
"""

import numpy as np
from scipy.spatial.distance import pdist

from ddpm.metrics.checks import feature_sets

BLOCK = 1024  # rows of a kernel matrix that are in memory at once


def kid(
    features_a, features_b, subsets: int = 100, subset_size: int = 1000, seed: int = 0, of_a=None, of_b=None
) -> tuple[float, float]:
    """Kernel Inception Distance, Bińkowski et al. 2018, arXiv:1801.01401, section 4: (mean, std) over random subsets.

    features (N_a, D) and (N_b, D); a subset is min(N_a, N_b, subset_size) rows of each, without repetition.
    of_a (N_a,), of_b (N_b,): whose image each row is of (default: each another's). Slices of a subject resemble each other,
    and their pairs would count that as a distance: within a set, pairs of different subjects count.
    The mean is unbiased, hence below 0 now and then if the two sets are alike. The std is that of one subset's value,
    not an error of the mean; and if a subset is all rows of both, there is only one, and the std is 0.
    Raises UserError on NaN, or fewer than two samples.
    """
    a, b = feature_sets(features_a, features_b)
    m = min(len(a), len(b), subset_size)
    if m < 2:
        raise ValueError(f"subset_size is {subset_size}; an unbiased estimate takes at least 2")
    if m == len(a) == len(b):
        subsets = 1
    of_a, of_b = whose(a, of_a), whose(b, of_b)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        i, j = rng.permutation(len(a))[:m], rng.permutation(len(b))[:m]
        k_xx, k_yy, k_xy = cubic(a[i], a[i]), cubic(b[j], b[j]), cubic(a[i], b[j])
        within = k_xx[apart(whose(i, of_a[i]))].mean() + k_yy[apart(whose(j, of_b[j]))].mean()
        values.append(within - 2 * k_xy.mean())
    return float(np.mean(values)), float(np.std(values))


def whose(rows: np.ndarray, subjects) -> np.ndarray:
    """The subject of each row, a number; without subjects each row is another's. Where all are one subject's, nothing is
    known of others: then its rows count as others' would."""
    if subjects is None or len(np.unique(subjects)) == 1:
        return np.arange(len(rows))
    return np.asarray(subjects)


def apart(subjects: np.ndarray) -> np.ndarray:
    """Which pairs of rows are of two subjects, (N, N) bool."""
    return subjects[:, None] != subjects


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """k(x, y) = (x . y / D + 1)^3 for all pairs of rows: (N, D), (M, D) -> (N, M)."""
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # much faster than base**3


def gaussian_mmd(features_a, features_b, sigma: float, scale: float = 1000.0, of_a=None, of_b=None) -> float:
    """`scale` times the unbiased MMD^2 with k = exp(-|x - y|^2 / (2 sigma^2)), Gretton et al. 2012, Eq. 3; features
    (N_a, D) and (N_b, D). Below 0 now and then if the two sets are alike. of_a, of_b: as for `kid`. Raises UserError on
    NaN, or fewer than two samples."""
    a, b = feature_sets(features_a, features_b)
    within = sum(mean_gaussian(x, x, sigma, whose(x, of)) for x, of in ((a, of_a), (b, of_b)))
    return scale * (within - 2 * mean_gaussian(a, b, sigma))


def median_distance(features, most: int = 1000) -> float:
    """The median distance between two different rows of the features (N, D), the usual bandwidth (Gretton et al. 2012,
    section 8); of `most` rows, evenly taken, if there are more."""
    [x] = feature_sets(features)
    x = x[np.linspace(0, len(x) - 1, min(most, len(x))).astype(int)]
    return float(np.median(pdist(x)))


def cmmd(features_a, features_b, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """CMMD's distance, Jayasumana et al. 2024, arXiv:2401.09603, on any features (theirs are CLIP's).

    As in the authors' code, the features are scaled to length 1, k = exp(-|x - y|^2 / (2 sigma^2)), each pair counts,
    a row with itself too (so the value is never negative, and 0 for equal sets, but slightly biased), and the result
    is multiplied by `scale`. A row of zeros, which has no direction, stays as it is.
    Raises UserError on NaN, or an empty set.
    """
    a, b = (unit_rows(features) for features in feature_sets(features_a, features_b, at_least=1))
    value = mean_gaussian(a, a, sigma) + mean_gaussian(b, b, sigma) - 2 * mean_gaussian(a, b, sigma)
    return scale * value


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Each row of x (N, D) divided by its length."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def mean_gaussian(x: np.ndarray, y: np.ndarray, sigma: float, subjects=None) -> float:
    """The mean of exp(-|x - y|^2 / (2 sigma^2)) over all pairs of rows, a block of rows of x at a time; with subjects, of
    x and y alike, over the pairs of two of them."""
    total, pairs = 0.0, 0
    for start in range(0, len(x), BLOCK):
        part = x[start : start + BLOCK]
        squared = (part**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * part @ y.T
        k = np.exp(-squared / (2 * sigma**2))
        if subjects is not None:
            k = k[subjects[start : start + BLOCK, None] != subjects]
        total, pairs = total + k.sum(), pairs + k.size
    return float(total / pairs)
