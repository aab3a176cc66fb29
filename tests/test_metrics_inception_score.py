"""The Inception Score of distributions whose score is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm import UserError
from ddpm.metrics.inception_score import inception_score


def test_published_values():
    one_hot = np.tile(np.eye(5), (20, 1))
    assert inception_score(one_hot) == pytest.approx((5, 0), abs=1e-12)
    assert inception_score(np.full((30, 7), 1 / 7)) == pytest.approx((1, 0), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_it_is_exp_of_mutual_information(classes, n, seed):
    """In one part: H(y) - H(y | x), the entropy of the mean less the mean entropy; between 1 and K."""
    p = np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), n)

    def entropy(q):
        q = q[q > 0]
        return -(q * np.log(q)).sum()

    mean, std = inception_score(p, splits=1)
    assert mean == pytest.approx(np.exp(entropy(p.mean(axis=0)) - np.mean([entropy(q) for q in p])), rel=1e-9)
    assert std == 0 and 1 - 1e-12 <= mean <= classes + 1e-9


def test_parts_are_consecutive_and_hold_every_sample_once():
    """17 samples in 3 parts: 5, 6 and 6 rows, each part with as many classes as said, hence scores 1, 2 and 3."""
    labels = [0] * 5 + [0, 1] * 3 + [0, 1, 2] * 2
    mean, std = inception_score(np.eye(3)[labels], splits=3)
    assert mean == pytest.approx(2) and std == pytest.approx(np.sqrt(2 / 3))


def test_bad_input():
    with pytest.raises(UserError, match="too few samples, 9 where.*at least 10"):
        inception_score(np.full((9, 2), 0.5))
    with pytest.raises(UserError, match="0 parts"):
        inception_score(np.full((9, 2), 0.5), splits=0)
    for logits in (np.full((20, 2), 0.4), np.tile([1.5, -0.5], (20, 1))):
        with pytest.raises(ValueError, match="logits"):
            inception_score(logits)
