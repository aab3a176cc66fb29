"""How close is a reconstruction? As fastMRI's own evaluation counts (Zbontar et al. 2018, arXiv:1811.08839),
to be held against published figures. paired.py has PSNR and SSIM as they are usually defined.

A volume at a time, slices (N, 1, H, W) of magnitudes on any scale. The range of values is the largest of the true volume,
not the format's: so a scaled volume has the same scores, and a single slice is judged by its own maximum.
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from ddpm import UserError
from ddpm.metrics.paired import pair, psnr, similarity

WINDOW = 7  # pixels each way


class Scores(NamedTuple):
    nmse: float  # || made - truth ||^2 / || truth ||^2
    psnr: float  # dB
    ssim: float


def fastmri_scores(made: Tensor, truth: Tensor) -> Scores:
    """The volume's three scores. Raises UserError for an empty truth, or slices smaller than SSIM's window."""
    made, truth = pair(made, truth)
    peak = truth.max().item()
    if peak <= 0:
        raise UserError("the true volume is black: fastMRI's scores are relative to its largest value")
    if min(truth.shape[2:]) < WINDOW:
        raise UserError(f"fastMRI's SSIM looks through a window of {WINDOW}x{WINDOW} pixels; the slices are smaller")
    nmse = (made - truth).square().sum() / truth.square().sum()
    whole = psnr(made.transpose(0, 1), truth.transpose(0, 1), peak)  # of all slices together, as if they were channels
    return Scores(nmse.item(), whole.item(), uniform_ssim(made, truth, peak).mean().item())


def uniform_ssim(a: Tensor, b: Tensor, data_range: float) -> Tensor:
    """SSIM through a window that weighs its pixels alike, with the unbiased variances (n / (n - 1)) of the first common
    implementation; (N, 1, H, W) -> (N,)."""

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, WINDOW, stride=1)

    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    mu_a, mu_b = mean(a), mean(b)
    var_a, var_b = (unbiased * (mean(x * x) - mu**2) for x, mu in ((a, mu_a), (b, mu_b)))
    cov = unbiased * (mean(a * b) - mu_a * mu_b)
    return similarity(mu_a, mu_b, var_a, var_b, cov, data_range).mean(dim=(1, 2, 3))
