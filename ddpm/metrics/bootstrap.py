"""How far could a score be off, because the samples happened to be these? The percentile bootstrap.

Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
"""

from collections.abc import Callable

import numpy as np


def interval(statistic: Callable[..., float], *samples, rounds: int = 200, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval (low, high) of statistic(*samples), from `rounds` sets drawn with replacement.

    samples: arrays (N_i, ...), whose rows are independent draws. Each array is resampled by rows, on its own, to its
    own length; arrays that are paired row by row must therefore come as one array.

    A statistic that falls with N, such as FID, falls with the number of *different* rows, of which a resampled set
    has 63 %: its interval lies too high.
    """
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(sample) for sample in samples]
    values = [statistic(*(array[rng.integers(0, len(array), len(array))] for array in arrays)) for _ in range(rounds)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
