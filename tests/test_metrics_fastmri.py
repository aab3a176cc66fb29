"""fastMRI's scores against their definitions, written with SciPy and loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter

from ddpm import UserError
from ddpm.metrics.fastmri import fastmri_scores, uniform_ssim


def volumes(seed, n=3, height=12, width=15):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 5, (n, 1, height, width))
    return (truth + rng.normal(0, 0.4, truth.shape)), truth


def test_a_constant_error_has_the_closed_form():
    truth = torch.full((2, 1, 8, 8), 2.0)
    truth[0, 0, 0, 0] = 4.0
    scores = fastmri_scores(truth + 0.1, truth)
    assert scores.nmse == pytest.approx(128 * 0.01 / (127 * 4 + 16), rel=1e-5)
    assert scores.psnr == pytest.approx(10 * math.log10(16 / 0.01), rel=1e-5)


def test_equal_volumes():
    made, truth = volumes(0)
    assert fastmri_scores(truth, truth) == (0.0, math.inf, pytest.approx(1.0))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(7, 14), st.integers(7, 14))
def test_ssim_is_that_of_scipys_filter(seed, height, width):
    made, truth = volumes(seed, 2, height, width)
    expected, peak = [], truth.max()
    for (x,), (y,) in zip(made, truth, strict=True):
        inner = slice(3, height - 3), slice(3, width - 3)
        mu_x, mu_y = (uniform_filter(z, 7)[inner] for z in (x, y))
        var_x, var_y, cov = (
            49 / 48 * (uniform_filter(p * q, 7)[inner] - uniform_filter(p, 7)[inner] * uniform_filter(q, 7)[inner])
            for p, q in ((x, x), (y, y), (x, y))
        )
        c_1, c_2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
        top = (2 * mu_x * mu_y + c_1) * (2 * cov + c_2)
        expected.append((top / ((mu_x**2 + mu_y**2 + c_1) * (var_x + var_y + c_2))).mean())
    assert uniform_ssim(torch.tensor(made), torch.tensor(truth), peak).numpy() == pytest.approx(np.array(expected))
    assert fastmri_scores(made, truth).ssim == pytest.approx(np.mean(expected))


def test_variances_are_unbiased():
    """A window of the numbers 0 .. 48 has the sample variance 204.1666, not 200."""
    x = torch.arange(49.0, dtype=torch.float64).view(1, 1, 7, 7)
    found = uniform_ssim(x, torch.zeros_like(x), 1.0).item()
    c_1, c_2 = 1e-4, 9e-4
    assert found == pytest.approx(c_1 * c_2 / ((24**2 + c_1) * (49 * 50 / 12 + c_2)), rel=1e-9)


def test_the_range_is_the_true_volumes_maximum_so_scale_does_not_matter():
    made, truth = volumes(1)
    assert fastmri_scores(7 * made, 7 * truth) == pytest.approx(fastmri_scores(made, truth))
    assert fastmri_scores(made, truth).psnr == pytest.approx(
        10 * math.log10(truth.max() ** 2 / ((made - truth) ** 2).mean())
    )


def test_what_has_no_score_is_said():
    with pytest.raises(UserError, match="black"):
        fastmri_scores(torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
    with pytest.raises(UserError, match="7x7"):
        fastmri_scores(torch.ones(1, 1, 6, 8), torch.ones(1, 1, 6, 8))
    with pytest.raises(ValueError):
        fastmri_scores(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 9))
