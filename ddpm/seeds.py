"""Stateless randomness: what is drawn is a function of numbers such as (seed, step), not of what was drawn before.

Numbers are mixed, never added up: seed 0 at step 1 would then be seed 1 at step 0. (Zeros at the end do not count, and a
number of 2**32 or more is two: so where numbers shall differ, give equally many, and smaller ones.)
"""

import numpy as np
from numpy.random import SeedSequence


def generator(*numbers: int) -> np.random.Generator:
    """NumPy's random generator of these numbers, each of them 0 or more."""
    return np.random.default_rng(numbers)


def torch_seed(*numbers: int) -> int:
    """A seed for torch.manual_seed made from these numbers."""
    return int(SeedSequence(numbers).generate_state(1)[0])
