"""Section 2's tables, conversions and posterior, against values computed apart and Bayes' rule."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.schedule import OBJECTIVES, SCHEDULES, make_schedule

# alpha_bar at t = 1, 501, 901, 1000 and beta_1000 for T = 1000. No paper prints them: they were computed apart from this
# code, in float64, from the published formulas.
COMPUTED_APART = {
    "linear": (0.9999, 0.0777966584, 2.7024452e-4, 4.0358298e-5, 0.02),
    "cosine": (0.9999587158, 0.4922851724, 0.0236161088, 2.4287669e-9, 0.999),
    "sigmoid": (0.9996997208, 0.4983428178, 0.0389885701, 3.0027920e-7, 0.999),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_tables_have_the_values_computed_apart(kind):
    schedule = make_schedule(kind)
    found = [schedule.alpha_bar[t].item() for t in (1, 501, 901, 1000)] + [schedule.beta[1000].item()]
    assert found == pytest.approx(COMPUTED_APART[kind], rel=1e-7)


def test_other_lengths_have_the_values_computed_apart():
    assert make_schedule("linear", 100).alpha_bar[100].item() == pytest.approx(2.039009e-5, rel=1e-6)
    assert make_schedule("linear", 250).alpha_bar[250].item() == pytest.approx(3.264409e-5, rel=1e-6)
    assert make_schedule("sigmoid").alpha_bar[500].item() == pytest.approx(0.5, abs=1e-12)
    assert (make_schedule("cosine").beta >= 0.999).sum() == 1


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_noisier_schedule_has_so_much_more_noise_for_the_same_image(kind):
    schedule = make_schedule(kind)
    other, longer = schedule.noisier(0.1)
    for t in (0, 1, 500, 1000):
        (a, s), (b, r) = (x.signal_and_noise(t, torch.ones(1, dtype=torch.float64)) for x in (schedule, other))
        assert torch.allclose(longer[t] * b, a) and torch.allclose(longer[t] * r, (1 + 0.1 * t / 1000) * s)
    assert torch.allclose(other.alpha.cumprod(0), other.alpha_bar) and torch.allclose(other.beta, 1 - other.alpha)
    same, one = schedule.noisier(0)
    assert torch.allclose(same.alpha_bar, schedule.alpha_bar, rtol=1e-14) and torch.allclose(one, torch.ones_like(one))


def test_zero_terminal_snr():
    schedule = make_schedule("linear", zero_terminal_snr=True)
    found = [schedule.alpha_bar[t].item() for t in (0, 1, 501, 901)]
    assert found == pytest.approx([1, 0.9999, 0.0752462157, 1.0303847e-4], rel=1e-7)
    assert schedule.alpha_bar[1000] == 0 and schedule.beta[1000] == 1


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("T", [30, 1000])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_tables_are_consistent(kind, T, zero_terminal_snr):
    s = make_schedule(kind, T, zero_terminal_snr)
    assert s.T == T and s.beta.shape == s.alpha.shape == s.alpha_bar.shape == (T + 1, 1, 1, 1)
    assert s.beta.dtype == s.alpha_bar.dtype == torch.float64
    assert s.beta[0] == 0 and s.alpha_bar[0] == 1
    assert ((s.beta[1:] > 0) & (s.beta[1:] <= 1)).all()
    assert torch.equal(s.alpha, 1 - s.beta)
    assert torch.allclose(s.alpha_bar, s.alpha.cumprod(0), rtol=1e-12, atol=0)
    assert (s.half_log_snr().diff() < 0).all()


def test_schedules_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="20 steps"):
        make_schedule("linear", 20)
    for kind in SCHEDULES:  # capped at 0.999, or with a beta of 0.1, one step would pass
        with pytest.raises(ValueError, match="of 1 steps"):
            make_schedule(kind, 1)
    assert make_schedule("cosine", 2).T == 2
    with pytest.raises(ValueError, match="none of"):
        make_schedule("exponential")


def test_velocity_has_the_published_value():
    schedule = make_schedule("linear")
    x_0, eps = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (0.5, -1.2))
    assert schedule.v_from(x_0, eps, 501).item() == pytest.approx(-0.8148617226, rel=1e-9)


def test_conversions_keep_the_type_of_the_image():
    schedule, x = make_schedule("cosine"), torch.randn(2, 2, 1, 2, 2)
    for t in (500, torch.tensor([3, 500])):
        results = [schedule.v_from(*x, t), schedule.eps_from(*x, t)]
        results += [schedule.x_0_from(objective, *x, t) for objective in OBJECTIVES]
        assert all(result.dtype == torch.float32 for result in results)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(SCHEDULES), st.integers(1, 999), st.floats(-1, 1), st.floats(-4, 4))
def test_each_of_eps_x_0_and_v_gives_the_others(kind, t, x_0, eps):
    schedule = make_schedule(kind)
    x_0, eps = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (x_0, eps))
    a, s = schedule.signal_and_noise(t, x_0)
    x_t = a * x_0 + s * eps
    output = {"eps": eps, "x_0": x_0, "v": schedule.v_from(x_0, eps, t)}
    for objective in OBJECTIVES:
        back = schedule.x_0_from(objective, output[objective], x_t, t)
        assert torch.allclose(back, x_0, atol=1e-9)
        assert torch.allclose(schedule.eps_from(back, x_t, t), eps, atol=1e-6)


@pytest.mark.parametrize("t, s", [(1000, 999), (501, 500), (2, 1), (1000, 900), (501, 1)])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_posterior_is_bayes_rule(kind, t, s):
    """q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0). Multiply the two densities on a fine grid."""
    schedule = make_schedule(kind)
    alpha_bar_t, alpha_bar_s = schedule.alpha_bar[t].item(), schedule.alpha_bar[s].item()
    x_0, alpha = 0.3, alpha_bar_t / alpha_bar_s
    x_t = math.sqrt(alpha_bar_t) * x_0 + 0.8 * math.sqrt(1 - alpha_bar_t)
    c_0, c_t, beta_tilde = schedule.posterior(t, s)

    sigma = math.sqrt(beta_tilde)
    x_s = torch.linspace(-12, 12, 200_001, dtype=torch.float64) * sigma + c_0 * x_0 + c_t * x_t
    log_density = -((x_t - math.sqrt(alpha) * x_s) ** 2) / (2 * (1 - alpha))
    log_density -= (x_s - math.sqrt(alpha_bar_s) * x_0) ** 2 / (2 * (1 - alpha_bar_s))
    density = (log_density - log_density.max()).exp()
    mean = (density * x_s).sum() / density.sum()
    variance = (density * (x_s - mean) ** 2).sum() / density.sum()
    assert mean.item() == pytest.approx(c_0 * x_0 + c_t * x_t, abs=1e-6)
    assert variance.item() == pytest.approx(beta_tilde, rel=1e-6)


def test_posterior_has_the_published_values():
    schedule = make_schedule("linear")
    assert schedule.posterior(501, 500) == pytest.approx((0.0030580571, 0.9941043508, 0.0100513358), rel=1e-7)
    assert schedule.posterior(2, 1)[2] == pytest.approx(5.4531877e-5, rel=1e-7)
    assert schedule.posterior(1, 0) == (1, 0, 0)  # the last step: x_0 itself, and no noise


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(SCHEDULES), st.data())
def test_posterior_keeps_the_marginals(kind, data):
    """Averaged over q(x_t | x_0), q(x_s | x_t, x_0) must give back q(x_s | x_0): mean and variance."""
    schedule = make_schedule(kind)
    t = data.draw(st.integers(1, 1000))
    s = data.draw(st.integers(0, t - 1))
    alpha_bar_t, alpha_bar_s = schedule.alpha_bar[t].item(), schedule.alpha_bar[s].item()
    c_0, c_t, beta_tilde = schedule.posterior(t, s)
    assert c_0 + c_t * math.sqrt(alpha_bar_t) == pytest.approx(math.sqrt(alpha_bar_s), abs=1e-12)
    assert c_t**2 * (1 - alpha_bar_t) + beta_tilde == pytest.approx(1 - alpha_bar_s, abs=1e-12)
