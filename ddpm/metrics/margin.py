"""How far could a score be off, because the subjects happened to be these? The delete-half jackknife over subjects.

Shao & Wu 1989, "A General Theory for Jackknife Variance Estimation". Half of the subjects, drawn without replacement,
scatter about the whole as the whole scatters about the truth. Unlike the bootstrap it repeats no row, which a distance to
the nearest neighbour, or a Frechet distance, would take for a narrower distribution. And it takes or leaves a subject
with all of its slices: they resemble each other, so ten subjects are ten observations, however many slices they have.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import betaincinv, stdtrit

from ddpm import UserError
from ddpm.seeds import generator


def margin(statistic: Callable, *sides, rounds: int = 100, seed: int = 0):
    """Half of the 95 % interval of statistic(*arrays): Student's t times the standard deviation over random halves.

    sides: for each argument of the statistic (array, subjects), rows (N, ...) and whose they are (N,). Each side is
    halved on its own, subject by subject; of an odd number one more is taken every other time. Student's t has as many
    degrees of freedom as the smallest side has subjects, less one. A float, or an array (K,) if the statistic has K
    values; None if a side has one subject, or if a half is too small for the statistic: nothing is known.
    """
    sides = [(np.asarray(array), *np.unique(subjects, return_inverse=True)) for array, subjects in sides]
    fewest = min(len(names) for _, names, _ in sides)
    if fewest < 2:
        return None
    rng = generator(seed)
    values = []
    for r in range(rounds):
        halves = []
        for array, names, number in sides:
            taken = np.zeros(len(names), dtype=bool)
            taken[rng.permutation(len(names))[: (len(names) + r % 2) // 2]] = True
            halves.append(array[taken[number]])
        try:
            values.append(statistic(*halves))
        except UserError:
            return None
    half = stdtrit(fewest - 1, 0.975) * np.std(values, axis=0, ddof=1)
    return float(half) if half.ndim == 0 else half


def share_interval(right: np.ndarray, subjects: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """The 95 % interval of a share, the mean of right (N,) bool: Clopper and Pearson's, for as many independent images as
    the subjects (N,) are worth. It does not end at the share where that is 0 or 1. None if there is one subject."""
    share, n, known = float(np.mean(right)), len(right), len(np.unique(subjects))
    if known < 2:
        return None
    # Images of one subject are right or wrong together: as many independent ones as have an interval as wide.
    worth, alone = n, 1.96 * (share * (1 - share) / n) ** 0.5
    if known < n:
        worth = n / max((margin(np.mean, (right, subjects), seed=seed) / alone) ** 2, 1) if alone else known
    return clopper_pearson(share * worth, worth)


def clopper_pearson(correct: float, n: float) -> tuple[float, float]:
    """The exact 95 % interval for a probability after `correct` of n trials (Clopper & Pearson 1934).

    Its ends are the probabilities at which so many, or so few, would be seen in 2.5 % of all cases.
    """
    tail = 0.025
    low = betaincinv(correct, n - correct + 1, tail) if correct > 0 else 0.0
    high = betaincinv(correct + 1, n - correct, 1 - tail) if correct < n else 1.0
    return float(low), float(high)
