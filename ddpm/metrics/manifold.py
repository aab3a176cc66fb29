"""Neighbours: are the samples where the real images are, are they everywhere there, and are they copies?

All distances are Euclidean and exact. They are summed from differences, not from |x|^2 + |y|^2 - 2 x.y: that is ten
times faster, but a copy would not lie at 0, and equal distances would differ by rounding, where "<" has to tell them
apart.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm import UserError
from ddpm.metrics.checks import feature_sets

BLOCK = 256  # rows of a distance matrix that are in memory at once


class Manifold(NamedTuple):
    precision: float  # share of samples inside the real manifold
    recall: float  # share of real images inside the samples' manifold
    density: float  # real balls that hold a sample, per sample, over k; 1 if the distributions are equal
    coverage: float  # share of real balls that hold a sample


def precision_recall_density_coverage(real, fake, k: int = 5) -> Manifold:
    """Fidelity and diversity apart: Naeem et al. 2020, arXiv:2002.09797.

    A set's manifold is the union of balls around its points, each reaching to the point's k-th nearest neighbour in
    its own set (the point itself not counted); inside is strictly less. Precision and recall are those of Kynkäänniemi
    et al. 2019, arXiv:1904.06991, which one outlier with its large ball can spoil; density and coverage mend that.
    Only density can exceed 1. real (N, D), fake (M, D); more than k samples in each, else UserError.
    """
    if k < 1:
        raise UserError(f"k is {k}; it must be at least 1")
    real, fake = map(torch.from_numpy, feature_sets(real, fake, at_least=k + 1))
    real_radius, fake_radius = radii(real, k), radii(fake, k)
    inside_real = torch.zeros(len(fake), dtype=torch.bool)
    balls, recalled, covered = 0, 0, 0
    for rows, distance in distances(real, fake):  # (block, M)
        holds = distance < real_radius[rows, None]
        inside_real |= holds.any(dim=0)
        balls += holds.sum().item()
        covered += holds.any(dim=1).sum().item()
        recalled += (distance < fake_radius).any(dim=1).sum().item()
    precision, recall = inside_real.double().mean().item(), recalled / len(real)
    density, coverage = balls / (k * len(fake)), covered / len(real)
    return Manifold(precision, recall, density, coverage)


def nearest(queries, references) -> tuple[np.ndarray, np.ndarray]:
    """The nearest reference (N, D) of each query (M, D): distances (M,) float64, indices (M,) int64.

    Exact, yet as fast as the expanded form: that one proposes eight candidates for each query, which is more than its
    rounding can confuse (more than eight equal images apart: then any of them), and differences decide between them.
    Raises UserError on NaN, or an empty set.
    """
    queries, references = map(torch.from_numpy, feature_sets(queries, references, at_least=1))
    centre = references.mean(dim=0)  # the less to cancel, the less rounding
    centred = references - centre
    squares = centred.square().sum(dim=1)
    found = []
    for part in queries.split(BLOCK):
        closeness = 2 * (part - centre) @ centred.T - squares  # |q|^2 - |q - r|^2, (block, N)
        candidates = closeness.topk(min(8, len(references)), dim=1).indices.sort(dim=1).values
        distance = torch.stack([(part - references[column]).square().sum(dim=1).sqrt() for column in candidates.T], 1)
        best = distance.min(dim=1)
        found.append((best.values, candidates.gather(1, best.indices[:, None])[:, 0]))
    return tuple(torch.cat(column).numpy() for column in zip(*found, strict=True))


def memorisation(to_fake: np.ndarray, to_held_out: np.ndarray) -> float:
    """Are samples nearer to the training set than new real images are? 0.5 is the goal, 1 means copies.

    to_fake (M,), to_held_out (N,): the distance of each sample, and of each held-out real image, to its nearest
    training image, as `nearest` gives them; the held-out images must share no subject with the training set.

    The probability that a sample's distance is smaller than a held-out real image's, P(a < b) + P(a = b) / 2 over all
    pairs: the Mann-Whitney statistic, as Meehan et al. 2020, arXiv:2004.05675, ask it. Near 0, samples are farther from
    the training set than real images: not copies, but no real images either.
    """
    b = np.sort(to_held_out)
    below, up_to = np.searchsorted(b, to_fake, side="left"), np.searchsorted(b, to_fake, side="right")
    return float(1 - (below + up_to).mean() / (2 * len(b)))


def radii(points: Tensor, k: int) -> Tensor:
    """The distance of each point (N, D) to its k-th nearest other point, (N,)."""
    # the (k+1)-th smallest of a row: the point itself, at exactly 0, is one of them
    return torch.cat([distance.kthvalue(k + 1, dim=1).values for _, distance in distances(points, points)])


def distances(queries: Tensor, references: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields (rows, distances of those queries to all references), (block, N), block by block."""
    for start in range(0, len(queries), BLOCK):
        rows = slice(start, start + BLOCK)
        yield rows, torch.cdist(queries[rows], references, compute_mode="donot_use_mm_for_euclid_dist")
