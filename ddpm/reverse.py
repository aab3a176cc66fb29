"""The reverse process: from noise to an image (the paper's section 3.2, Algorithm 2).

Every sampler here is a generator. It takes `predict_x_0(x_t, t)`, the network's estimate of the clean
image, starts from x_T ~ N(0, I), walks down a list of times that ends in 0, and yields each x_t.
The last one is the sample. The network, the condition and the guidance live in `denoiser`, so the
samplers are nothing but the equations, and tests can hand them a closed-form predict_x_0.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.conditions import Condition
from ddpm.schedule import Schedule


def denoiser(
    unet,
    schedule: Schedule,
    objective: str,
    condition: Condition,
    guidance: float = 1.0,
    guided: tuple[str, ...] = ("mask",),
    interval: tuple[float, float] = (0.0, 1.0),
    clip: bool = True,
    bf16: bool = False,
) -> Callable[[Tensor, int], Tensor]:
    """predict_x_0(x_t, t) -> x_0_hat, made from the network, the condition and the guidance.

    guidance k mixes u + k (c - u), where c is the network's answer under the condition and u its answer without what
    `guided` names; the rest of the condition stays in both. (Ho & Salimans 2022, arXiv:2207.12598; their w is k - 1.)
    So 1 is plain conditional sampling, and 0 ignores what is guided. Unless it is 1, or nothing that is guided was
    given, both answers come from one call with twice the batch.
    interval: guide where low <= t / T <= high (of the noise level in Kynkaanniemi et al. 2024, arXiv:2404.07724), else 1.
    clip keeps x_0_hat in [-1, 1]. The samplers derive eps from the clipped value, never beside it.
    bf16 computes inside the network in bfloat16, and there alone.
    """
    guides = guidance != 1.0 and any(name in condition.given for name in guided)
    both = condition.beside_without(*guided) if guides else condition

    def predict_x_0(x_t: Tensor, t: int) -> Tensor:
        guided_now = guides and interval[0] <= t / schedule.T <= interval[1]
        x = torch.cat([x_t, x_t]) if guided_now else x_t
        times = torch.full((len(x),), t, device=x_t.device)
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=bf16):
            output = unet(x, times, both if guided_now else condition).float()
        if guided_now:
            under, without = output.chunk(2)
            output = without + guidance * (under - without)
        x_0_hat = schedule.x_0_from(objective, output, x_t, t)
        return x_0_hat.clamp(-1, 1) if clip else x_0_hat

    return predict_x_0


def ancestral(
    predict_x_0, schedule: Schedule, x_T: Tensor, times: list[int], noise, variance: str = "beta_tilde"
) -> Iterator[Tensor]:
    """Algorithm 2. With x_0_hat = (x_t - sqrt(1 - alpha_bar_t) eps_hat) / sqrt(alpha_bar_t) (Eq. 15), the mean in its
    line 4 (Eq. 11) is that of Eq. 7 at x_0_hat; written this way, x_0_hat can be clipped first.

    times: falling, from T (or where next to no signal is left) to 0; noise(): a fresh z ~ N(0, I) shaped like x_T.
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
        sigma = math.sqrt({"beta_tilde": beta_tilde, "beta": beta}[variance])
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
    """DPM-Solver++(2M), Lu et al. 2022, arXiv:2211.01095, Algorithm 2, for the probability-flow ODE.

    In lambda (half the log SNR) the ODE's solution is an exponentially weighted integral of x_0_hat. It is held at D, half
    way along the step on a line through the last two x_0_hat. The first step has only one, and is DDIM's.
    Give it `log_snr_times`: uniform steps in t gain less by the second order.

    At the end, t = 0, lambda is infinite. So the last step goes by rho = exp(-lambda) = s / a, noise over signal: the line
    through the last two x_0_hat is continued to rho = 0. That adds (x_0_hat - x_0_before) rho / (rho_before - rho), where
    rho_before / rho = exp(h_before), and is exact if x_0_hat is linear in rho. To end in x_0_hat itself, the mean of the
    images that x_t may come from, would take away details as faint as the noise left.
    """
    lam = schedule.half_log_snr()
    a, s = schedule.alpha_bar.flatten().sqrt(), (1 - schedule.alpha_bar).flatten().sqrt()
    x_t, x_0_before, h_before = x_T, None, None
    yield x_t
    for now, then in pairwise(times):
        x_0_hat = predict_x_0(x_t, now)
        if then == 0:
            yield x_0_hat if x_0_before is None else x_0_hat + (x_0_hat - x_0_before) / math.expm1(h_before)
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


STEPS = {"ancestral": 250, "ddim": 100, "dpm-solver": 10}  # of each sampler, unless asked otherwise
SAMPLERS = tuple(STEPS)


def trajectory(
    sampler: str, predict_x_0, schedule: Schedule, x_T: Tensor, times: list[int], noise, eta: float = 0.0
) -> Iterator[Tensor]:
    """The walk of the sampler of that name: x_t at each of the times."""
    match sampler:
        case "ancestral":
            return ancestral(predict_x_0, schedule, x_T, times, noise)
        case "ddim":
            return ddim(predict_x_0, schedule, x_T, times, noise, eta)
        case "dpm-solver":
            return dpm_solver(predict_x_0, schedule, x_T, times)
    raise ValueError(f"sampler {sampler!r} is none of {SAMPLERS}")


def times_for(sampler: str, schedule: Schedule, steps: int) -> list[int]:
    """The times that suit a sampler, so many steps from T down to 0 (at most, of dpm-solver)."""
    match sampler:
        case "ancestral" | "ddim":
            return uniform_times(schedule.T, steps)
        case "dpm-solver":
            return log_snr_times(schedule, steps)
    raise ValueError(f"sampler {sampler!r} is none of {SAMPLERS}")


def uniform_times(T: int, n: int) -> list[int]:
    """n steps of equal length from T down to 0: n + 1 integers. n = T is every step, as in the paper.

    They always begin at T, where the noise that sampling starts from belongs.
    """
    if not 1 <= n <= T:
        raise ValueError(f"a schedule of {T} steps can be walked in 1 to {T} steps, not {n}")
    return [round(T * (n - i) / n) for i in range(n + 1)]


def nonuniform_times(T: int, n: int) -> list[int]:
    """n steps from T down to 0, of which 60 % lie in the noisiest 30 % of T: n + 1 integers (Jiang et al. 2025,
    arXiv:2405.14802, the non-uniform sampler of Fast-DDPM)."""
    if not 2 <= n <= T // 4:
        most = f"2 to {T // 4} such steps" if T >= 8 else "no such steps, being under 8"
        raise ValueError(f"a schedule of {T} steps can be walked in {most}, not {n}")
    late = round(0.4 * n)
    knee = round(0.7 * T)
    return [knee + t for t in uniform_times(T - knee, n - late)[:-1]] + uniform_times(knee, late)


def log_snr_times(schedule: Schedule, n: int, lowest: float = -5.1) -> list[int]:
    """At most n steps from T down to 0, at equal distances in log SNR (in lambda, which is half of it) but for the first;
    the last is the clean step 1 -> 0.

    Nodes are the nearest integers, without repetition (so 40 may give 39). Cosine schedules run on to where nothing is
    left of the image, so the nodes are spread over times with lambda of `lowest` (0.6 % of signal) or more. But the walk
    starts from pure noise, which x_T alone is: so T takes the place of the first node. For the 0.6 % that noise lacks at
    that node are much in one direction: along the mean of images of 64x64, 0.3 of a standard deviation of the noise.
    """
    if not 1 <= n <= schedule.T:
        raise ValueError(f"a schedule of {schedule.T} steps can be walked in 1 to {schedule.T} steps, not {n}")
    lam = schedule.half_log_snr()[1:]
    first = int((lam >= lowest).nonzero().max()) + 1
    nodes = torch.linspace(lam[first - 1].item(), lam[0].item(), n, dtype=torch.float64)
    nearest = (lam[None, :] - nodes[:, None]).abs().argmin(dim=1) + 1
    return [schedule.T, *sorted(set(nearest.tolist()), reverse=True)[1:], 0]


def middle_times(schedule: Schedule, walk: list[int], n: int) -> list[int]:
    """n steps along a walk: its middle as it is, its ends in one step each; n + 1 of its times.

    The middle is where signal and noise are about equal (lambda near 0; a little more noise, where the image's shape is
    decided): there x_0_hat changes most from step to step. Those for fewer steps are among those for more.
    """
    if not 1 <= n < len(walk):
        raise ValueError(f"a walk of {len(walk) - 1} steps can be shortened to 1 to {len(walk) - 1} steps, not {n}")
    lam = schedule.half_log_snr()
    inner = sorted(walk[1:-1], key=lambda t: abs(lam[t].item() + 0.2))
    return [walk[0], *sorted(inner[: n - 1], reverse=True), 0]
