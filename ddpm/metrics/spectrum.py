"""Three plain questions that need no network: is there as much detail at every scale, are the grey levels right, and does
what is shown vary in size as it should?

The power spectrum averaged over rings shows blur (too little power at high frequencies) and leftover noise (too much);
compare Durall et al. 2020, arXiv:2003.01826. The histogram shows a wrong contrast or brightness. A network that errs at high
noise draws all too much alike: too few small heads (the top slices of a brain) and too few large ones.
"""

import numpy as np

from ddpm.data.images import to_float
from ddpm.metrics.checks import require_finite

BLOCK = 32  # images whose spectra are in memory at once

# What rounding to 256 levels adds to every frequency of an image in [-1, 1]: (2 / 255)^2 / 12.
ROUNDING_NOISE = (2 / 255) ** 2 / 12

FOREGROUND = 26  # the grey level from which a pixel is of the head: a tenth of the range, above the noise in air


def radial_power_spectrum(images) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies (R,), power (N, R)): the mean of |FFT|^2 of each image (N, C, H, W) over its channels and over rings.

    Images are uint8, or floats in [-1, 1]. Frequencies are in cycles per pixel, in steps of 1 / min(H, W) from 0 (the
    mean) past 0.5 (Nyquist) into the corners at 0.71; a ring holds what is nearer to it than to the next. The transform
    is orthonormal: white noise of variance v has power v in every ring, and the sum over all (H W) frequencies is the
    sum of squared pixels. Raises UserError on NaN.
    """
    images = np.asarray(images)
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images of shape {images.shape}; they must be (N, C, H, W), and at least one")
    require_finite("the images", images)
    height, width = images.shape[2:]
    steps = min(height, width)
    ring = np.rint(np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) * steps).astype(int).ravel()
    order, count = np.argsort(ring, kind="stable"), np.bincount(ring)
    power = []
    for start in range(0, len(images), BLOCK):
        part = images[start : start + BLOCK]
        part = to_float(part).numpy() if part.dtype == np.uint8 else part
        squares = (np.abs(np.fft.fft2(part.astype(np.float64), norm="ortho")) ** 2).mean(axis=1)  # (block, H, W)
        sorted_by_ring = squares.reshape(len(part), -1)[:, order]
        power.append(np.add.reduceat(sorted_by_ring, np.cumsum(count) - count, axis=1) / count)
    return np.arange(len(count)) / steps, np.concatenate(power)


def spectrum_difference_db(a, b) -> float:
    """How far two spectra (frequencies, power (R,)) are apart: the mean of |10 log10(a / b)| in dB.

    A set's power is the mean of its images', from `radial_power_spectrum`. The mean here is over the rings with 0 <
    frequency <= 0.5: not the mean grey, which the histogram judges, and not the corners, whose rings are incomplete.
    Power below the rounding noise of 8 bits counts as that noise, since below it nothing can be seen in a saved image.
    """
    (frequencies, power_a), (frequencies_b, power_b) = a, b
    if not np.array_equal(frequencies, frequencies_b):
        raise ValueError("spectra of images of different sizes")
    whole = (frequencies > 0) & (frequencies <= 0.5)
    power_a, power_b = (np.maximum(power[whole], ROUNDING_NOISE) for power in (power_a, power_b))
    return float(np.abs(10 * np.log10(power_a / power_b)).mean())


def intensity_histogram(images) -> np.ndarray:
    """The share of each image's pixels at each grey level 0 .. 255, (N, 256) float64, of uint8 images (N, ...)."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.size == 0:
        raise ValueError(f"{images.size} pixels of {images.dtype}; a histogram takes uint8, and at least one")
    return np.stack([np.bincount(image.ravel(), minlength=256) / image.size for image in images])


def histogram_distance(a, b) -> float:
    """Wasserstein-1 distance of two such histograms (256,): how many grey levels the average pixel would have to move."""
    return float(np.abs(np.cumsum(np.asarray(a) - np.asarray(b))).sum())


def foreground(histograms) -> np.ndarray:
    """The share of each image that is not air, (N,), of `intensity_histogram`s (N, 256)."""
    return np.asarray(histograms)[:, FOREGROUND:].sum(axis=1)
