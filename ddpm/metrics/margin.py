"""How far could a score be off, because the subjects happened to be these? The delete-half jackknife over subjects.

Shao & Wu 1989, "A General Theory for Jackknife Variance Estimation". Half of the subjects, drawn without replacement,
scatter about the whole as the whole scatters about the truth. Unlike the bootstrap it repeats no row, which a distance to
the nearest neighbour, or a Frechet distance, would take for a narrower distribution. And it takes or leaves a subject
with all of its slices: they resemble each other, so ten subjects are ten observations, however many slices they have.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import stdtrit

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
