"""Maximum mean discrepancy (MMD) between two sets of features: no Gaussian is fitted, and KID has no bias in N.

MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y) for a kernel k (Gretton et al. 2012). KID takes a cubic polynomial and
the unbiased estimate; CMMD a Gaussian and the plain one.
"""

import numpy as np

from ddpm.metrics.checks import feature_sets

BLOCK = 1024  # rows of a kernel matrix that are in memory at once


def kid(features_a, features_b, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Kernel Inception Distance, Bińkowski et al. 2018, arXiv:1801.01401, section 4: (mean, std) over random subsets.

    features (N_a, D) and (N_b, D); a subset is min(N_a, N_b, subset_size) rows of each, without repetition.
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
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        x, y = a[rng.permutation(len(a))[:m]], b[rng.permutation(len(b))[:m]]
        k_xx, k_yy, k_xy = cubic(x, x), cubic(y, y), cubic(x, y)
        within = (k_xx.sum() - np.trace(k_xx) + k_yy.sum() - np.trace(k_yy)) / (m * (m - 1))  # pairs x != x' only
        values.append(within - 2 * k_xy.mean())
    return float(np.mean(values)), float(np.std(values))


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """k(x, y) = (x . y / D + 1)^3 for all pairs of rows: (N, D), (M, D) -> (N, M)."""
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # much faster than base**3


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


def mean_gaussian(x: np.ndarray, y: np.ndarray, sigma: float) -> float:
    """The mean of exp(-|x - y|^2 / (2 sigma^2)) over all pairs of rows, a block of rows of x at a time."""
    total = 0.0
    for start in range(0, len(x), BLOCK):
        part = x[start : start + BLOCK]
        squared = (part**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * part @ y.T
        total += np.exp(-squared / (2 * sigma**2)).sum()
    return float(total / (len(x) * len(y)))
