"""Spectra of images whose spectrum is known, and histograms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from ddpm import UserError
from ddpm.metrics import spectrum
from ddpm.metrics.spectrum import (
    ROUNDING_NOISE,
    foreground,
    histogram_distance,
    intensity_histogram,
    radial_power_spectrum,
    spectrum_difference_db,
)


def mean_spectrum(images):
    frequencies, power = radial_power_spectrum(images)
    return frequencies, power.mean(axis=0)


SIZES = [(32, 32), (24, 40), (33, 21)]


@pytest.mark.parametrize("height, width", SIZES)
def test_white_noise_is_flat_at_its_variance(height, width):
    noise = np.random.default_rng(0).normal(0, 0.5, (600, 2, height, width))
    frequencies, power = mean_spectrum(noise)
    assert frequencies[0] == 0 and np.allclose(np.diff(frequencies), 1 / min(height, width))
    assert 0.5 < frequencies[-1] <= np.sqrt(0.5) + 1 / min(height, width)
    np.testing.assert_allclose(power, 0.25, rtol=0.13)  # the mean of 1,200 squares in the smallest ring
    np.testing.assert_allclose(power[5:-4], 0.25, rtol=0.03)


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("cycles_y, cycles_x", [(0, 3), (5, 0), (4, 6)])
def test_a_cosine_has_all_power_in_its_ring(height, width, cycles_y, cycles_x):
    y, x = np.mgrid[:height, :width]
    image = 0.8 * np.cos(2 * np.pi * (cycles_y * y / height + cycles_x * x / width))
    frequencies, power = mean_spectrum(image[None, None])
    frequency = np.hypot(cycles_y / height, cycles_x / width)
    ring = np.abs(frequencies - frequency).argmin()
    assert power[ring] > 0 and np.delete(power, ring).max() < 1e-20
    # two of the ring's frequencies hold (A / 2)^2 H W each, the others nothing
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    count = (np.rint(radius * min(height, width)) == ring).sum()
    assert power[ring] * count == pytest.approx(2 * 0.4**2 * height * width)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), st.integers(2, 20), st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_parseval(height, width, channels, n, seed):
    """No power is lost or counted twice: the rings, times their numbers of frequencies, sum to the squared pixels."""
    images = np.random.default_rng(seed).uniform(-1, 1, (n, channels, height, width)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectrum, "BLOCK", 2)
        frequencies, power = mean_spectrum(torch.from_numpy(images))
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)
    count = np.bincount(np.rint(np.hypot(fy, fx) * min(height, width)).astype(int).ravel())
    assert len(count) == len(power) and (count > 0).all()
    assert (power * count).sum() == pytest.approx((images.astype(float) ** 2).sum() / (n * channels), rel=1e-9)
    assert power[0] * count[0] >= (images.astype(float).mean(axis=(2, 3)) ** 2).mean() * height * width * (1 - 1e-9)


def test_each_image_has_its_own_spectrum_whatever_the_block_and_whether_in_8_bits_or_not():
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 12, 16), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectrum, "BLOCK", 2)
        _, power = radial_power_spectrum(images)
    assert power.shape[0] == 5
    for image, one in zip(images, power, strict=True):
        np.testing.assert_allclose(one, radial_power_spectrum(image[None] / 127.5 - 1)[1][0], rtol=1e-4, atol=1e-10)


def test_difference_of_a_scaled_image_is_its_gain():
    """Power at 0 and in the corners may differ without effect."""
    images = np.random.default_rng(0).normal(0, 0.3, (8, 1, 32, 48))
    a = mean_spectrum(images)
    assert spectrum_difference_db(a, mean_spectrum(images / 2 + 0.7)) == pytest.approx(20 * np.log10(2))
    assert spectrum_difference_db(mean_spectrum(images / 2), a) == pytest.approx(20 * np.log10(2))
    assert spectrum_difference_db(a, a) == 0
    frequencies, power = a
    outside = (frequencies == 0) | (frequencies > 0.5)
    assert outside.sum() > 5
    assert spectrum_difference_db(a, (frequencies, power * np.where(outside, 100, 1))) == 0
    for place in np.flatnonzero(~outside):
        changed = power.copy()
        changed[place] *= 10
        assert spectrum_difference_db(a, (frequencies, changed)) == pytest.approx(10 / (~outside).sum())


def test_gains_and_losses_do_not_cancel():
    frequencies, power = mean_spectrum(np.random.default_rng(0).normal(0, 0.3, (8, 1, 32, 32)))
    tilted = power * np.where(frequencies < 0.26, 10, 0.1)
    assert spectrum_difference_db((frequencies, power), (frequencies, tilted)) == pytest.approx(10)


def test_what_8_bits_cannot_hold_is_not_compared():
    frequencies, power = mean_spectrum(np.zeros((1, 1, 16, 16)))
    below = ROUNDING_NOISE * np.linspace(0, 1, len(frequencies))
    assert spectrum_difference_db((frequencies, power), (frequencies, below)) == 0
    smooth = np.random.default_rng(0).uniform(-1, 1, (400, 1, 16, 16))
    rounded = np.round((smooth + 1) * 127.5) / 127.5 - 1
    assert mean_spectrum(rounded - smooth)[1].mean() == pytest.approx(ROUNDING_NOISE, rel=0.05)


def test_blur_and_noise_are_seen():
    """Averaging with the neighbours on both sides multiplies the spectrum along an axis by (1 + 2 cos 2 pi f)^2 / 9."""
    images = np.random.default_rng(0).normal(0, 0.3, (50, 1, 32, 32))
    real = mean_spectrum(images)
    blurred = mean_spectrum((images + np.roll(images, 1, -1) + np.roll(images, -1, -1)) / 3)
    assert spectrum_difference_db(real, blurred) > 2
    assert (blurred[1][1:17] < real[1][1:17]).all()


def test_histogram_counts_levels():
    images = np.array([[0, 0, 255], [7, 255, 255]], np.uint8)
    density = intensity_histogram(np.stack([images, images // 255 * 255]))
    assert density.shape == (2, 256) and density.sum(axis=1) == pytest.approx(1)
    assert density[0, [0, 7, 255]] == pytest.approx([2 / 6, 1 / 6, 3 / 6])
    assert density[1, [0, 7, 255]] == pytest.approx([3 / 6, 0, 3 / 6])


def test_the_foreground_is_what_is_brighter_than_the_noise_in_air():
    images = np.array([[[0, 25, 26, 255]], [[0, 25, 25, 200]], [[30, 40, 50, 60]]], np.uint8)
    assert foreground(intensity_histogram(images)).tolist() == [0.5, 0.25, 1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.integers(1, 50))
def test_histogram_distance_is_scipys(seed, n, m):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 256, n, dtype=np.uint8), rng.integers(0, 256, m, dtype=np.uint8)
    distance = histogram_distance(*intensity_histogram(a[None]), *intensity_histogram(b[None]))
    assert distance == pytest.approx(wasserstein_distance(a, b), abs=1e-9)


def test_brighter_by_seven_levels_is_a_distance_of_seven():
    images = np.random.default_rng(0).integers(0, 200, (2, 1, 8, 8), dtype=np.uint8)
    [a], [b] = intensity_histogram(images[None]), intensity_histogram(images[None] + 7)
    assert histogram_distance(a, b) == histogram_distance(b, a) == pytest.approx(7)


def test_bad_input():
    with pytest.raises(UserError, match="the images: 1 of 128 values are NaN"):
        images = np.zeros((2, 1, 8, 8))
        images[1, 0, 3, 3] = np.inf
        mean_spectrum(images)
    for wrong in (np.zeros((8, 8)), np.zeros((0, 1, 8, 8))):
        with pytest.raises(ValueError, match="N, C, H, W"):
            mean_spectrum(wrong)
    with pytest.raises(ValueError, match="different sizes"):
        spectrum_difference_db(mean_spectrum(np.ones((1, 1, 8, 8))), mean_spectrum(np.ones((1, 1, 9, 9))))
    for wrong in (np.zeros(4), np.zeros(0, np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            intensity_histogram(wrong)
