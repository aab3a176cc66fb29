"""The forward process and what the network learns from it (the paper's sections 2 and 3.4).

The forward process adds Gaussian noise in T small steps, but needs no loop: any x_t can be drawn
from x_0 at once (Eq. 4). Training is therefore a regression: draw a time, add noise in one go,
and ask the network what was added (Algorithm 1, lines 3 to 5; the step itself is in training.py).

A condition (conditions.py), here and in the next files, is what an image is asked to follow. Its mask is one channel a
class, 0 and 1, the background first; a kind of condition that is withheld is 0 in every channel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm.conditions import Condition
from ddpm.schedule import OBJECTIVES, Schedule


def q_sample(schedule: Schedule, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, a draw from q(x_t | x_0) (Eq. 4).

    x_0 (B, C, H, W) in [-1, 1]; t (B,) integers in 0 .. T on the CPU; eps ~ N(0, I), shaped like x_0.
    """
    a, s = schedule.signal_and_noise(t, x_0)
    return a * x_0 + s * eps


def training_target(schedule: Schedule, objective: str, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """What the network should answer at (x_t, t): eps as in the paper, x_0, or v; shaped like x_0."""
    match objective:
        case "eps":
            return eps
        case "x_0":
            return x_0
        case "v":
            return schedule.v_from(x_0, eps, t)
    raise ValueError(f"objective {objective!r} is none of {OBJECTIVES}")


def denoising_loss(
    schedule: Schedule,
    unet,
    objective: str,
    x_0: Tensor,
    t: Tensor,
    eps: Tensor,
    condition: Condition,
    foreground_weight: float = 1.0,
) -> Tensor:
    """Each sample's squared error || target - unet(x_t, t, condition) ||^2, a mean over its pixels; (B,) float32.

    Its mean estimates L_simple (Eq. 14) per pixel and channel, if t is uniform, the objective eps and foreground_weight 1.
    The mean over pixels (not a sum) keeps the gradient's size, hence the clipping threshold, free of the image size.

    foreground_weight: how many times an error counts where the mask is not background. Lesions are a few pixels of an
    image, and would be learnt last. The best answer to (x_t, t, condition) is the mean of the targets it may come from,
    pixel by pixel, with any weights that the condition alone decides: the answer stays, what is learnt first changes.
    """
    x_t = q_sample(schedule, x_0, t, eps)
    target = training_target(schedule, objective, x_0, t, eps)
    output = unet(x_t, t.to(x_t.device), condition)
    error = (output.float() - target).square()
    if condition.mask is not None:  # of a mask that is withheld all channels are 0
        error = error * (1 + (foreground_weight - 1) * condition.mask[:, 1:].sum(dim=1, keepdim=True))
    return error.mean(dim=(1, 2, 3))


LOSS_WEIGHTS = ("plain", "min-snr")


def loss_weight(schedule: Schedule, kind: str, objective: str, t: Tensor, gamma: float = 5.0) -> Tensor:
    """The weight of each sample's squared error, (B,) float64.

    plain     1, as in Eq. 14.
    min-snr   Hang et al. 2023, arXiv:2303.09556: all objectives get the weight that makes them the same loss,
              min(SNR, gamma) ||x_0 - x_0_hat||^2. A squared error in x_0 is one in eps times 1 / SNR, or one
              in v times 1 / (SNR + 1).
    """
    snr = schedule.snr(t).flatten()
    match kind, objective:
        case "plain", _:
            return torch.ones_like(snr)
        case "min-snr", "x_0":
            return snr.clamp(max=gamma)
        case "min-snr", "v":
            return snr.clamp(max=gamma) / (snr + 1)
        case "min-snr", "eps":
            return gamma / snr.clamp(min=gamma)  # min(SNR, gamma) / SNR, written so that it stays 1 where SNR = 0
    raise ValueError(f"no weight {kind!r} is known for objective {objective!r}")


def draw_times(n: int, T: int, mean: float = 0.0, std: float = 0.0, few: Sequence[int] = ()) -> Tensor:
    """n times from 1 .. T in random order, one from each of n equally likely parts of their distribution; (n,) int64.

    std 0 is uniform, as in Algorithm 1, line 3. Else t / T = u has logit(u) ~ N(mean, std^2), as in Esser et al. 2024,
    arXiv:2403.03206, section 3.1: with the cosine schedule -1/2 log SNR is about 0.83 logit(u), so noise over signal is
    nearly log-normal, as in Karras et al. 2022. Spreading the batch over the distribution only lowers the variance of
    the batch's mean (stratified sampling; compare Kingma et al. 2021, arXiv:2107.00630).
    few: draw from these times alone, each as often (Fast-DDPM, Jiang et al. 2025, arXiv:2405.14802).
    """
    u = (torch.randperm(n) + torch.rand(n, dtype=torch.float64)) / n
    if few:
        return torch.tensor(few)[(u * len(few)).long().clamp(max=len(few) - 1)]
    if std > 0:
        u = torch.sigmoid(mean + std * torch.special.ndtri(u))
    return (u * T).long().clamp(max=T - 1) + 1
