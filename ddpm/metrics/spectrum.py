"""Two plain questions that need no network: is there as much detail at every scale, and are the grey levels right?

The power spectrum averaged over rings shows blur (too little power at high frequencies) and leftover noise (too much);
compare Durall et al. 2020, arXiv:2003.01826. The histogram shows a wrong contrast or brightness.
"""

import numpy as np

from ddpm.metrics.checks import require_finite

BLOCK = 32  # images whose spectra are in memory at once

# What rounding to 256 levels adds to every frequency of an image in [-1, 1]: (2 / 255)^2 / 12.
ROUNDING_NOISE = (2 / 255) ** 2 / 12


def radial_power_spectrum(images) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies, power): the mean of |FFT|^2 over the images (N, C, H, W) in [-1, 1] and over rings of frequency.

    Frequencies (R,) are in cycles per pixel, in steps of 1 / min(H, W) from 0 (the mean) past 0.5 (Nyquist) into the
    corners at 0.71; a ring holds what is nearer to it than to the next. The transform is orthonormal: white noise of
    variance v has power v in every ring, and the sum over all (H W) frequencies is the sum of squared pixels.
    Raises UserError on NaN.
    """
    images = np.asarray(images)
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images of shape {images.shape}; they must be (N, C, H, W), and at least one")
    require_finite("the images", images)
    height, width = images.shape[2:]
    power = np.zeros((height, width))
    for start in range(0, len(images), BLOCK):
        transform = np.fft.fft2(images[start : start + BLOCK].astype(np.float64), norm="ortho")
        power += (np.abs(transform) ** 2).sum(axis=(0, 1))
    power /= len(images) * images.shape[1]

    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    steps = min(height, width)
    ring = np.rint(radius * steps).astype(int).ravel()
    count = np.bincount(ring)
    return np.arange(len(count)) / steps, np.bincount(ring, weights=power.ravel()) / count


def spectrum_difference_db(a, b) -> float:
    """How far two spectra, each a result of `radial_power_spectrum`, are apart: the mean of |10 log10(a / b)| in dB.

    The mean is over the rings with 0 < frequency <= 0.5: not the mean grey, which the histogram judges, and not the
    corners, whose rings are incomplete. Power below the rounding noise of 8 bits counts as that noise, since below it
    nothing can be seen in a saved image.
    """
    (frequencies, power_a), (frequencies_b, power_b) = a, b
    if not np.array_equal(frequencies, frequencies_b):
        raise ValueError("spectra of images of different sizes")
    whole = (frequencies > 0) & (frequencies <= 0.5)
    power_a, power_b = (np.maximum(power[whole], ROUNDING_NOISE) for power in (power_a, power_b))
    return float(np.abs(10 * np.log10(power_a / power_b)).mean())


def intensity_histogram(images) -> np.ndarray:
    """The share of pixels at each grey level 0 .. 255, (256,) float64, of uint8 images of any shape."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.size == 0:
        raise ValueError(f"{images.size} pixels of {images.dtype}; a histogram takes uint8, and at least one")
    return np.bincount(images.ravel(), minlength=256) / images.size


def histogram_distance(a, b) -> float:
    """Wasserstein-1 distance of two such histograms: how many grey levels the average pixel would have to move."""
    return float(np.abs(np.cumsum(np.asarray(a) - np.asarray(b))).sum())
