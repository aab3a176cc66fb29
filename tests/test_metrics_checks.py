"""Bad features end in one line that names the set, in every metric that takes features."""

import numpy as np
import pytest
import torch

from ddpm import UserError
from ddpm.metrics.checks import feature_sets, require_finite
from ddpm.metrics.fid import fid_infinity, frechet_distance_of_features
from ddpm.metrics.inception_score import inception_score
from ddpm.metrics.kid import cmmd, kid
from ddpm.metrics.manifold import nearest, precision_recall_density_coverage

TWO_SETS = {
    frechet_distance_of_features: 2,
    fid_infinity: 10,
    kid: 2,
    cmmd: 1,
    precision_recall_density_coverage: 6,
    nearest: 1,
}  # and the fewest samples each takes


@pytest.mark.parametrize("metric", TWO_SETS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place, name", list(enumerate(["first", "second"])))
def test_features_that_are_not_finite_are_refused_by_name(metric, bad, place, name):
    sets = [np.random.default_rng(i).normal(size=(20, 3)) for i in range(2)]
    sets[place][7, 1] = bad
    with pytest.raises(UserError, match=f"the {name} set of features: 1 of 60 values are NaN or infinite") as error:
        metric(*sets)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("metric", TWO_SETS)
@pytest.mark.parametrize("place, name", list(enumerate(["first", "second"])))
def test_too_few_samples_are_refused_by_name(metric, place, name):
    fewest = TWO_SETS[metric]
    sets = [np.random.default_rng(i).normal(size=(20, 3)) for i in range(2)]
    sets[place] = sets[place][: fewest - 1]
    with pytest.raises(
        UserError, match=f"the {name} set of features: too few samples, {fewest - 1} where.*at least {fewest}"
    ):
        metric(*sets)
    sets[place] = np.random.default_rng(5).normal(size=(fewest, 3))
    metric(*sets)  # the fewest is enough


def test_metrics_of_one_set_refuse_too():
    bad = np.full((20, 2), 0.5)
    bad[3] = np.nan
    with pytest.raises(UserError, match="the set of features: 2 of 40 values"):
        inception_score(bad)
    with pytest.raises(UserError, match="too few samples, 3 where"):
        inception_score(np.full((3, 2), 0.5))


def test_features_become_float64_whatever_they_were():
    for features in (torch.ones(3, 2), np.ones((3, 2), np.float16), [[1, 1], [1, 1], [1, 1]]):
        [array] = feature_sets(features)
        assert array.dtype == np.float64 and array.shape == (3, 2)


def test_wrong_shapes_are_a_mistake_of_the_program():
    with pytest.raises(ValueError, match="the first set of features has shape"):
        feature_sets(np.zeros(3), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="the second set of features has shape"):
        feature_sets(np.zeros((3, 3)), np.zeros((3, 2)))


def test_integers_and_booleans_are_finite():
    require_finite("it", np.arange(4, dtype=np.uint8))
    require_finite("it", torch.ones(2, dtype=torch.bool))
