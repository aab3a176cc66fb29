"""The Inception Score, for the sake of comparison with old tables. It says nothing about MRI.

It asks whether a classifier of ImageNet's photographs is sure of each image and unsure over all of them. A slice of a
brain is none of its classes, so its certainty is an accident of texture; real images are never looked at, so a model
that draws sharp nonsense in many kinds scores well; and one that draws only perfect brains scores near 1.
"""

import numpy as np
from scipy.special import rel_entr

from ddpm import UserError
from ddpm.metrics.checks import feature_sets

CAVEAT = "The Inception Score never looks at real images, and its classes are ImageNet's: it says nothing about MRI."


def inception_score(probabilities, splits: int = 10) -> tuple[float, float]:
    """exp(mean over x of KL(p(y|x) || p(y))), Salimans et al. 2016, arXiv:1606.03498, section 4: (mean, std) over
    `splits` parts of the samples, p(y) being the mean within a part. From 1 to K.

    probabilities (N, K), rows that sum to 1, in random order: the parts are consecutive rows.
    Raises UserError on NaN or fewer than `splits` samples; ValueError if rows are no probabilities.
    """
    if splits < 1:
        raise UserError(f"the Inception Score of {splits} parts; it takes at least 1")
    [p] = feature_sets(probabilities, at_least=splits)
    if (p < 0).any() or not np.allclose(p.sum(axis=1), 1, atol=1e-3):  # float16 softmax is off by that much
        raise ValueError("rows must be probabilities that sum to 1, not logits")
    parts = np.split(p, [i * len(p) // splits for i in range(1, splits)])
    scores = [np.exp(rel_entr(part, part.mean(axis=0)).sum(axis=1).mean()) for part in parts]
    return float(np.mean(scores)), float(np.std(scores))
