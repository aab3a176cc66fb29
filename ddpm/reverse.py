"""The reverse process: from noise to an image (the paper's section 3.2, Algorithm 2).

Every sampler here is a generator. It takes `predict_x_0(x_t, t)`, the network's estimate of the clean
image, starts from x_T ~ N(0, I), walks down a list of times that ends in 0, and yields each x_t.
The last one is the sample. The networks, the masks and the guidance live in `denoiser`, so the
samplers are nothing but the equations, and tests can hand them a closed-form predict_x_0.
"""

import math
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ddpm import mix_seed
from ddpm.schedule import Schedule


def denoiser(
    unet, schedule: Schedule, objective: str, mask=None, contrast=None, guidance: float = 1.0, clip: bool = True
) -> Callable[[Tensor, int], Tensor]:
    """predict_x_0(x_t, t) -> x_0_hat, made from the network, the condition and the guidance.

    mask (B, K, H, W) one-hot or None; contrast (B,) labels or None, as `UNet.forward` takes them.
    guidance k mixes u + k (c - u), c with the mask and u without it (Ho & Salimans 2022,
    arXiv:2207.12598; their w is k - 1): 1 is plain conditional sampling, 0 ignores the mask.
    clip keeps x_0_hat in [-1, 1]. The samplers derive eps from the clipped value, never beside it.
    """

    def predict_x_0(x_t: Tensor, t: int) -> Tensor:
        times = torch.full((len(x_t),), t, device=x_t.device)
        output = unet(x_t, times, mask, contrast).float()
        if guidance != 1.0 and mask is not None:
            without = unet(x_t, times, None, contrast).float()
            output = without + guidance * (output - without)
        x_0_hat = schedule.x_0_from(objective, output, x_t, t)
        return x_0_hat.clamp(-1, 1) if clip else x_0_hat

    return predict_x_0


def ancestral(
    predict_x_0, schedule: Schedule, x_T: Tensor, times: list[int], noise, variance: str = "beta_tilde"
) -> Iterator[Tensor]:
    """Algorithm 2. With x_0_hat = (x_t - sqrt(1 - alpha_bar_t) eps_hat) / sqrt(alpha_bar_t), its line 4
    is the posterior mean of Eq. 7 at x_0_hat; written this way, x_0_hat can be clipped first.

    times: T = t_1 > ... > 0; noise(): a fresh z ~ N(0, I) shaped like x_T.
    variance: sigma^2, "beta_tilde" (exact if the data is one point) or "beta" (exact if it is N(0, I));
    see section 3.2. Over a skipped range, beta_t is 1 - alpha_bar_t / alpha_bar_s.
    """
    x_t = x_T
    yield x_t
    for t, s in pairwise(times):
        x_0_hat = predict_x_0(x_t, t)
        c_0, c_t, beta_tilde = schedule.posterior(t, s)
        mu_tilde = c_0 * x_0_hat + c_t * x_t
        beta = 1 - (schedule.alpha_bar[t] / schedule.alpha_bar[s]).item()
        sigma = math.sqrt(beta_tilde if variance == "beta_tilde" else beta)
        x_t = mu_tilde + sigma * noise() if s > 0 else mu_tilde  # line 3: no noise in the last step
        yield x_t


def ddim(predict_x_0, schedule: Schedule, x_T: Tensor, times: list[int], noise, eta: float = 0.0) -> Iterator[Tensor]:
    """Song et al. 2021, arXiv:2010.02502, Eqs. 12 and 16. eta = 0 is deterministic (noise() is not called),
    eta = 1 is the ancestral step with sigma^2 = beta_tilde. Arguments as for `ancestral`.
    """
    x_t = x_T
    yield x_t
    for t, s in pairwise(times):
        x_0_hat = predict_x_0(x_t, t)
        eps_hat = schedule.eps_from(x_0_hat, x_t, t)
        alpha_bar_s = schedule.alpha_bar[s].item()
        sigma = eta * math.sqrt(schedule.posterior(t, s)[2])
        direction = math.sqrt(max(1 - alpha_bar_s - sigma**2, 0))  # max: rounding when eta = 1
        x_t = math.sqrt(alpha_bar_s) * x_0_hat + direction * eps_hat
        if sigma > 0:
            x_t = x_t + sigma * noise()
        yield x_t


def dpm_solver(predict_x_0, schedule: Schedule, x_T: Tensor, times: list[int]) -> Iterator[Tensor]:
    """DPM-Solver++(2M), Lu et al. 2022, arXiv:2211.01095, Algorithm 2, for the noise-free ODE.

    In lambda (half the log SNR) the ODE's solution is an exponentially weighted integral of x_0_hat, which a
    line through the last two values of x_0_hat integrates. The first step has only one value, and is DDIM's.
    Give it `log_snr_times`: on uniform steps in t the second order is no gain. The last step, to t = 0,
    where lambda is infinite, is the limit: x_0_hat itself.
    """
    lam = schedule.half_log_snr()
    a, s = schedule.alpha_bar.flatten().sqrt(), (1 - schedule.alpha_bar).flatten().sqrt()
    x_t, x_0_before, h_before = x_T, None, None
    yield x_t
    for now, then in pairwise(times):
        x_0_hat = predict_x_0(x_t, now)
        if then == 0:
            yield x_0_hat
            return
        h = (lam[then] - lam[now]).item()
        if x_0_before is None:
            D = x_0_hat
        else:
            r = h_before / h
            D = x_0_hat + (x_0_hat - x_0_before) / (2 * r)
        x_t = (s[then] / s[now]).item() * x_t - (a[then] * math.expm1(-h)).item() * D
        x_0_before, h_before = x_0_hat, h
        yield x_t


GUIDANCE = 1.5  # how strongly to follow the mask unless asked otherwise: the README's table of samplers says why
STEPS = {"ancestral": 250, "ddim": 100, "dpm-solver": 10}  # of each sampler, unless asked otherwise
SAMPLERS = tuple(STEPS)


def usual_guidance(masked: bool, mask_drop: float) -> float:
    """The guidance unless asked otherwise: 1 where there is no mask, or a network that never met a missing one."""
    return GUIDANCE if masked and mask_drop > 0 else 1.0


def trajectory(
    sampler: str, predict_x_0, schedule: Schedule, x_T: Tensor, noise, steps: int, eta: float = 0.0
) -> Iterator[Tensor]:
    """The sampler of that name on the times that suit it; steps = schedule.T is every one."""
    match sampler:
        case "ancestral":
            return ancestral(predict_x_0, schedule, x_T, uniform_times(schedule.T, steps), noise)
        case "ddim":
            return ddim(predict_x_0, schedule, x_T, uniform_times(schedule.T, steps), noise, eta)
        case "dpm-solver":
            return dpm_solver(predict_x_0, schedule, x_T, log_snr_times(schedule, steps))
    raise ValueError(f"sampler {sampler!r} is none of {SAMPLERS}")


def uniform_times(T: int, n: int) -> list[int]:
    """n steps of equal length from T down to 0: n + 1 integers. n = T is every step, as in the paper.

    They always begin at T, where the noise that sampling starts from belongs.
    """
    if not 1 <= n <= T:
        raise ValueError(f"a schedule of {T} steps can be walked in 1 to {T} steps, not {n}")
    return [round(T * (n - i) / n) for i in range(n + 1)]


def log_snr_times(schedule: Schedule, n: int, lowest: float = -5.1) -> list[int]:
    """At most n steps from near T down to 0, at equal distances in log SNR; then the clean step 1 -> 0.
    That is, in lambda, half the log SNR.

    Nodes are the nearest integers, without repetition (so 40 may give 39). Times with lambda under
    `lowest` (signal under 0.6 %) are passed over, as cosine schedules run on to where nothing is left.
    """
    if not 1 <= n <= schedule.T:
        raise ValueError(f"a schedule of {schedule.T} steps can be walked in 1 to {schedule.T} steps, not {n}")
    lam = schedule.half_log_snr()[1:]
    start = lam[lam >= lowest].min()
    nodes = torch.linspace(start.item(), lam[0].item(), n, dtype=torch.float64)
    nearest = (lam[None, :] - nodes[:, None]).abs().argmin(dim=1) + 1
    return sorted(set(nearest.tolist()), reverse=True) + [0]


def noise_source(seed: int, jobs: list[tuple[str, int]], shape: tuple, device):
    """noise() -> z (B, C, H, W). Each sample has a stream of its own, made from (seed, mask's name, k), so it does
    not matter which others are drawn beside it."""
    streams = [
        np.random.default_rng(mix_seed(seed, zlib.crc32(name.encode(errors="surrogateescape")), k)) for name, k in jobs
    ]
    return lambda: torch.from_numpy(np.stack([s.standard_normal(shape, dtype=np.float32) for s in streams])).to(device)
