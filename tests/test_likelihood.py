"""The bound against closed forms: Eq. 5's terms for Gaussian data, the entropy that no code can beat, published figures.

For data N(0, v) the best denoiser is known, x_0_hat = sqrt(alpha_bar) v x_t / (alpha_bar v + 1 - alpha_bar). Figures
marked published were computed apart from this code, in float64.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from ddpm import UserError
from ddpm.conditions import Condition
from ddpm.likelihood import bits_per_dim, decoder_log_probability, kl_normal, stratified_times
from ddpm.reverse import denoiser
from ddpm.schedule import OBJECTIVES, make_schedule

LINEAR = make_schedule("linear")
SHORT = make_schedule("linear", 30)
LEVELS = 2 * torch.arange(256, dtype=torch.float64) / 255 - 1


def gaussian_oracle(schedule, v, shift=0.0):
    def predict_x_0(x_t, t):
        alpha_bar = schedule.alpha_bar[t].item()
        return math.sqrt(alpha_bar) * v * x_t / (alpha_bar * v + 1 - alpha_bar) + shift

    return predict_x_0


def every_level(columns=1):
    """All 256 grey levels, an image each: (256, 1, 1, columns) float64."""
    return LEVELS.view(256, 1, 1, 1).expand(-1, -1, -1, columns)


def normals(shape, seed=0):
    streams = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=streams, dtype=torch.float64)


# Single terms


def test_prior_has_the_published_values():
    for level, published in ((0.0, 5.8748e-10), (1.0, 2.911295e-5)):
        a, s = LINEAR.signal_and_noise(1000, torch.zeros((), dtype=torch.float64))
        nats = kl_normal(a * level, s.item() ** 2, 1.0)
        assert nats.item() / math.log(2) == pytest.approx(published, rel=1e-4)
    white = torch.ones(1, 1, 2, 2)
    found = bits_per_dim(lambda x, t: white, LINEAR, white, lambda: torch.zeros_like(white), times={1: 1}).prior
    assert found.item() == pytest.approx(2.911295e-5, rel=1e-6)


def test_prior_of_a_schedule_that_ends_in_noise_is_zero():
    schedule = make_schedule("linear", zero_terminal_snr=True)
    x_0 = every_level()
    bound = bits_per_dim(lambda x, t: x_0, schedule, x_0, lambda: torch.ones_like(x_0), times={1000: 1})
    assert (bound.prior == 0).all() and (bound.terms == 0).all()


@pytest.mark.parametrize("variance, published", [("beta", 0.0055097), ("beta_tilde", 0.0055145)])
def test_weight_of_an_error_in_eps_has_the_published_value(variance, published):
    """At t = 501 an error delta in eps costs weight * delta^2 nats more than none."""
    x_0, eps, delta = every_level(), torch.ones(256, 1, 1, 1, dtype=torch.float64), 0.7
    a, s = LINEAR.signal_and_noise(501, x_0)
    cost = [
        bits_per_dim(lambda x, t, d=d: (x - s * (eps + d)) / a, LINEAR, x_0, lambda: eps, variance, {501: 1}).terms
        for d in (0.0, delta)
    ]
    assert torch.allclose((cost[1] - cost[0]) * math.log(2) / delta**2, torch.tensor(published).double(), rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.floats(-2, 2), st.floats(1e-3, 3), st.floats(1e-3, 3))
def test_kl_of_two_gaussians(distance, variance, other):
    expected = kl_divergence(
        Normal(torch.tensor(0.3).double(), math.sqrt(variance)),
        Normal(torch.tensor(0.3).double() + distance, math.sqrt(other)),
    )
    found = kl_normal(torch.tensor(distance, dtype=torch.float64), variance, other)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)


def test_variance_is_one_of_two():
    x_0 = every_level()
    with pytest.raises(ValueError, match="beta_tilde"):
        bits_per_dim(lambda x, t: x, LINEAR, x_0, lambda: x_0, "learned", {1: 1})


# The decoder (section 3.3)


def test_decoder_has_the_published_value():
    found = decoder_log_probability(LEVELS[100], LEVELS[100], 0.05) / -math.log(2)
    assert found.item() == pytest.approx(3.999652, abs=5e-7)  # a tanh in the place of erf gives 3.999659


@settings(max_examples=50, deadline=None)
@given(st.floats(-1.5, 1.5), st.floats(1e-3, 1))
def test_decoder_gives_256_probabilities(mean, sigma):
    log_p = decoder_log_probability(LEVELS, torch.full_like(LEVELS, mean), sigma)
    assert log_p.isfinite().all() and (log_p <= 0).all()
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)
    edges = np.concatenate([[-np.inf], (LEVELS[1:] - 1 / 255).numpy(), [np.inf]])
    assert np.allclose(log_p.exp(), np.diff(norm.cdf(edges, mean, sigma)), atol=1e-12)


@pytest.mark.parametrize("level, mean, sigma", [(20, 0.9, 0.01), (240, -0.9, 0.01), (128, 0.01, 0.3), (40, -0.2, 0.02)])
def test_decoder_is_exact_far_from_the_mean(level, mean, sigma):
    """Down to exp(-15,000): the density integrated over the bin by Gauss and Legendre, in logarithms."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    x = LEVELS[level].item() + nodes / 255
    integral = logsumexp(norm.logpdf(x, mean, sigma), b=weights / 255)
    found = decoder_log_probability(LEVELS[level], torch.tensor(mean, dtype=torch.float64), sigma)
    assert found.item() == pytest.approx(integral, rel=1e-9)


@pytest.mark.parametrize("variance", ["beta_tilde", "beta"])
def test_the_first_step_is_a_decoder_with_the_next_beta_tilde(variance):
    """5.4531877e-5 is the published beta_tilde_2; the mean is the estimate of x_0."""
    x_0 = every_level()
    x_0_hat = 0.9 * x_0 + 0.01
    bound = bits_per_dim(lambda x, t: x_0_hat, LINEAR, x_0, lambda: x_0, variance, {1: 1})
    edges = np.concatenate([[-np.inf], (LEVELS[1:] - 1 / 255).numpy(), [np.inf]])
    mean, sigma = x_0_hat.flatten().numpy(), math.sqrt(5.4531877e-5)
    p = norm.cdf(edges[1:], mean, sigma) - norm.cdf(edges[:-1], mean, sigma)
    likely = p > 1e-4  # below, the difference of two cdf loses digits
    assert likely.sum() > 50
    assert np.allclose(bound.terms.flatten().numpy()[likely], -np.log2(p[likely]), rtol=1e-6)


# The whole bound


@pytest.mark.parametrize("variance", ["beta_tilde", "beta"])
@pytest.mark.parametrize("v", [0.05, 0.25])
def test_expected_terms_of_gaussian_data(v, variance):
    """E_eps of each KL by the paper's formulas. It is quadratic in eps, so eps = +1 and -1 give the exact mean."""
    x_0 = every_level()
    found = [
        bits_per_dim(gaussian_oracle(LINEAR, v), LINEAR, x_0, lambda e=e: e * torch.ones_like(x_0), variance).terms
        for e in (1, -1)
    ]
    found = (found[0] + found[1]) / 2
    assert found.shape == (256, 1000) and found.dtype == torch.float64

    beta = np.concatenate([[0], np.linspace(1e-4, 0.02, 1000)])
    alpha_bar = np.cumprod(1 - beta)
    for t in (2, 3, 40, 501, 1000):
        now, before = alpha_bar[t], alpha_bar[t - 1]
        beta_tilde = (1 - before) / (1 - now) * beta[t]
        sigma_2 = beta_tilde if variance == "beta_tilde" else beta[t]
        k = np.sqrt(now) * v / (now * v + 1 - now)
        squared_error = (1 - k * np.sqrt(now)) ** 2 * LEVELS.numpy() ** 2 + k**2 * (1 - now)
        squared_distance = before * beta[t] ** 2 / (1 - now) ** 2 * squared_error
        kl = 0.5 * (np.log(sigma_2 / beta_tilde) - 1 + (beta_tilde + squared_distance) / sigma_2)
        assert np.allclose(found[:, t - 1], kl / np.log(2), rtol=1e-9, atol=1e-15)


def gaussian_bound(v, variance, shift=0.0):
    """The bound's mean over 8-bit images of N(0, v) pixels, and the entropy of the pixels, in bits per dimension."""
    edges = np.concatenate([[-np.inf], (LEVELS[1:] - 1 / 255).numpy(), [np.inf]])
    p = np.diff(norm.cdf(edges, 0, math.sqrt(v)))
    x_0 = every_level(columns=20)
    bound = bits_per_dim(gaussian_oracle(LINEAR, v, shift), LINEAR, x_0, normals(x_0.shape), variance)
    return float(p @ bound.total.numpy()), float(-(p * np.log2(p)).sum())


def test_no_code_beats_the_entropy_and_the_best_denoiser_comes_near():
    """Shannon: the mean of -log2 p(x_0), hence of the bound, is at least the entropy of the data, 6.9 bits here.

    "beta" suits such spread-out data; "beta_tilde", made for one point, pays for its doubtless steps near t = 0.
    """
    bound, entropy = gaussian_bound(0.05, "beta")
    assert entropy < bound < entropy + 0.2
    assert gaussian_bound(0.05, "beta_tilde")[0] > bound + 0.3


@pytest.mark.parametrize("variance", ["beta_tilde", "beta"])
def test_a_worse_denoiser_costs_bits(variance):
    best, _ = gaussian_bound(0.05, variance)
    for shift in (0.02, -0.02):
        assert gaussian_bound(0.05, variance, shift)[0] > best + 0.01


def test_total_is_the_sum_of_its_parts():
    x_0 = every_level()[::16]
    bound = bits_per_dim(gaussian_oracle(SHORT, 0.2), SHORT, x_0, normals(x_0.shape))
    assert bound.terms.shape == (16, 30) and bound.prior.shape == bound.total.shape == (16,)
    assert torch.allclose(bound.total, bound.terms.sum(dim=1) + bound.prior, rtol=1e-12)
    assert (bound.terms > 0).all()


def test_bits_are_those_of_an_average_pixel():
    """Per dimension: an image that is repeated along a side has the same figure; an image differs from its neighbour."""
    x_0 = every_level()[[3, 200]]
    eps = torch.tensor([0.4, -1.3], dtype=torch.float64).view(2, 1, 1, 1)
    oracle = gaussian_oracle(SHORT, 0.2)
    one = bits_per_dim(oracle, SHORT, x_0, lambda: eps)
    wide = bits_per_dim(oracle, SHORT, x_0.repeat(1, 3, 2, 5), lambda: eps.repeat(1, 3, 2, 5))
    alone = bits_per_dim(oracle, SHORT, x_0[1:], lambda: eps[1:])
    assert torch.allclose(one.total, wide.total, rtol=1e-12)
    assert torch.allclose(one.total[1:], alone.total, rtol=1e-12)
    assert abs(one.total[0] - one.total[1]) > 0.01


def test_float32_images_are_taken_as_the_grey_levels_they_are():
    """The network is asked in the precision of its images; everything else stays in float64."""
    x_0 = every_level()
    seen = []

    def predict_x_0(x_t, t):
        seen.append(x_t.dtype)
        return gaussian_oracle(LINEAR, 0.2)(x_t, t)

    times = {1: 1, 2: 1, 50: 1, 1000: 1}
    exact = bits_per_dim(predict_x_0, LINEAR, x_0, normals(x_0.shape), times=times)
    rounded = bits_per_dim(predict_x_0, LINEAR, x_0.float(), normals(x_0.shape), times=times)
    assert seen == [torch.float64] * 4 + [torch.float32] * 4
    assert rounded.total.dtype == torch.float64
    assert torch.equal(rounded.prior, exact.prior)
    assert torch.allclose(rounded.terms, exact.terms, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_network_is_asked_through_its_denoiser(objective):
    """A network that answers perfectly leaves nothing but the decoder's grain and the prior."""
    x_0 = every_level().float()
    a_noise, weight = torch.randn(x_0.shape), torch.ones(1, requires_grad=True)

    def network(x_t, t, condition):
        t = t.cpu()
        eps = weight * SHORT.eps_from(x_0, x_t, t)
        return {"eps": eps, "v": SHORT.v_from(x_0, eps, t), "x_0": weight * x_0}[objective]

    bound = bits_per_dim(denoiser(network, SHORT, objective, Condition()), SHORT, x_0, lambda: a_noise)
    assert not bound.total.requires_grad  # T graphs would fill the memory
    assert (bound.terms[:, 1:] < 1e-4).all()
    sigma = math.sqrt(SHORT.posterior(2, 1)[2])
    at_best = decoder_log_probability(LEVELS, LEVELS, sigma) / -math.log(2)
    assert torch.allclose(bound.terms[:, 0], at_best, atol=1e-3)


@pytest.mark.parametrize(
    "image, shown",
    [
        (torch.tensor([[[[0.5 / 127.5 - 1, 1.0]]]]), "50.0%"),  # between two levels, as after resizing
        (torch.tensor([[[[-1.0, 3.0, 1.0, 1.0]]]]), "25.0%"),  # a multiple of 2/255, but no grey level
        (torch.tensor([[[[math.nan]]]]), "nan"),
        (torch.randn(1, 1, 8, 8), "%"),  # z-scored
        (torch.arange(4.0).view(1, 1, 2, 2) / 3 * 255, "%"),  # 0 .. 255
    ],
)
def test_images_off_the_grid_are_refused(image, shown):
    with pytest.raises(UserError, match="8-bit") as error:
        bits_per_dim(lambda x, t: x, LINEAR, image, lambda: image, times={1: 1})
    assert shown in str(error.value) and "\n" not in str(error.value)


# Fewer times


def test_all_strata_are_all_times():
    assert stratified_times(1000, 999, torch.Generator()) == dict.fromkeys(range(1, 1001), 1)
    x_0 = every_level()[::16]
    full = bits_per_dim(gaussian_oracle(SHORT, 0.2), SHORT, x_0, normals(x_0.shape))
    times = stratified_times(30, 29, torch.Generator())
    again = bits_per_dim(gaussian_oracle(SHORT, 0.2), SHORT, x_0, normals(x_0.shape), times=times)
    assert all(torch.equal(one, other) for one, other in zip(full, again, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 1200), st.data())
def test_strata_cover_every_time_once(T, data):
    n = data.draw(st.integers(1, T - 1))
    times = stratified_times(T, n, torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    assert times[1] == 1 and len(times) == n + 1 and sum(times.values()) == T
    low = 2
    for t, length in list(times.items())[1:]:
        assert low <= t < low + length
        low += length


def test_each_time_is_drawn_as_often_as_the_sum_needs():
    """The mean weight of every t is 1, so the estimate's expectation is the sum, term by term."""
    generator, draws = torch.Generator().manual_seed(0), 4000
    weight = torch.zeros(draws, 31, dtype=torch.float64)
    for row in weight:
        for t, length in stratified_times(30, 5, generator).items():
            row[t] = length
    error = weight.std(dim=0) / math.sqrt(draws)
    assert (weight[:, 1] == 1).all() and (weight[:, 0] == 0).all()
    assert ((weight.mean(dim=0) - 1).abs()[2:] < 4.5 * error[2:] + 1e-12).all()


def test_a_few_times_estimate_the_sum():
    """Noise that is the same at each call makes the full sum a constant, which the mean of many estimates must meet."""
    x_0 = every_level()[[0, 90, 255]]
    eps = torch.full_like(x_0, 0.8)
    oracle = gaussian_oracle(SHORT, 0.2)
    full = bits_per_dim(oracle, SHORT, x_0, lambda: eps)
    generator = torch.Generator().manual_seed(1)
    estimates = []
    for _ in range(400):
        times = stratified_times(30, 5, generator)
        bound = bits_per_dim(oracle, SHORT, x_0, lambda: eps, times=times)
        assert bound.terms.shape == (3, 6) and torch.equal(bound.prior, full.prior)
        assert torch.equal(bound.terms, full.terms[:, [t - 1 for t in times]])
        estimates.append(bound.total)
    estimates = torch.stack(estimates)
    error = estimates.std(dim=0) / 20
    assert (error > 0).all() and (error < 0.01 * full.total).all()
    assert ((estimates.mean(dim=0) - full.total).abs() < 4.5 * error).all()


def test_times_that_cannot_be_are_refused():
    x_0 = every_level()
    for t in (0, 1001):
        with pytest.raises(ValueError, match=r"1 \.\. 1000"):
            bits_per_dim(lambda x, t: x, LINEAR, x_0, lambda: x_0, times={t: 1})
    for n in (0, 1000):
        with pytest.raises(ValueError, match="1 to 999"):
            stratified_times(1000, n, torch.Generator())
