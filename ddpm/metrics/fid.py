"""The Fréchet distance between two sets of features, known as FID when the features are Inception's.

Heusel et al. 2017, arXiv:1706.08500, Eq. 6: fit a Gaussian to each set and take the Fréchet (2-Wasserstein) distance,

    d^2 = |mu_1 - mu_2|^2 + tr(cov_1 + cov_2 - 2 (cov_1 cov_2)^(1/2)).

The root is computed twice, in independent ways. `frechet_distance` takes it literally. The fast way needs no root:
with factors cov_i = F_i F_i^T, the eigenvalues of cov_1 cov_2 are the squared singular values of F_1^T F_2, so

    tr (cov_1 cov_2)^(1/2) = sum of the singular values of F_1^T F_2,

and a factor is cheap: a Cholesky factor, or simply the centred features themselves when there are few of them.

The value falls as the number of samples N grows, roughly as FID_infinity + C / N, where C depends on the model: never
compare values of different N. `fid_infinity` shows how much of a value that is, and so does the distance between as
many real images and others.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from ddpm import UserError
from ddpm.metrics.checks import feature_sets, require_finite


def frechet_distance(mu_1, cov_1, mu_2, cov_2) -> float:
    """d^2 of two Gaussians as the equation has it, by the square root of the product; mu (D,), cov (D, D).

    Rounding, or a singular covariance, can leave a root that is not finite (then, as is usual, 1e-6 I is added to
    both covariances) or slightly complex (the imaginary part is dropped). So a singular case is right to about 1e-6 of
    the traces, or 1e-3 if the identity was added. The result can be negative by rounding.
    Raises UserError on NaN, and if the imaginary part is large: then a matrix is no covariance.
    """
    mu_1, cov_1, mu_2, cov_2 = gaussians(mu_1, cov_1, mu_2, cov_2)
    root = sqrtm(cov_1 @ cov_2)
    if not np.isfinite(root).all():
        offset = 1e-6 * np.eye(len(mu_1))
        root = sqrtm((cov_1 + offset) @ (cov_2 + offset))
    diagonal = np.diagonal(root)
    if np.abs(diagonal.imag).max() > 1e-3 * np.abs(diagonal.real).max():
        raise UserError(
            f"the root of the product of the covariances is complex (imaginary part {np.abs(diagonal.imag).max():.2g}): "
            "one of them has negative eigenvalues; compute the statistics again"
        )
    return float(((mu_1 - mu_2) ** 2).sum() + np.trace(cov_1) + np.trace(cov_2) - 2 * diagonal.real.sum())


def frechet_distance_by_factors(mu_1, cov_1, mu_2, cov_2) -> float:
    """The same d^2 by factors of the covariances, about eight times faster at D = 2048. Arguments as above.

    Raises UserError on NaN, and on a matrix that is no covariance because an eigenvalue is negative.
    """
    mu_1, cov_1, mu_2, cov_2 = (torch.from_numpy(array) for array in gaussians(mu_1, cov_1, mu_2, cov_2))
    return distance_of_factors(mu_1, covariance_factor(cov_1), mu_2, covariance_factor(cov_2))


def frechet_distance_of_features(features_1, features_2) -> float:
    """d^2 of two sets of features (N_1, D) and (N_2, D), each at least two samples. This is the one to call.

    A set of N <= D samples never has its covariance formed: it would be singular, and the centred features are a
    smaller factor of it. Then the singular values of a matrix N_1 x N_2 (or N x D) give the root, without the noise of
    sqrt(rounding) that each zero eigenvalue of a singular product leaves.
    With more samples than features on both sides it is `frechet_distance_by_factors` of the two covariances.
    Tests hold all three ways to the same value.
    """
    features_1, features_2 = feature_sets(features_1, features_2)
    return distance_of_factors(*mean_and_factor(features_1), *mean_and_factor(features_2))


def gaussians(mu_1, cov_1, mu_2, cov_2) -> list[np.ndarray]:
    """The four arrays in float64, checked: ValueError for a wrong shape, UserError for NaN or infinity."""
    arrays = [np.ascontiguousarray(array, dtype=np.float64) for array in (mu_1, cov_1, mu_2, cov_2)]
    D = arrays[0].size
    if [array.shape for array in arrays] != [(D,), (D, D)] * 2:
        raise ValueError(f"shapes {[array.shape for array in arrays]} instead of (D,), (D, D), (D,), (D, D)")
    for name, array in zip(("first mean", "first covariance", "second mean", "second covariance"), arrays, strict=True):
        require_finite(f"the {name}", array)
    return arrays


def distance_of_factors(mu_1: Tensor, factor_1: Tensor, mu_2: Tensor, factor_2: Tensor) -> float:
    """d^2 of two Gaussians with cov_i = factor_i factor_i^T; mu (D,), factors (D, K_1) and (D, K_2), float64."""
    product = factor_1.T @ factor_2  # (K_1, K_2)
    if min(product.shape) < len(mu_1):
        root = torch.linalg.svdvals(product).sum()
    else:
        # Half the work; and what squaring costs, all digits of singular values below 1e-8 of the largest, is not
        # much, because in a covariance of full rank those are few.
        root = torch.linalg.eigvalsh(product @ product.T).clamp(min=0).sqrt().sum()
    traces = factor_1.square().sum() + factor_2.square().sum()
    return ((mu_1 - mu_2).square().sum() + traces - 2 * root).item()


def covariance_factor(cov: Tensor) -> Tensor:
    """F (D, K) with F F^T = cov (D, D): the Cholesky factor, or for a singular cov, where that fails, the scaled
    eigenvectors of its K positive eigenvalues. Raises UserError if an eigenvalue is negative beyond rounding."""
    cholesky, failed = torch.linalg.cholesky_ex(cov)
    if not failed:
        return cholesky
    values, vectors = torch.linalg.eigh(cov)
    largest = values.abs().max().item()
    if values[0].item() < -1e-5 * largest:  # more than even a file in float32 explains
        raise UserError(
            f"a covariance has an eigenvalue of {values[0].item():.2g} beside one of {largest:.2g}, and none can be "
            "negative; compute the statistics again"
        )
    positive = values > len(cov) * torch.finfo(cov.dtype).eps * largest
    return vectors[:, positive] * values[positive].sqrt()


def mean_and_factor(features: np.ndarray) -> tuple[Tensor, Tensor]:
    """The mean (D,) of checked features (N, D), and a factor (D, min(N, D)) of their unbiased covariance."""
    N, D = features.shape
    mu = features.mean(axis=0)
    centred = features - mu  # sums of squares instead would lose all digits where the mean is large beside the spread
    if N <= D:
        return torch.from_numpy(mu), torch.from_numpy(centred).T / (N - 1) ** 0.5
    return torch.from_numpy(mu), covariance_factor(torch.from_numpy(centred.T @ centred / (N - 1)))


class Extrapolation(NamedTuple):
    fid_infinity: float  # where the line meets 1 / N = 0
    slope: float  # C
    sizes: np.ndarray  # the values of N, rising; the last is all samples
    values: np.ndarray  # the distance at each of them


def fid_infinity(features, reference, sizes: int = 15, seed: int = 0) -> Extrapolation:
    """What the distance of `features` (N, D) to `reference` (M, D) would be with infinitely many samples.

    Chong & Forsyth 2020, arXiv:1911.07023: the distance at several N, on random subsets, is a straight line in 1 / N,
    whose intercept is the answer. Their sizes run from a tenth to all of the samples, evenly; so do these, but no
    lower than D (if half of the samples are as many), since below it the line bends.

    The reference stays whole and finite, so what *its* finite size adds remains in the result.
    Raises UserError with fewer than ten samples in either set.
    """
    features, reference = feature_sets(features, reference, at_least=10)
    N, D = features.shape
    smallest = max(N // 10, min(D, N // 2), 2)
    counts = np.unique(np.linspace(smallest, N, sizes).astype(int))
    rng = np.random.default_rng(seed)
    fixed = mean_and_factor(reference)
    values = np.array([distance_of_factors(*mean_and_factor(features[rng.permutation(N)[:n]]), *fixed) for n in counts])
    slope, intercept = np.polyfit(1 / counts, values, deg=1)
    return Extrapolation(float(intercept), float(slope), counts, values)
