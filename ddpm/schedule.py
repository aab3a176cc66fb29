"""The noise schedule: how much of the image is left at time t (the paper's section 2).

Indices are the paper's: t = 1 .. T are the noisy images and t = 0 is the clean one, so
beta[0] = 0 and alpha_bar[0] = 1. Hence no "previous" arrays, and never an alpha_bar[-1],
which Python would silently answer with the noisiest entry.

The table is float64 on the CPU. Coefficients are combined there and cast only where they meet
an image: 1 - alpha_bar from a float32 table would be off by up to 5e-4 of itself where alpha_bar is near 1.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SCHEDULES = ("linear", "cosine", "sigmoid")
OBJECTIVES = ("eps", "x_0", "v")


@dataclass(frozen=True)
class Schedule:
    """beta_t, alpha_t = 1 - beta_t and alpha_bar_t = prod_{s<=t} alpha_s, each (T+1, 1, 1, 1) float64.

    The shape lets `alpha_bar[t]` broadcast against images (B, C, H, W) for times t (B,).
    A time is a (B,) integer tensor on the CPU, or (in `posterior` always) one Python int for the whole batch.
    In every file, `a` and `s` side by side are the weights sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t); an `s` beside a
    `t` is an earlier time.
    """

    beta: Tensor
    alpha: Tensor
    alpha_bar: Tensor

    @property
    def T(self) -> int:
        return len(self.beta) - 1

    def signal_and_noise(self, t, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), the two weights of Eq. 4, cast to match `like`."""
        alpha_bar = self.alpha_bar[t]
        return alpha_bar.sqrt().to(like), (1 - alpha_bar).sqrt().to(like)

    def snr(self, t) -> Tensor:
        """Signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t), float64; infinite at t = 0."""
        return self.alpha_bar[t] / (1 - self.alpha_bar[t])

    def half_log_snr(self) -> Tensor:
        """lambda_t = log(sqrt(alpha_bar_t) / sqrt(1 - alpha_bar_t)), half the log of the SNR, for t = 0 .. T, (T+1,) float64.

        It falls with t, from +inf at t = 0 (to -inf at t = T if the terminal SNR is zero).
        """
        alpha_bar = self.alpha_bar.flatten()
        return 0.5 * (alpha_bar.log() - (1 - alpha_bar).log())

    def noisier(self, extra: float) -> "tuple[Schedule, Tensor]":
        """A schedule with 1 + extra t / T times the noise for the same image, and factors n_t, (T+1, 1, 1, 1), that
        give its x_t this one's signal. (Used by `draw` in model.py; no part of the paper.)

        n_t times an x_t of the other schedule is sqrt(alpha_bar_t) x_0 + (1 + extra t / T) sqrt(1 - alpha_bar_t) eps: its
        SNR is this one's over (1 + extra t / T)^2.
        """
        more = 1 + extra * torch.linspace(0, 1, self.T + 1, dtype=torch.float64).view(-1, 1, 1, 1)
        squared = self.alpha_bar + more**2 * (1 - self.alpha_bar)
        alpha_bar = self.alpha_bar / squared
        alpha = torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
        return Schedule(1 - alpha, alpha, alpha_bar), squared.sqrt()

    # The network may be asked for the noise eps, for the image x_0, or for
    # v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022, arXiv:2202.00512).
    # With x_t known, each of the three gives the other two.

    def v_from(self, x_0: Tensor, eps: Tensor, t) -> Tensor:
        """The velocity v of the pair (x_0, eps) at time t; all (B, C, H, W)."""
        a, s = self.signal_and_noise(t, x_0)
        return a * eps - s * x_0

    def x_0_from(self, objective: str, output: Tensor, x_t: Tensor, t) -> Tensor:
        """x_0 from what the network was asked for; all (B, C, H, W).

        "eps" is Eq. 15, Eq. 4 solved for x_0, and so needs alpha_bar_t > 0.
        """
        a, s = self.signal_and_noise(t, x_t)
        match objective:
            case "eps":
                return (x_t - s * output) / a
            case "v":
                return a * x_t - s * output
            case "x_0":
                return output
        raise ValueError(f"objective {objective!r} is none of {OBJECTIVES}")

    def eps_from(self, x_0: Tensor, x_t: Tensor, t) -> Tensor:
        """The noise that leads from x_0 to x_t (Eq. 4 solved for eps); needs t >= 1."""
        a, s = self.signal_and_noise(t, x_t)
        return (x_t - a * x_0) / s

    def posterior(self, t: int, s: int) -> tuple[float, float, float]:
        """q(x_s | x_t, x_0) = N(c_0 x_0 + c_t x_t, beta_tilde) for times t > s >= 0 (Eqs. 6 and 7).

        Returns (c_0, c_t, beta_tilde). The paper has s = t - 1. Its derivation holds for any s < t with
        alpha_t replaced by alpha_bar_t / alpha_bar_s, which is all that skipping steps takes.
        At s = 0 it is (1, 0, 0): x_0 itself, and no noise.
        """
        alpha_bar_t, alpha_bar_s = self.alpha_bar[t].item(), self.alpha_bar[s].item()
        alpha = alpha_bar_t / alpha_bar_s
        c_0 = math.sqrt(alpha_bar_s) * (1 - alpha) / (1 - alpha_bar_t)
        c_t = math.sqrt(alpha) * (1 - alpha_bar_s) / (1 - alpha_bar_t)
        beta_tilde = (1 - alpha) * (1 - alpha_bar_s) / (1 - alpha_bar_t)
        return c_0, c_t, beta_tilde


def make_schedule(kind: str, T: int = 1000, zero_terminal_snr: bool = False) -> Schedule:
    """The schedule of `kind`, one of SCHEDULES, with T steps.

    linear   Ho et al. 2020: beta from 1e-4 to 0.02, T = 1000; for other T times 1000 / T (Nichol & Dhariwal's code).
    cosine   Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17.
    sigmoid  Jabri et al. 2022, arXiv:2212.11972, with start -3, end 3, tau 1.

    Raises ValueError for an unknown kind, for one step, or a T so small that a beta would reach 1.
    """
    u = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    match kind:
        case "linear":
            beta = torch.linspace(1e-4, 0.02, T, dtype=torch.float64) * (1000 / T)
        case "cosine":
            beta = betas_from(torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2)
        case "sigmoid":
            curve = torch.sigmoid(6 * u - 3)
            beta = betas_from(curve[-1] - curve)
        case _:
            raise ValueError(f"schedule {kind!r} is none of {SCHEDULES}")
    if T < 2 or beta.max() >= 1:  # linear, with T of 20 or less
        raise ValueError(
            f"a {kind} schedule of {T} steps would be one step, or have a beta of 1 or more; it needs more steps"
        )

    beta = torch.cat([beta.new_zeros(1), beta])
    if zero_terminal_snr:
        beta = with_zero_terminal_snr(beta)
    beta = beta.view(-1, 1, 1, 1)
    return Schedule(beta, 1 - beta, (1 - beta).cumprod(0))


def betas_from(alpha_bar: Tensor) -> Tensor:
    """beta_1 .. beta_T (T,) from a decreasing curve (T+1,) proportional to alpha_bar.

    Capped at 0.999 as Nichol & Dhariwal do, since a curve that ends at 0 would give beta_T = 1.
    """
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def with_zero_terminal_snr(beta: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that alpha_bar_T = 0 exactly and alpha_bar_1 stays; (T+1,) -> (T+1,).

    Lin et al. 2023, arXiv:2305.08891, Algorithm 1: sampling starts from pure noise, so training must
    reach it. At t = T there is no signal to solve for, so the network must predict v or x_0, not eps.
    """
    root = (1 - beta).cumprod(0).sqrt()
    first, last = root[1], root[-1]
    root = torch.cat([root[:1], (root[1:] - last) * first / (first - last)])
    alpha_bar = root**2
    return torch.cat([beta[:1], 1 - alpha_bar[1:] / alpha_bar[:-1]])
