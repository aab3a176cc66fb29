"""The delete-half jackknife over subjects, against what is known of the mean."""

import numpy as np
import pytest

from ddpm.metrics.fid import frechet_distance_of_features
from ddpm.metrics.margin import margin


def test_margin_of_a_mean_is_the_textbooks():
    x = np.random.default_rng(0).normal(3, 2, 400)
    assert margin(np.mean, (x, np.arange(400)), rounds=2000) == pytest.approx(1.966 * x.std(ddof=1) / 20, rel=0.05)


@pytest.mark.parametrize("subjects", [2, 3, 5, 10])
def test_it_covers_the_truth_as_often_as_it_says_however_many_slices_a_subject_has(subjects):
    """Slices of a subject resemble each other, and taken for independent the nominal 95 % would cover a quarter."""
    hits, naive, rng, whose = 0, 0, np.random.default_rng(0), np.repeat(np.arange(subjects), 40)
    for seed in range(200):
        x = rng.normal(size=subjects)[whose] + rng.normal(0, 0.3, len(whose))
        hits += abs(x.mean()) <= margin(np.mean, (x, whose), rounds=40, seed=seed)
        naive += abs(x.mean()) <= 1.96 * x.std() / np.sqrt(len(x))
    assert hits >= 176 and naive < 80  # 88 %, as 40 rounds leave some noise


def test_both_sides_count():
    """The difference of two means: the variances add."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 300), rng.normal(0, 3, 200)
    got = margin(lambda x, y: x.mean() - y.mean(), (a, np.arange(300)), (b, np.arange(200)), rounds=2000)
    assert got == pytest.approx(1.97 * np.sqrt(1 / 300 + 9 / 200), rel=0.12)


def test_subjects_stay_whole_and_are_halved():
    whose, seen = np.repeat([4, 7, 9, 11, 20], [1, 2, 3, 4, 5]), []
    margin(lambda x: seen.append(sorted(set(x.tolist()))) or float(len(x)), (whose, whose), rounds=20)
    assert {len(half) for half in seen} == {2, 3} and len({tuple(half) for half in seen}) > 5
    counts = dict(zip([4, 7, 9, 11, 20], [1, 2, 3, 4, 5], strict=True))
    sizes = []
    margin(lambda x: sizes.append(x.tolist()) or 0.0, (whose, whose), rounds=20)
    assert all(half.count(subject) == counts[subject] for half in sizes for subject in set(half))


def test_one_subject_has_no_margin_and_many_values_have_one_each():
    x = np.arange(20.0)
    assert margin(np.mean, (x, np.zeros(20))) is None
    assert margin(lambda a, b: 0.0, (x, np.arange(20)), (x, np.zeros(20))) is None
    three = margin(lambda a: np.array([a.mean(), 2 * a.mean(), 5.0]), (x, np.arange(20)))
    assert three[1] == pytest.approx(2 * three[0]) and three[2] == 0


def test_a_half_too_small_for_the_score_costs_the_margin_alone():
    """One subject of two has one picture: half of the halves are that one, and a Frechet distance wants two."""
    x, whose = np.random.default_rng(0).normal(size=(61, 3)), np.repeat([0, 1], [1, 60])
    assert margin(frechet_distance_of_features, (x, whose), (x + 1, whose)) is None
    assert margin(frechet_distance_of_features, (x, np.arange(61)), (x + 1, np.arange(61))) > 0


def test_a_seed_gives_the_same_margin():
    x = np.random.default_rng(0).normal(size=40)
    one, again, other = (margin(np.mean, (x, np.arange(40)), seed=seed) for seed in (3, 3, 4))
    assert one == again != other
