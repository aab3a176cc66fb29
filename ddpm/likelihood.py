"""How probable does the model find an image? The variational bound, term by term (the paper's Eq. 5).

-log p(x_0) cannot be computed, but a bound on it is a sum with one term for each t, each of closed form:

    L_T       the prior: how far x_T is from the pure noise that sampling starts with (no network in it)
    L_{t-1}   t = T .. 2: the network's step x_t -> x_{t-1} against the step that knows x_0, a KL divergence
    L_0       t = 1: the decoder, which gives a probability to each of the 256 grey levels (section 3.3)

In bits per dimension (pixel and channel) it is what a lossless code made from the model would need, 8 being no model
at all. That holds for true 8-bit images only: values that were resized or z-scored are on no grid, and have a density
instead, whose "bits" change with the unit.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm import UserError
from ddpm.runtime.progress import progress
from ddpm.schedule import Schedule


class Bound(NamedTuple):
    """The bound for B images in bits per dimension, float64 on the CPU."""

    terms: Tensor  # (B, number of times): L_0 for t = 1, L_{t-1} for t > 1, in the order of the times
    prior: Tensor  # (B,): L_T
    total: Tensor  # (B,): the prior and all T terms, or an estimate of them


@torch.no_grad()
def bits_per_dim(
    predict_x_0, schedule: Schedule, x_0: Tensor, noise, variance: str = "beta_tilde", times: dict | None = None
) -> Bound:
    """Eq. 5 for x_0 (B, C, H, W) on the grid 2k / 255 - 1. UserError if it is not.

    predict_x_0(x_t, t) is the network's estimate of x_0, as `reverse.denoiser` makes it. Published figures clip it to
    [-1, 1]. noise(): a fresh eps ~ N(0, I) shaped like x_0, for one draw of x_t at each t.
    variance: sigma_t^2 of the reverse step, "beta_tilde" or "beta" (section 3.2).
    times: {t: how many terms it stands for}; default is every t once, T network calls. `stratified_times` takes fewer,
    and the total is then an estimate without bias.
    """
    times = times or dict.fromkeys(range(1, schedule.T + 1), 1)
    if not all(1 <= t <= schedule.T for t in times):
        raise ValueError(f"times must lie in 1 .. {schedule.T}: t = 0 is the image itself")

    clean = on_grid(x_0)
    terms = []
    for t in progress(times, desc="bits per dimension", unit="step"):
        a, s = schedule.signal_and_noise(t, clean)
        x_t = a * clean + s * noise().cpu().double()  # Eq. 4
        x_0_hat = predict_x_0(x_t.to(x_0), t).cpu().double()
        terms.append(bits(nats_at(schedule, t, clean, x_0_hat, variance)))
    terms = torch.stack(terms, dim=1)

    a, s = schedule.signal_and_noise(schedule.T, clean)
    prior = bits(kl_normal(a * clean, s.item() ** 2, 1.0))
    weights = torch.tensor(list(times.values()), dtype=torch.float64)
    return Bound(terms, prior, terms @ weights + prior)


def bits(nats: Tensor) -> Tensor:
    """nats of each pixel (B, C, H, W) -> bits per dimension (B,)."""
    return nats.mean(dim=(1, 2, 3)) / math.log(2)


def nats_at(schedule: Schedule, t: int, x_0: Tensor, x_0_hat: Tensor, variance: str) -> Tensor:
    """The term of time t for each pixel, in nats: L_0 if t = 1, else L_{t-1}; all (B, C, H, W) float64."""
    if variance not in ("beta_tilde", "beta"):
        raise ValueError(f"variance {variance!r} is neither 'beta_tilde' nor 'beta'")
    if t == 1:
        # beta_tilde_1 is 0, a decoder that is never in doubt. Ho's code takes the next one, for both variances.
        return -decoder_log_probability(x_0, mean=x_0_hat, sigma=math.sqrt(schedule.posterior(2, 1)[2]))
    c_0, _, beta_tilde = schedule.posterior(t, t - 1)
    sigma_squared = beta_tilde if variance == "beta_tilde" else schedule.beta[t].item()
    # Both means are c_0 (x_0 or its estimate) + c_t x_t (Eq. 7), so the rest cancels in their distance.
    return kl_normal(c_0 * (x_0 - x_0_hat), beta_tilde, sigma_squared)


def kl_normal(distance: Tensor, variance: float, other: float) -> Tensor:
    """KL(N(mu, variance) || N(mu + distance, other)) in nats, for each pixel."""
    ratio = variance / other
    return 0.5 * (ratio - 1 - math.log(ratio) + distance**2 / other)


def decoder_log_probability(x_0: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """Eq. 13: the log of what N(mean, sigma^2) puts between x_0 - 1/255 and x_0 + 1/255, in nats, for each pixel.

    The lowest grey level reaches down to -infinity and the highest up to +infinity, so the 256 probabilities sum to 1.
    Exact in the tails; reference code takes a tanh for the normal distribution and no probability below 1e-12.
    """
    upper = torch.where(x_0 > 0.999, math.inf, (x_0 + 1 / 255 - mean) / sigma)
    lower = torch.where(x_0 < -0.999, -math.inf, (x_0 - 1 / 255 - mean) / sigma)
    # In the upper tail both ends have a probability that rounds to 1; the mirrored bin has them near 0.
    mirror = lower + upper > 0
    upper, lower = torch.where(mirror, -lower, upper), torch.where(mirror, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return log_upper + torch.log1p(-torch.exp(log_lower - log_upper))  # log(exp(log_upper) - exp(log_lower))


def on_grid(x_0: Tensor) -> Tensor:
    """x_0, which float32 holds to 7 digits, as exact grey levels 2k / 255 - 1 in float64. Raises UserError."""
    level = (x_0.cpu().double() + 1) * 127.5
    nearest = level.round().clamp(0, 255)
    off = ~((level - nearest).abs() < 1e-3)  # NaN is off too
    if off.any():
        found = (
            f"{off.double().mean():.1%} of the pixels (one is {x_0.cpu()[off][0]:.5g}) are none of the 256 grey levels"
        )
        raise UserError(f"bits per dimension: {found} of [-1, 1]; give 8-bit images, not resized or normalised since")
    return nearest / 127.5 - 1


def stratified_times(T: int, n: int, generator: torch.Generator) -> dict[int, int]:
    """{t: how many terms it stands for} for n + 1 of 1 .. T: t = 1, and one t at random from each of n ranges.

    Each t stands for its range, so the expectation is the whole sum, whatever the ranges are. The terms fall about as
    1 / t, hence ranges whose length grows with t, and which hold about as much each. n = T - 1 is every t once.
    """
    if not 1 <= n <= T - 1:
        raise ValueError(f"the times 2 .. {T} can be cut into 1 to {T - 1} ranges, not {n}")
    edges = [max(2 + i, int(2 * ((T + 1) / 2) ** (i / n))) for i in range(n)] + [T + 1]  # max: none is empty
    times = {1: 1}
    for low, high in pairwise(edges):
        times[torch.randint(low, high, (), generator=generator).item()] = high - low
    return times
