"""Restoration: from a measurement y = A x + n back to the image, with a trained network as what is known of images.

No training. A sampler of reverse.py asks the network for x_0_hat at each time; here x_0_hat is first corrected by what was
measured (`data_step`), then the walk goes on as usual (`restore`). One data step serves several papers:

    DDNM      Wang et al. 2023, arXiv:2212.00490       sigma = 0: what was measured replaces what was predicted
    DiffPIR   Zhu et al. 2023, arXiv:2305.08995        sigma > 0: a compromise by their variances; zeta 0 .. 1
    DAPS      Zhang et al. 2025, arXiv:2407.01521      draws = True: a draw from that compromise, not its mean; zeta = 1
    RePaint   Lugmayr et al. 2022, arXiv:2201.09865    times that go back up: `resampled_times`

Images are in [0, 1] here, as a scanner's are, and sigma is a share of that full scale; the network's x_t is in [-1, 1].
"""

import copy
import functools
import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm.forward import q_sample
from ddpm.reverse import ddim
from ddpm.schedule import Schedule

PHASE_SPREAD = 2.5  # radian: the standard deviation of what is unknown of a phase, by `polynomials`
ERRORS_GATHER = 50.0  # errors of x_0_hat are not white but gather in low frequencies, where a phase is found

# ---------------------------------------------------------------------------------------------------------
# What can be measured. Each operator's singular values are all `gain`, or 0: so A^T = gain^2 A^+, A A^T = gain^2 on what
# can be measured, and every formula below is a closed form. (Of images as A sees them: for k-space, of complex ones.)


class Operator:
    """A. What measures a whole image, unless told otherwise."""

    gain = 1.0
    rounds = 1  # how often `restore` goes to and fro between what was measured and the images that `lower` can give

    def to(self, device) -> "Operator":
        """The same operator with its tensors there."""
        there = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(there, name, value.to(device))
        return there

    def lift(self, image: Tensor) -> Tensor:
        """The image as A sees it. For k-space that is a complex image, else the image itself."""
        return image

    def lower(self, lifted: Tensor) -> Tensor:
        """Back: the real image that is nearest to it."""
        return lifted

    def shown(self, lifted: Tensor) -> Tensor:
        """The real image to look at."""
        return self.lower(lifted)

    def refined(self, image: Tensor, y: Tensor, error: float) -> "Operator":
        """A, as well as it is known if y was measured of this image (B, 1, H, W). error: the image's, a standard deviation."""
        return self

    def apply(self, x: Tensor) -> Tensor:
        """A x."""
        return x

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y, the smallest image that measures like y."""
        return y


class Inpainting(Operator):
    """y = the known pixels, 0 elsewhere. known (H, W): 1 where the image is known."""

    def __init__(self, known: Tensor):
        self.known = known

    def apply(self, x: Tensor) -> Tensor:
        return self.known * x

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.known * y


class SuperResolution(Operator):
    """y = the means of factor x factor pixels (B, C, H / factor, W / factor). A^+ repeats them."""

    def __init__(self, factor: int):
        self.factor, self.gain = factor, 1 / factor

    def apply(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.factor)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)


class KSpace(Operator):
    """y = the measured lines of the Fourier transform of a complex image, 0 elsewhere: Cartesian MRI, one coil.

    lines (W,): 1 where a column of k-space was measured, zero frequency at W // 2. phase (H, W) in radians turns the real
    image into the complex one, x exp(i phase); a magnitude image has none, and then its k-space is Hermitian: each line
    tells its mirror image too, which no scanner's does (Shimron et al. 2022, arXiv:2109.08237). estimated: the phase is a
    first guess, which `refined` mends.
    """

    # The real part of a correction spreads it over a line and its mirror image: each round halves what is missing.
    rounds = 5

    def __init__(self, lines: Tensor, phase: Tensor | None = None, estimated: bool = False):
        self.known, self.estimated = lines, estimated
        self.coefficients = torch.zeros(())  # of the polynomials that were added to the first guess, all 0 at first
        self.turn = torch.exp(1j * (torch.zeros(()) if phase is None else phase))

    def lift(self, image: Tensor) -> Tensor:
        return image * self.turn

    def lower(self, lifted: Tensor) -> Tensor:
        return (lifted * self.turn.conj()).real

    def shown(self, lifted: Tensor) -> Tensor:
        return lifted.abs() if self.estimated else self.lower(lifted)

    def refined(self, image: Tensor, y: Tensor, error: float) -> "KSpace":
        """With a phase that explains y better: a step of Gauss and Newton towards the most probable one.

        It is the first guess and `polynomials`, whose coefficients c are N(0, spread^2); and y - A (image exp(i phase)) is
        noise of the variance ERRORS_GATHER error^2. So |y - A (image exp(i phase))|^2 / that + |c / spread|^2 shall be least.
        """
        if not self.estimated:
            return self
        there = copy.copy(self)
        terms, spread = (x.to(image) for x in polynomials(*image.shape[-2:]))
        weight = (ERRORS_GATHER * error**2 / spread**2)[:, None]
        lifted = self.lift(image)
        residual = (y - self.known * fourier(lifted)).flatten(1)[..., None]  # (B, H W, 1)
        slope = (self.known * fourier(1j * lifted * terms)).flatten(2)  # (B, terms, H W): by each coefficient
        normal = (slope.conj() @ slope.mT).real + torch.diag(weight[:, 0])
        step = torch.linalg.solve(normal, (slope.conj() @ residual).real - weight * self.coefficients)  # (B, terms, 1)
        there.coefficients = self.coefficients + step
        there.turn = self.turn * torch.exp(1j * (step[..., None] * terms).sum(1, keepdim=True))
        return there

    def apply(self, x: Tensor) -> Tensor:
        return self.known * fourier(x)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return inverse_fourier(self.known * y)


def fourier(x: Tensor) -> Tensor:
    """The orthonormal Fourier transform of the last two dimensions, with the zero frequency in the middle."""
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, (-2, -1)), norm="ortho"), (-2, -1))


def inverse_fourier(y: Tensor) -> Tensor:
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(y, (-2, -1)), norm="ortho"), (-2, -1))


# ---------------------------------------------------------------------------------------------------------
# The data step and the walk


def data_step(operator: Operator, y: Tensor, x: Tensor, r: float, sigma: float, z: Tensor | None = None) -> Tensor:
    """What the image is, if it was believed to be N(x, r^2 I) and y = A x + N(0, sigma^2 I) was measured.

    The mean of that posterior is x + w A^+ (y - A x), with w = r^2 / (r^2 + (sigma / gain)^2): the minimum of
    |y - A x'|^2 / sigma^2 + |x' - x|^2 / r^2 (DiffPIR); w = 1 without noise (DDNM). With z ~ N(0, I) it is a draw (DAPS, which
    takes steps of Langevin's): the variance is r^2 where nothing was measured, and (1 - w) r^2 where something was.
    Complex noise has sigma^2 in each of its two parts.
    """
    w = 1.0 if sigma == 0 else r**2 / (r**2 + (sigma / operator.gain) ** 2)
    x = x + w * operator.pseudo_inverse(y - operator.apply(x))
    if z is not None:
        measured = operator.pseudo_inverse(operator.apply(z))
        x = x + r * (z - (1 - math.sqrt(1 - w)) * measured)
    return x


def to_and_fro(operator: Operator, y: Tensor, lifted: Tensor) -> Tensor:
    """What measures exactly as y and is nearly an image that `lower` can give: more rounds of one and the other."""
    for _ in range(operator.rounds - 1):
        lifted = data_step(operator, y, operator.lift(operator.lower(lifted)), 1.0, 0.0)
    return lifted


def restore(
    predict_x_0,
    schedule: Schedule,
    x_T: Tensor,
    times: list[int],
    noise,
    operator: Operator,
    y: Tensor,
    sigma: float = 0.0,
    zeta: float = 1.0,
    draws: bool = False,
    prior_variance: float = math.inf,
) -> Iterator[Tensor]:
    """Yields the estimate of the image in [0, 1] (complex where the operator lifts it) after each data step.

    predict_x_0, x_T, times and noise are as for the samplers of reverse.py; times may go back up (`resampled_times`).
    zeta: how much of each step's noise is fresh, 0 none to 1 all (DiffPIR, whose lambda is 1 here). prior_variance:
    v, of images in [-1, 1]. x_0 given x_t has the variance r^2 = 1 / (1 / n^2 + 1 / v), n^2 = (1 - alpha_bar_t) /
    alpha_bar_t, if images are N(m, v I): then the walk ends around the right mean, and with draws and zeta = 1 it
    draws from the posterior (of k-space nearly). With v = inf, as in the papers, r^2 = n^2 is too large where n is,
    and the measurement counts for too much (and alpha_bar_T may not be 0).
    What is not known of the operator, a phase, is found on the way: the better the image is known, the better that
    is.
    """
    a, s = schedule.alpha_bar.flatten().sqrt().tolist(), (1 - schedule.alpha_bar).flatten().sqrt().tolist()
    x_t = x_T
    for now, then in pairwise(times):
        if then > now:  # back up: q(x_then | x_now), Eq. 4 between two times
            ratio = a[then] / a[now]
            x_t = ratio * x_t + math.sqrt(1 - ratio**2) * noise()
            continue
        image = (predict_x_0(x_t, now) + 1) / 2
        r = ((a[now] / s[now]) ** 2 + 1 / prior_variance) ** -0.5 / 2  # [0, 1] is half of [-1, 1]
        operator = operator.refined(image, y, math.hypot(r, sigma))
        z = operator.lift(noise()) if draws and then > 0 else None
        lifted = data_step(operator, y, operator.lift(image), r, sigma, z)
        if sigma == 0:
            lifted = to_and_fro(operator, y, lifted)
        yield lifted
        x_0 = 2 * operator.lower(lifted) - 1
        eps_hat = (x_t - a[now] * x_0) / s[now]
        x_t = a[then] * x_0 + s[then] * math.sqrt(1 - zeta) * eps_hat
        if zeta > 0 and then > 0:
            x_t = x_t + s[then] * math.sqrt(zeta) * noise()


def denoise(predict_x_0, schedule: Schedule, y: Tensor, sigma: float) -> Tensor:
    """The image behind y = image + N(0, sigma^2 I), both in [0, 1]: the posterior mean, in one call.

    A noisy image is an x_t that lacks its factor: with sqrt(1 - alpha_bar_t) / sqrt(alpha_bar_t) = 2 sigma (the network's
    images span 2), x_t = sqrt(alpha_bar_t) (2 y - 1) is one (after Hu et al. 2022, arXiv:2201.11760).
    """
    t = nearest_time(schedule, 2 * sigma)
    return (predict_x_0(schedule.alpha_bar[t].sqrt().item() * (2 * y - 1), t) + 1) / 2


def denoise_unseen(predict_x_0, schedule: Schedule, y: Tensor, sigma: float, noise, alpha: float = 1.0) -> Tensor:
    """The image behind y = image + N(0, sigma^2 I), both in [0, 1], by a network that never saw one without such noise
    (Noisier2Noise, Moran et al. 2020, arXiv:1910.11908, section 3).

    To that network y is an image; its x_0_hat is E[y | z] of z = y + m, with more noise m ~ N(0, alpha^2 sigma^2 I). In z
    there is 1 / alpha^2 times as much variance of y's own noise as of m, and so of what is expected of them:
    E[image | z] = ((1 + alpha^2) E[y | z] - z) / alpha^2. noise() is shaped like y; the mean of several is better than one.
    """
    t = nearest_time(schedule, 2 * sigma * alpha)
    a, s = schedule.alpha_bar[t].sqrt().item(), (1 - schedule.alpha_bar[t]).sqrt().item()
    alpha = s / a / (2 * sigma)  # of a time that there is
    z = y + alpha * sigma * noise()
    expected = (predict_x_0(a * (2 * z - 1), t) + 1) / 2
    return ((1 + alpha**2) * expected - z) / alpha**2


def nearest_time(schedule: Schedule, ratio: float) -> int:
    """The t whose noise is closest to `ratio` times its signal, in the logarithm."""
    return int((schedule.half_log_snr()[1:] + math.log(ratio)).abs().argmin()) + 1


def heal(predict_x_0, schedule: Schedule, image: Tensor, times: list[int], noise) -> Tensor:
    """The image in [0, 1], noised to times[0] and drawn anew from there under predict_x_0's condition: told that there is
    no lesion, it keeps the large shapes and mends the rest (after AnoDDPM, Wyatt et al. 2022, whose noise is simplex
    noise). The walk down is DDIM's, eta 0."""
    t = torch.tensor([times[0]])
    *_, healed = ddim(predict_x_0, schedule, q_sample(schedule, 2 * image - 1, t, noise()), times, noise)
    return (healed + 1) / 2


def resampled_times(times: list[int], jump: int, repeats: int) -> list[int]:
    """Each stretch of `jump` steps of a walk taken `repeats` times, going back up in between (RePaint, section 4.2); the one
    that ends at t = 0 once, as there is no going back up from an image."""
    walk, down = times[:1], times[1:]
    for start in range(0, len(down), jump):
        stretch = down[start : start + jump]
        back = walk[-1]
        walk += stretch if stretch[-1] == 0 else (stretch + [back]) * (repeats - 1) + stretch
    return walk


def predictor_corrector(
    predict_x_0,
    schedule: Schedule,
    x_T: Tensor,
    times: list[int],
    noise,
    operator: Operator,
    y: Tensor,
    snr: float = 0.16,
) -> Iterator[Tensor]:
    """Score-MRI (Chung & Ye 2022, arXiv:2110.05243), in the variance-preserving form: an ancestral
    step and a Langevin step at each time, and after each of them the measurement, as noisy as x_t is, in the place of what
    was drawn. Two calls of the network a time; for noise-free measurements. Yields the estimate of the image in [0, 1]."""
    a, s = schedule.alpha_bar.flatten().sqrt().tolist(), (1 - schedule.alpha_bar).flatten().sqrt().tolist()

    def impose(x: Tensor, t: int) -> Tensor:
        noisy = y + s[t] / a[t] / 2 * operator.apply(operator.lift(noise())) if t > 0 else y
        lifted = data_step(operator, noisy, operator.lift((x / a[t] + 1) / 2), 1.0, 0.0)
        return to_and_fro(operator, noisy, lifted)

    def to_network(image: Tensor, t: int) -> Tensor:
        return a[t] * (2 * operator.lower(image) - 1)

    x = x_T
    for now, then in pairwise(times):
        c_0, c_t, beta_tilde = schedule.posterior(now, then)
        x_0_hat = predict_x_0(x, now)
        operator = operator.refined((x_0_hat + 1) / 2, y, s[now] / 2)  # of x_0 given x_t, were images N(0, I)
        x = c_0 * x_0_hat + c_t * x
        x = x + math.sqrt(beta_tilde) * noise() if then > 0 else x
        image = impose(x, then)
        if then > 0:
            x = to_network(image, then)
            score = (a[then] * predict_x_0(x, then) - x) / s[then] ** 2  # of q(x_t), by Tweedie's formula
            z = noise()
            size_z, size_score = (torch.linalg.vector_norm(part, dim=(1, 2, 3), keepdim=True) for part in (z, score))
            length = 2 * (snr * size_z / size_score) ** 2
            image = impose(x + length * score + (2 * length).sqrt() * z, then)
            x = to_network(image, then)
        yield image


# ---------------------------------------------------------------------------------------------------------
# k-space as fastMRI samples it (Zbontar et al. 2018, arXiv:1811.08839)


def centre_lines(width: int, fraction: float) -> Tensor:
    """(W,) bool: the round(W * fraction) lines in the middle, which are always measured."""
    n = round(width * fraction)
    first = (width - n + 1) // 2
    lines = torch.zeros(width, dtype=torch.bool)
    lines[first : first + n] = True
    return lines


def random_lines(width: int, acceleration: float, fraction: float, generator: torch.Generator) -> Tensor:
    """(W,) bool: the centre, and each other line with the probability that makes W / acceleration lines on average."""
    centre = centre_lines(width, fraction)
    n = int(centre.sum())
    return centre | (torch.rand(width, generator=generator) < (width / acceleration - n) / (width - n))


def equispaced_lines(width: int, acceleration: float, fraction: float, generator: torch.Generator) -> Tensor:
    """(W,) bool: the centre, and lines at equal distances (rounded) from a random first one, so that centre and all make
    W / acceleration lines on average."""
    centre = centre_lines(width, fraction)
    n = int(centre.sum())
    spacing = acceleration * (n - width) / (n * acceleration - width)
    offset = int(torch.randint(round(spacing), (1,), generator=generator))
    places = torch.arange(offset, width - 1, spacing, dtype=torch.float64).round().long()
    lines = centre.clone()
    lines[places] = True
    return lines


def smooth_phase(height: int, width: int, generator: torch.Generator) -> Tensor:
    """(H, W) radians: a random plane, paraboloid and saddle, of about 1 radian across the image, as coils and field make."""
    v, u = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    terms = torch.stack([torch.ones_like(u), u, v, u * u, v * v, u * v])
    return torch.tensordot(torch.randn(6, generator=generator), terms, 1)


@functools.cache
def polynomials(height: int, width: int, degree: int = 7) -> tuple[Tensor, Tensor]:
    """(N, H, W): the polynomials of two variables up to that degree (36 up to the seventh), orthogonal on the pixels, of
    mean square 1; and (N,) the standard deviation of their coefficients in a phase [radian], which falls with the degree:
    phases are smooth."""
    v, u = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    powers = [(total - j, j) for total in range(degree + 1) for j in range(total + 1)]
    columns = torch.stack([u.double() ** i * v.double() ** j for i, j in powers]).flatten(1).T
    terms = (torch.linalg.qr(columns).Q.T * math.sqrt(height * width)).view(-1, height, width)
    spread = PHASE_SPREAD * 0.6 ** torch.tensor([float(i + j) for i, j in powers])
    return terms.float(), spread[: len(terms)]  # fewer where there are fewer pixels


def estimated_phase(y: Tensor, centre: Tensor) -> Tensor:
    """A first guess of the phase (H, W): the polynomial that is nearest to the phase of the image that the centre of k-space
    (H, W) shows, where that is bright. It is blurred, so `KSpace.refined` goes on from there."""
    half = centre.sum() / 2
    place = torch.arange(len(centre)) - len(centre) // 2
    window = torch.cos(torch.pi / 2 * (place / (half + 1)).clamp(-1, 1)) ** 2  # soft, or the edges would ring
    seen = inverse_fourier(y * centre * window)
    terms, bright = polynomials(*y.shape, degree=3)[0].flatten(1).T, seen.abs().flatten()[:, None]
    phase = seen.sum().angle().expand(y.shape)
    for _ in range(30):  # each fits what is left, as angles are known up to a whole turn only
        left = (seen * torch.exp(-1j * phase)).angle().flatten()[:, None]
        phase = phase + (terms @ torch.linalg.lstsq(bright * terms, bright * left).solution).view(y.shape)
    return phase
