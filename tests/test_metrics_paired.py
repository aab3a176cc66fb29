"""PSNR, SSIM and Dice: published values, and SciPy's Gaussian filter."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from ddpm import UserError
from ddpm.metrics.paired import dice, psnr, similarity, ssim, window_mean


def ramp():
    """(x + y) / 62 on 32 x 32."""
    axis = torch.arange(32, dtype=torch.float64)
    return ((axis[:, None] + axis) / 62)[None, None]


def test_psnr_has_the_published_values():
    a = torch.zeros(1, 1, 8, 8)
    assert psnr(a, a + 0.1, data_range=1).item() == pytest.approx(20, rel=1e-6)
    assert psnr(2 * a - 1, 2 * (a + 0.1) - 1, data_range=2).item() == pytest.approx(20, rel=1e-6)
    assert psnr(a, a + 255, data_range=255).item() == 0
    assert psnr(a, a, data_range=1).item() == math.inf


def test_ssim_has_the_published_values():
    a = torch.full((1, 1, 16, 12), 0.5, dtype=torch.float64)
    assert ssim(a, a + 0.1, data_range=1).item() == pytest.approx(0.9836092444, rel=1e-9)
    a = ramp()
    assert ssim(a, 0.9 * a, data_range=1).item() == pytest.approx(0.9906238114, rel=1e-9)
    assert ssim(2 * a - 1, 1.8 * a - 1, data_range=2).item() == pytest.approx(0.6206, abs=5e-5)


def test_window_has_the_published_weights():
    spike = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    spike[0, 0, 10, 10] = 1
    weights = window_mean(spike)[0, 0]  # (11, 11)
    assert weights.sum().item() == pytest.approx(1, rel=1e-12)
    assert weights[5, 5].item() == pytest.approx(0.26601172**2, rel=1e-7)
    assert weights[0, 5].item() == weights[5, 0].item() == pytest.approx(0.00102838 * 0.26601172, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(11, 20), st.integers(11, 20), st.sampled_from([1, 2, 3]), st.integers(0, 2**32 - 1))
def test_ssim_is_that_of_scipys_filter(height, width, channels, seed):
    rng = np.random.default_rng(seed)
    a = rng.uniform(-1, 1, (2, channels, height, width))
    b = (a + 0.3 * rng.normal(size=a.shape)).clip(-1, 1)

    def mean(x):
        return gaussian_filter(x, sigma=1.5, radius=5)[5 : height - 5, 5 : width - 5]

    expected = np.zeros((2, channels))
    for i in range(2):
        for c in range(channels):
            x, y = a[i, c], b[i, c]
            covariance = mean(x * y) - mean(x) * mean(y)
            top = (2 * mean(x) * mean(y) + 0.02**2) * (2 * covariance + 0.06**2)
            spread = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
            expected[i, c] = (top / ((mean(x) ** 2 + mean(y) ** 2 + 0.02**2) * (spread + 0.06**2))).mean()
    value = ssim(torch.from_numpy(a), torch.from_numpy(b), data_range=2)
    np.testing.assert_allclose(value.numpy(), expected.mean(axis=1), rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 0.4), st.floats(0.01, 0.3), st.integers(0, 2**32 - 1))
def test_psnr_follows_from_ssim_the_means_and_the_variances(shift, noise, seed):
    """In one window: MSE = (difference of means)^2 + (both variances + c_2) (1 - SSIM / l), as Horé & Ziou 2010 relate the
    two; l is SSIM's factor of the means (`factor`)."""
    rng = np.random.default_rng(seed)
    a = torch.from_numpy(rng.uniform(0, 1, (1, 1, 9, 7)))
    b = a + shift + noise * torch.from_numpy(rng.normal(size=a.shape))
    mu_a, mu_b, var_a, var_b = a.mean(), b.mean(), a.var(correction=0), b.var(correction=0)
    cov = (a * b).mean() - mu_a * mu_b
    factor = (2 * mu_a * mu_b + 0.01**2) / (mu_a**2 + mu_b**2 + 0.01**2)
    unlike = 1 - similarity(mu_a, mu_b, var_a, var_b, cov, data_range=1) / factor
    mse = (mu_a - mu_b) ** 2 + (var_a + var_b + 0.03**2) * unlike
    assert psnr(a, b, data_range=1).item() == pytest.approx(-10 * math.log10(mse), abs=1e-8)


@pytest.mark.parametrize(
    "metric", [lambda a, b: psnr(a, b, 2), lambda a, b: ssim(a, b, 2), lambda a, b: dice(a > 0, b > 0)]
)
def test_each_sample_is_judged_alone_symmetrically_and_in_float64(metric):
    a, b = torch.rand(4, 2, 13, 17) * 2 - 1, torch.rand(4, 2, 13, 17) * 2 - 1
    together = metric(a, b)
    assert together.shape == (4,) and together.dtype == torch.float64 and len(together.unique()) == 4
    torch.testing.assert_close(together, torch.cat([metric(a[i : i + 1], b[i : i + 1]) for i in range(4)]))
    torch.testing.assert_close(together, metric(b, a))
    if metric(a, a)[0] != math.inf:
        torch.testing.assert_close(metric(a, a), torch.ones(4, dtype=torch.float64))


def test_float16_images_lose_nothing_on_the_way():
    a, b = torch.rand(1, 1, 16, 16).half(), torch.rand(1, 1, 16, 16).half()
    for metric in (psnr, ssim):
        assert metric(a, b, 1).item() == metric(a.double(), b.double(), 1).item()


def test_uint8_images_do_not_wrap():
    a, b = torch.zeros(1, 1, 11, 11, dtype=torch.uint8), torch.full((1, 1, 11, 11), 10, dtype=torch.uint8)
    assert psnr(a, b, 255).item() == psnr(b, a, 255).item() == pytest.approx(20 * math.log10(25.5))


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 23)), st.sets(st.integers(0, 23)))
def test_dice_is_that_of_sets(a, b):
    masks = torch.zeros(2, 24)
    masks[0, list(a)] = 1
    masks[1, list(b)] = 1
    expected = 2 * len(a & b) / (len(a) + len(b)) if a or b else 1
    masks = masks.view(2, 1, 2, 4, 3)
    assert dice(masks[0], masks[1]).item() == pytest.approx(expected)
    assert dice(masks[0].bool(), masks[1].byte()).item() == pytest.approx(expected)


def test_dice_knows_empty_masks():
    empty, full = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    assert [dice(empty, empty).item(), dice(empty, full).item(), dice(full, full).item()] == [1, 0, 1]


def test_bad_input():
    good, bad = torch.zeros(1, 1, 12, 12), torch.full((1, 1, 12, 12), torch.nan)
    for metric in (lambda a, b: psnr(a, b, 1), lambda a, b: ssim(a, b, 1), dice):
        with pytest.raises(UserError, match="the first set of images: 144 of 144 values are NaN"):
            metric(bad, good)
        with pytest.raises(UserError, match="the second set of images"):
            metric(good, bad)
        for wrong in (good[0], good[..., :11], good.expand(2, 1, 12, 12)):
            with pytest.raises(ValueError, match="shapes"):
                metric(good, wrong)
    with pytest.raises(UserError, match="11x11 pixels, and the images are 12x10"):
        ssim(good[..., :10], good[..., :10], 1)
    for data_range in (0, -1, math.nan):
        with pytest.raises(ValueError, match="data_range"):
            psnr(good, good, data_range)
    with pytest.raises(ValueError, match="0 and 1"):
        dice(good, good + 0.5)
