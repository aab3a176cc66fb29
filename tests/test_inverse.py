"""Restoration against linear algebra: the operators as dense matrices, and a Gaussian prior, whose posterior is known."""

import math

import pytest
import torch

from ddpm import inverse
from ddpm.forward import q_sample
from ddpm.inverse import (
    ERRORS_GATHER,
    Inpainting,
    KSpace,
    Operator,
    SuperResolution,
    centre_lines,
    data_step,
    denoise,
    denoise_unseen,
    equispaced_lines,
    estimated_phase,
    fourier,
    heal,
    inverse_fourier,
    nearest_time,
    polynomials,
    predictor_corrector,
    random_lines,
    resampled_times,
    restore,
    smooth_phase,
)
from ddpm.reverse import uniform_times
from ddpm.schedule import make_schedule

COSINE = make_schedule("cosine", 1000)
H = W = 4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def operators():
    known = torch.rand(H, W, generator=generator()) < 0.6
    lines = torch.tensor([True, False, True, False])
    return {
        "denoising": Operator(),
        "inpainting": Inpainting(known),
        "super-resolution": SuperResolution(2),
        "k-space": KSpace(lines, smooth_phase(H, W, generator(1))),
    }


def matrix(function, example):
    """The dense matrix of a linear function of images."""
    unit = torch.eye(example.numel(), dtype=example.dtype).view(-1, 1, *example.shape)
    return function(unit).flatten(1).T


def matrices(operator):
    x = torch.zeros(H, W, dtype=torch.float64)
    x = operator.lift(x).to(torch.complex128) if isinstance(operator, KSpace) else x
    A = matrix(operator.apply, x)
    return A, matrix(operator.pseudo_inverse, operator.apply(x[None, None])[0, 0])


@pytest.mark.parametrize("name", operators())
def test_the_pseudo_inverse_fulfils_its_four_equations(name):
    A, P = matrices(operators()[name])
    for left, right in ((A @ P @ A, A), (P @ A @ P, P), ((A @ P).mH, A @ P), ((P @ A).mH, P @ A)):
        assert torch.allclose(left, right, atol=1e-6)


@pytest.mark.parametrize("name", operators())
def test_all_singular_values_are_the_gain_or_0(name):
    operator = operators()[name]
    values = torch.linalg.svdvals(matrices(operator)[0])
    assert ((values - operator.gain).abs().minimum(values) < 1e-6).all() and values.max() > 0.1


@pytest.mark.parametrize("name", operators())
def test_the_adjoint_passes_the_dot_test(name):
    """<A x, y> = <x, A^T y>."""
    operator = operators()[name]
    dtype = torch.complex64 if name == "k-space" else torch.float32
    x = torch.randn(1, 1, H, W, dtype=dtype)
    y = torch.randn(operator.apply(x).shape, dtype=dtype)
    there, back = (
        (a.conj() * b).sum() for a, b in ((operator.apply(x), y), (x, operator.gain**2 * operator.pseudo_inverse(y)))
    )
    assert torch.allclose(there, back, atol=1e-5)


def test_the_fourier_transform_is_orthonormal_with_the_zero_frequency_in_the_middle():
    x = torch.randn(2, 1, 6, 5, dtype=torch.complex128)
    assert torch.allclose(inverse_fourier(fourier(x)), x) and torch.allclose(fourier(x).norm(), x.norm())
    flat = fourier(torch.ones(1, 1, 6, 5))
    assert flat[0, 0, 3, 2].real == pytest.approx(30**0.5, rel=1e-5) and flat.abs().sum() == pytest.approx(
        30**0.5, rel=1e-4
    )


@pytest.mark.parametrize("sigma", [0.0, 0.3])
@pytest.mark.parametrize("name", operators())
def test_the_data_step_is_the_posterior_of_linear_algebra(name, sigma):
    """Mean and covariance of x ~ N(x_0, r^2 I) given y = A x + N(0, sigma^2 I), by dense matrices."""
    operator, r = operators()[name], 0.7
    A = matrices(operator)[0]
    x_0 = torch.randn(1, 1, H, W, dtype=torch.float64)
    x_0 = operator.lift(x_0).to(A.dtype)
    y = operator.apply(x_0 + torch.randn(1, 1, H, W, dtype=torch.float64))
    noise = sigma**2 * torch.eye(len(A), dtype=A.dtype)
    gain = r**2 * A.mH @ torch.linalg.pinv(r**2 * A @ A.mH + noise, rcond=1e-9)
    expected = x_0.flatten() + gain @ (y - operator.apply(x_0)).flatten()
    assert torch.allclose(data_step(operator, y, x_0, r, sigma).flatten(), expected, atol=1e-5)

    draw = matrix(lambda z: data_step(operator, y, x_0, r, sigma, z) - data_step(operator, y, x_0, r, sigma), x_0[0, 0])
    covariance = r**2 * torch.eye(H * W, dtype=A.dtype) - r**2 * gain @ A
    assert torch.allclose(draw @ draw.mH, covariance, atol=1e-5)


# The walk


V, MEAN = 0.25, -0.2  # of the prior, of images in [-1, 1]


def exact(x_t, t):
    """E[x_0 | x_t] for x_0 ~ N(MEAN, V I)."""
    a, s = COSINE.alpha_bar[t].sqrt().item(), (1 - COSINE.alpha_bar[t]).sqrt().item()
    return MEAN + a * V / (a * a * V + s * s) * (x_t - a * MEAN)


def walked(operator, y, sigma, n, times, **how):
    noise_of = generator(3)

    def noise():
        return torch.randn(n, 1, H, W, dtype=torch.float64, generator=noise_of)

    *_, image = restore(exact, COSINE, noise(), times, noise, operator, y, sigma, **how)
    return image


@pytest.mark.parametrize("sigma", [0.0, 0.25])
@pytest.mark.parametrize("name", operators())
def test_with_a_gaussian_prior_the_walk_draws_from_the_posterior(name, sigma):
    """Exact when r^2 is the variance of x_0 given x_t, x_0_hat its mean, and every x_0 a draw. Of images in [0, 1], whose
    prior is N((MEAN + 1) / 2, V / 4)."""
    operator, n = operators()[name], 4000
    if name == "k-space":  # of a complex image, whose other half the real prior knows nothing of: see below
        operator = KSpace(torch.ones(W, dtype=torch.bool))
    y = operator.apply(operator.lift(torch.rand(1, 1, H, W, dtype=torch.float64, generator=generator(2))))
    how = dict(draws=True, prior_variance=V, zeta=1.0)
    image = operator.lower(walked(operator, y, sigma, n, uniform_times(1000, 50), **how)).flatten(1)
    A = matrices(operator)[0]
    mean = operator.lift(torch.full((1, 1, H, W), (MEAN + 1) / 2, dtype=torch.float64)).to(A.dtype)
    gain = V / 4 * A.mH @ torch.linalg.pinv(V / 4 * A @ A.mH + sigma**2 * torch.eye(len(A), dtype=A.dtype), rcond=1e-9)
    expected = (mean.flatten() + gain @ (y - operator.apply(mean)).flatten()).real
    variance = (V / 4 * torch.eye(H * W, dtype=A.dtype) - V / 4 * gain @ A).real
    assert (image.mean(dim=0) - expected).abs().max() < 0.03
    assert (torch.cov(image.T) - variance).abs().max() < 0.006


@pytest.mark.parametrize("how", [dict(draws=True), dict(zeta=0.0), dict(zeta=1.0), dict(zeta=0.3)])
def test_the_usual_r_is_biased_towards_the_measurement(how):
    """r^2 = s^2, as DiffPIR and DDNM have it. v = 1/4, sigma = 1/2 in [-1, 1]: the posterior's mean is halfway between the
    prior's, 0.4 in [0, 1], and the measured 1. In 20 steps the mean is 0.75 to 0.83 instead."""
    y = torch.ones(1, 1, H, W, dtype=torch.float64)
    usual, right = (
        walked(Operator(), y, 0.25, 2000, uniform_times(1000, 20), prior_variance=v, **how).mean().item()
        for v in (math.inf, V)
    )
    assert right == pytest.approx(0.7, abs=0.01) and 0.74 < usual < 0.85


@pytest.mark.parametrize("zeta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", operators())
def test_without_noise_the_result_measures_as_was_measured(name, zeta):
    operator = operators()[name]
    y = operator.apply(operator.lift(torch.rand(1, 1, H, W, dtype=torch.float64)))
    image = walked(operator, y, 0.0, 3, uniform_times(1000, 10), zeta=zeta)
    assert (operator.apply(image) - y).abs().max() < 1e-5


def test_without_fresh_noise_the_walk_is_ddims():
    """zeta = 0 and nothing measured: Song et al.'s Eq. 12 with sigma = 0."""
    from ddpm.reverse import ddim

    times, x_T = uniform_times(1000, 20), torch.randn(2, 1, H, W, dtype=torch.float64)
    nothing = Inpainting(torch.zeros(H, W))
    *_, ours = restore(exact, COSINE, x_T, times, None, nothing, torch.zeros(1, 1, H, W), zeta=0.0)
    *_, theirs = ddim(exact, COSINE, x_T, times, None)
    assert torch.allclose(2 * ours - 1, theirs, atol=1e-6)


def test_resampled_times_go_back_up():
    assert resampled_times([9, 6, 3, 0], 1, 1) == [9, 6, 3, 0]
    assert resampled_times([9, 6, 3, 0], 1, 2) == [9, 6, 9, 6, 3, 6, 3, 0]
    assert resampled_times([9, 8, 6, 3, 0], 2, 3) == [9, 8, 6, 9, 8, 6, 9, 8, 6, 3, 0]


def test_going_back_up_is_the_forward_process():
    """With nothing measured, a walk that goes back up still ends in the prior: its steps keep q(x_t)."""
    nothing, times = Inpainting(torch.zeros(H, W)), resampled_times(uniform_times(1000, 25), 5, 3)
    image = walked(nothing, torch.zeros(1, 1, H, W), 0.0, 4000, times, draws=True, prior_variance=V, zeta=1.0)
    assert (2 * image - 1).mean().item() == pytest.approx(MEAN, abs=0.02)
    assert (2 * image - 1).var().item() == pytest.approx(V, rel=0.05)


def test_predictor_corrector_draws_around_the_posterior_and_fits_what_was_measured():
    """Independent pixels: the known ones are exact, and the unknown ones follow the prior."""
    operator, noise_of = Inpainting(torch.rand(16, 16, generator=generator()) < 0.6), generator(5)
    y = operator.apply(torch.rand(1, 1, 16, 16, dtype=torch.float64))

    def noise():
        return torch.randn(200, 1, 16, 16, dtype=torch.float64, generator=noise_of)

    *_, image = predictor_corrector(exact, COSINE, noise(), uniform_times(1000, 100), noise, operator, y)
    assert (operator.apply(image) - y).abs().max() < 1e-6
    unknown = 2 * image[:, 0, ~operator.known] - 1
    assert unknown.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert unknown.var().item() == pytest.approx(V, rel=0.15)


def test_the_corrector_is_a_langevin_step_of_the_length_that_its_paper_has():
    """Of what nothing is measured of: x + l score + sqrt(2 l) z, with l = 2 (r |z| / |score|)^2, sample by sample (Song
    et al. 2021, arXiv:2011.13456, Algorithm 5)."""
    asked, drawn = [], []

    def network(x_t, t):
        asked.append(x_t)
        return exact(x_t, t)

    def noise():
        drawn.append(torch.randn(2, 1, H, W, dtype=torch.float64))
        return drawn[-1]

    nothing = Inpainting(torch.zeros(H, W))
    list(predictor_corrector(network, COSINE, noise(), [900, 500, 0], noise, nothing, torch.zeros(1, 1, H, W), snr=0.3))
    predicted, corrected = asked[1:]
    alpha_bar = COSINE.alpha_bar[500].item()
    score = (alpha_bar**0.5 * exact(predicted, 500) - predicted) / (1 - alpha_bar)
    z = drawn[3]  # after x_T, the predictor's and the measurement's
    length = 2 * (0.3 * z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1)).view(-1, 1, 1, 1) ** 2
    assert torch.allclose(corrected, predicted + length * score + (2 * length).sqrt() * z, atol=1e-6)


def test_predictor_and_corrector_see_what_was_measured_as_noisy_as_x_t_is(monkeypatch):
    """q(x_t | x_0) on its scale, and half as much of images in [0, 1]; at the end what was measured itself."""
    seen, step, y = [], inverse.data_step, torch.full((1, 1, 64, 64), 0.5)
    monkeypatch.setattr(inverse, "data_step", lambda A, noisy, *rest: seen.append(noisy - y) or step(A, noisy, *rest))
    noise = lambda: torch.randn(1, 1, 64, 64)  # noqa: E731
    list(predictor_corrector(exact, COSINE, noise(), [900, 500, 0], noise, Operator(), y))
    alpha_bar = COSINE.alpha_bar[500].item()
    sigma = ((1 - alpha_bar) / alpha_bar) ** 0.5 / 2
    assert [error.std().item() for error in seen] == pytest.approx([sigma, sigma, 0], rel=0.05)
    assert not torch.equal(seen[0], seen[1])


def test_what_is_not_known_of_the_operator_is_found_by_the_errors_of_image_and_measurement():
    class Listens(Operator):
        def refined(self, image, y, error):
            errors.append(error)
            return self

    y, alpha_bar = torch.zeros(1, 1, H, W), COSINE.alpha_bar[500].item()
    r = (alpha_bar / (1 - alpha_bar) + 1 / V) ** -0.5 / 2
    for sigma, expected in ((0.0, r), (0.3, (r**2 + 0.3**2) ** 0.5)):
        errors = []
        walked(Listens(), y, sigma, 1, [500, 0], prior_variance=V)
        assert errors == pytest.approx([expected])
    errors, noise = [], lambda: torch.randn(1, 1, H, W)
    list(predictor_corrector(exact, COSINE, noise(), [500, 0], noise, Listens(), y))
    assert errors == pytest.approx([(1 - alpha_bar) ** 0.5 / 2])


def test_a_noisy_image_is_an_x_t_and_one_call_is_its_posterior_mean():
    """x ~ N(MEAN, V) in [-1, 1], y = (x + 1) / 2 + N(0, sigma^2): the mean of linear algebra. At sigmas that are a time's."""
    y = torch.linspace(0, 1, H * W, dtype=torch.float64).view(1, 1, H, W)
    for t in (30, 150, 400):
        alpha_bar = COSINE.alpha_bar[t].item()
        sigma = ((1 - alpha_bar) / alpha_bar) ** 0.5 / 2
        prior = (MEAN + 1) / 2
        assert torch.allclose(
            denoise(exact, COSINE, y, sigma), prior + V / 4 / (V / 4 + sigma**2) * (y - prior), atol=1e-6
        )


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_a_network_that_never_saw_a_clean_image_tells_what_it_would_be(alpha):
    """x ~ N(MEAN, V) and y = x + noise, all in [-1, 1]: of a prior that knows y alone the formula makes E[x | z], which linear
    algebra knows. The noise of z is what `noise` gave."""
    sigma = 0.05

    def of_noisy_images(x_t, t):
        alpha_bar = COSINE.alpha_bar[t].item()
        variance = V + 4 * sigma**2
        gain = alpha_bar**0.5 * variance / (alpha_bar * variance + 1 - alpha_bar)
        return MEAN + gain * (x_t - alpha_bar**0.5 * MEAN)

    y = torch.linspace(0.2, 0.8, H * W, dtype=torch.float64).view(1, 1, H, W)
    drawn = torch.randn(y.shape, generator=generator(), dtype=torch.float64)
    t = nearest_time(COSINE, 2 * sigma * alpha)
    more = ((1 - COSINE.alpha_bar[t]) / COSINE.alpha_bar[t]).item() / 4  # the variance of m at the nearest time
    z, prior = y + more**0.5 * drawn, (MEAN + 1) / 2
    expected = prior + V / 4 / (V / 4 + sigma**2 + more) * (z - prior)
    assert torch.allclose(denoise_unseen(of_noisy_images, COSINE, y, sigma, lambda: drawn, alpha), expected, atol=1e-6)


def test_the_time_is_the_one_with_the_nearest_noise():
    for t in (1, 2, 500, 999, 1000):
        alpha_bar = COSINE.alpha_bar[t].item()
        ratio = ((1 - alpha_bar) / alpha_bar) ** 0.5
        assert nearest_time(COSINE, ratio) == nearest_time(COSINE, 1.0005 * ratio) == t
    assert nearest_time(COSINE, 1e-9) == 1 and nearest_time(COSINE, 1e9) == 1000


def test_healing_starts_from_the_image_and_ends_where_the_network_says():
    image, eps, asked = torch.rand(2, 1, H, W), torch.randn(2, 1, H, W), []

    def network(x_t, t):
        asked.append((t, x_t))
        return torch.full_like(x_t, 0.5)

    healed = heal(network, COSINE, image, [300, 200, 0], lambda: eps)
    assert torch.allclose(healed, torch.full_like(image, 0.75)) and [t for t, _ in asked] == [300, 200]
    assert torch.allclose(asked[0][1], q_sample(COSINE, 2 * image - 1, torch.tensor([300]), eps))


def test_a_walk_may_start_from_pure_noise():
    schedule = make_schedule("cosine", 100, zero_terminal_snr=True)
    image = torch.rand(1, 1, H, W)
    *_, found = restore(lambda x, t: x.clamp(-1, 1), schedule, torch.randn(1, 1, H, W), [100, 50, 0],
                        lambda: torch.randn(1, 1, H, W), Inpainting(torch.eye(H)), torch.eye(H) * image, prior_variance=V)  # fmt: skip
    assert found.isfinite().all() and torch.allclose(torch.eye(H) * found, torch.eye(H) * image, atol=1e-5)


def test_rounds_bring_the_real_image_to_what_was_measured():
    """A line without its mirror image: the real part keeps half of a correction, and each round halves what is missing."""
    lines = torch.tensor([False, True, False, False])  # and not its mirror image, which is the last
    image = torch.rand(1, 1, H, W, dtype=torch.float64)
    operator = KSpace(lines, smooth_phase(H, W, generator(1)))
    y = operator.apply(operator.lift(image))
    missing = []
    for operator.rounds in (1, 2, 5):
        found = operator.lower(walked(operator, y, 0.0, 1, [500, 0]))
        missing.append((operator.apply(operator.lift(found)) - y).norm().item())
    assert missing[0] > 1.5 * missing[1] > 3 * missing[2]


# k-space


def test_the_centre_is_measured_as_fastmri_places_it():
    assert centre_lines(64, 0.08).nonzero().flatten().tolist() == [30, 31, 32, 33, 34]
    assert centre_lines(64, 0.04).nonzero().flatten().tolist() == [31, 32, 33]
    assert centre_lines(320, 0.08).sum() == 26 and centre_lines(320, 0.08)[160]


@pytest.mark.parametrize("kind", [random_lines, equispaced_lines])
@pytest.mark.parametrize("acceleration, fraction", [(4, 0.08), (8, 0.04)])
def test_lines_accelerate_as_asked_on_average_and_hold_the_centre(kind, acceleration, fraction):
    drawn = torch.stack([kind(320, acceleration, fraction, generator(i)) for i in range(200)])
    assert drawn[:, centre_lines(320, fraction)].all()
    assert drawn.double().mean().item() * acceleration == pytest.approx(1, rel=0.05)
    assert len({tuple(lines.tolist()) for lines in drawn}) > 3


def test_equispaced_lines_are_equally_far_apart_outside_the_centre():
    lines = equispaced_lines(320, 4, 0.08, generator()) & ~centre_lines(320, 0.08)
    gaps = lines[:140].nonzero().flatten().diff()
    assert gaps.max() - gaps.min() <= 1


def test_a_smooth_phase_is_found_from_the_centre_of_k_space():
    v, u = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    image = (u**2 + v**2 < 0.6).float() * (0.6 + 0.2 * torch.cos(9 * u))
    phase, centre = smooth_phase(64, 64, generator(4)), centre_lines(64, 0.08)
    y = fourier(image * torch.exp(1j * phase))
    error = torch.angle(torch.exp(1j * (estimated_phase(y * centre, centre) - phase)))[u**2 + v**2 < 0.5]
    assert phase.max() - phase.min() > 1 and error.abs().mean() < 0.15
    operator = KSpace(centre, phase)
    assert torch.allclose(operator.lower(operator.lift(image)), image, atol=1e-6)


def undersampled(image, seed, bumps=0.0):
    """Operator with a guessed phase, measurement, and the phase as it is: with bumps [radian] no cubic polynomial."""
    lines, phase = equispaced_lines(64, 4, 0.08, generator(seed)).float(), smooth_phase(64, 64, generator(seed))
    wave = torch.sin(torch.linspace(-math.pi, math.pi, 64))
    phase = phase + bumps * wave[:, None] * wave.roll(10)
    y = KSpace(lines, phase).apply(image * torch.exp(1j * phase))
    guess = estimated_phase(y[0, 0], centre_lines(64, 0.08))
    return KSpace(lines, guess, estimated=True), y, phase


def head():
    v, u = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    return ((u**2 + v**2 < 0.6).float() * (0.6 + 0.2 * torch.cos(9 * u) * torch.sin(5 * v)))[None, None]


@pytest.mark.parametrize("seed", range(3))
def test_of_a_known_image_the_phase_is_found(seed):
    image = head()
    operator, y, phase = undersampled(image, seed)
    turned = [operator.turn]
    for _ in range(4):
        operator = operator.refined(image, y, 1e-3)
        turned.append(operator.turn)
    first, last = (
        ((turn * torch.exp(-1j * phase)).angle() * image).abs().mean().item() for turn in (turned[0], turned[-1])
    )
    assert first > 1e-3 and last < 1e-4
    assert torch.allclose(operator.apply(operator.lift(image)), y, atol=1e-3)


@pytest.mark.parametrize("error", [0.01, 0.1])
def test_of_an_image_the_most_probable_phase_is_found(error):
    """There the gradient of minus the log of the probability is 0, by autograd. The phase has bumps, the image is wrong."""
    operator, y, phase = undersampled(head(), 0, bumps=0.3)
    image = head() + 0.05 * torch.randn(head().shape, generator=generator(1))
    (terms, spread), guess = polynomials(64, 64), operator.turn.angle()
    for _ in range(20):
        operator = operator.refined(image, y, error)

    def surprise(coefficients):
        there = guess + (coefficients[:, None, None] * terms).sum(0)
        residual = y - operator.known * fourier(image * torch.exp(1j * there))
        return residual.abs().square().sum() / (ERRORS_GATHER * error**2) + (coefficients / spread).square().sum()

    first, last = torch.zeros(36, requires_grad=True), operator.coefficients[0, :, 0].clone().requires_grad_()
    slopes = [torch.autograd.grad(surprise(c), c)[0].abs().max() for c in (first, last)]
    assert slopes[1] < 1e-3 * slopes[0] and surprise(last) < surprise(first)


def test_the_less_an_image_is_known_the_less_it_says_of_the_fine_parts_of_a_phase():
    operator, y, phase = undersampled(head(), 0, bumps=0.3)
    wrong = []
    for error in (1e-3, 100.0):
        one = operator
        for _ in range(4):
            one = one.refined(head(), y, error)
        wrong.append(((one.turn * torch.exp(-1j * phase)).angle() * head()).square().mean().sqrt().item())
    start = ((operator.turn * torch.exp(-1j * phase)).angle() * head()).square().mean().sqrt().item()
    assert wrong[0] < 0.3 * start and math.isclose(wrong[1], start, rel_tol=0.1)


def test_a_phase_that_is_known_stays():
    image = head()
    operator, y, phase = undersampled(image, 0)
    known = KSpace(operator.known, phase + 0.1)
    assert known.refined(image, y, 0.1) is known
    assert torch.equal(known.shown(known.lift(image)), known.lower(known.lift(image)))


@pytest.mark.parametrize("walk", [restore, predictor_corrector])
def test_the_walk_finds_the_phase_on_its_way(walk):
    """A network that knows the image knows the phase after a few steps; with the first guess the image is spoilt."""
    image, schedule = head(), make_schedule("cosine", 100)
    operator, y, _ = undersampled(image, 1)
    noise = lambda: torch.randn(1, 1, 64, 64, generator=generator(0))  # noqa: E731
    errors = []
    for one in (operator, KSpace(operator.known, operator.turn.angle())):
        *_, lifted = walk(lambda x_t, t: 2 * image - 1, schedule, noise(), [90, 60, 30, 10, 4, 2, 1, 0], noise, one, y)
        errors.append((one.shown(lifted) - image).square().mean().sqrt().item())
        assert torch.allclose(one.apply(lifted), y, atol=1e-4)
    assert errors[0] < 1e-4 and errors[1] > 1e-3


@pytest.mark.parametrize("degree", [3, 7])
@pytest.mark.parametrize("n", [8, 64])
def test_the_polynomials_of_a_phase_are_orthonormal_and_hold_its_planes_and_bowls(n, degree):
    terms, spread = polynomials(n, n, degree)
    terms, count = terms.double().flatten(1), (degree + 1) * (degree + 2) // 2
    assert torch.allclose(terms @ terms.T / n**2, torch.eye(count, dtype=torch.float64), atol=1e-5)
    phase = smooth_phase(n, n, generator(3)).double().flatten()
    assert torch.allclose(terms[:10].T @ (terms[:10] @ phase) / n**2, phase, atol=1e-5)
    assert spread.shape == (count,) and (spread[1:] <= spread[:-1]).all()
    assert spread[-1] < 0.5 * spread[0]  # the higher the degree, the smaller
    assert [len(x) for x in polynomials(4, 4)] == [16, 16]


def test_a_magnitude_image_tells_each_line_twice():
    """Without phase, k-space is Hermitian: that is the crime of Shimron et al."""
    y = fourier(torch.rand(1, 1, 8, 8))
    mirrored = torch.roll(y.flip(-2, -1), (1, 1), (-2, -1)).conj()
    assert torch.allclose(y, mirrored, atol=1e-5)
    assert math.isclose(KSpace(torch.ones(8)).turn.real.item(), 1.0)
