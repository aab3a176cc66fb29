"""Two images of the same thing, pixel by pixel: PSNR and SSIM for reconstructions, Dice for masks.

All take (B, C, H, W), tensors or arrays, and return one value per sample, (B,) float64 on the input's device.
data_range is the width of the values' range, 2 for [-1, 1] and 255 for uint8: it is asked for since guessing it from
the data would let it differ between images.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm import UserError
from ddpm.metrics.checks import require_finite


def psnr(a: Tensor, b: Tensor, data_range: float) -> Tensor:
    """Peak signal-to-noise ratio 10 log10(data_range^2 / MSE) in dB, the mean over C, H and W; inf for equal images."""
    a, b = pair(a, b, data_range)
    return 10 * torch.log10(data_range**2 / (a - b).square().mean(dim=(1, 2, 3)))


def ssim(a: Tensor, b: Tensor, data_range: float) -> Tensor:
    """Structural similarity, Wang et al. 2004, "Image quality assessment", Eq. 13; 1 for equal images.

    As published: Gaussian weights of 11 taps and sigma 1.5, weighted means of squares for the variances (not the
    unbiased estimate), K_1 = 0.01, K_2 = 0.03. Averaged over the places where the whole window lies inside the image,
    and over channels. Not free of the zero point: the same images in [0, 1] and in [-1, 1] differ in SSIM.
    Raises UserError if H or W is under 11.
    """
    a, b = pair(a, b, data_range)
    if min(a.shape[2:]) < 11:
        raise UserError(f"SSIM looks through a window of 11x11 pixels, and the images are {a.shape[2]}x{a.shape[3]}")
    mu_a, mu_b = window_mean(a), window_mean(b)
    var_a, var_b = window_mean(a * a) - mu_a**2, window_mean(b * b) - mu_b**2
    cov = window_mean(a * b) - mu_a * mu_b
    return similarity(mu_a, mu_b, var_a, var_b, cov, data_range).mean(dim=(1, 2, 3))


def similarity(mu_a: Tensor, mu_b: Tensor, var_a: Tensor, var_b: Tensor, cov: Tensor, data_range: float) -> Tensor:
    """Eq. 13 of each window, from its means, variances and covariance; shaped like these."""
    c_1, c_2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    return (2 * mu_a * mu_b + c_1) * (2 * cov + c_2) / ((mu_a**2 + mu_b**2 + c_1) * (var_a + var_b + c_2))


def dice(a: Tensor, b: Tensor) -> Tensor:
    """Dice overlap 2 |A and B| / (|A| + |B|) of masks of booleans or 0 and 1, all of C, H and W as one set.

    Two empty masks agree, so their Dice is 1; where masks are often empty, report those apart, or they hide the rest.
    """
    a, b = pair(a, b)
    for mask in (a, b):
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("Dice takes booleans or 0 and 1: threshold probabilities, and ask for one label at a time")
    both, total = (a * b).sum(dim=(1, 2, 3)), (a + b).sum(dim=(1, 2, 3))
    return torch.where(total == 0, 1.0, 2 * both / total)


def pair(a: Tensor, b: Tensor, data_range: float = 1.0) -> tuple[Tensor, Tensor]:
    """Both in float64. ValueError for wrong shapes or range, UserError for NaN or infinity."""
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    if a.ndim != 4 or a.shape != b.shape:
        raise ValueError(f"shapes {tuple(a.shape)} and {tuple(b.shape)}; both must be the same (B, C, H, W)")
    if not data_range > 0:
        raise ValueError(f"data_range is {data_range}; it must be greater than 0")
    require_finite("the first set of images", a)
    require_finite("the second set of images", b)
    return a.double(), b.double()


def window_mean(x: Tensor) -> Tensor:
    """Gaussian-weighted means over 11x11 windows, each channel apart: (B, C, H, W) -> (B, C, H-10, W-10)."""
    offset = torch.arange(-5, 6, dtype=x.dtype, device=x.device)
    weight = torch.exp(-(offset**2) / (2 * 1.5**2))
    weight = (weight / weight.sum()).view(1, 1, 11, 1)
    flat = x.flatten(0, 1)[:, None]  # (B C, 1, H, W)
    return F.conv2d(F.conv2d(flat, weight), weight.mT).view(*x.shape[:2], x.shape[2] - 10, x.shape[3] - 10)
