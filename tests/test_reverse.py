"""Algorithm 2 and the other samplers against closed forms.

For data N(0, v) the best denoiser is known, x_0_hat = sqrt(alpha_bar) v x_t / (alpha_bar v + 1 - alpha_bar),
so a sampler's result can be computed without a network. Figures marked published were computed apart from
this code, in float64.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.conditions import Condition
from ddpm.reverse import (
    SAMPLERS,
    ancestral,
    ddim,
    denoiser,
    dpm_solver,
    log_snr_times,
    middle_times,
    nonuniform_times,
    times_for,
    trajectory,
    uniform_times,
)
from ddpm.schedule import OBJECTIVES, SCHEDULES, Schedule, make_schedule

LINEAR = make_schedule("linear")
EVERY_STEP = uniform_times(1000, 1000)
TEN_STEPS = [1 + 111 * i for i in range(9, -1, -1)] + [0]  # 1000, 889, ..., 1, 0


def gaussian_oracle(schedule, v):
    def predict_x_0(x_t, t):
        alpha_bar = schedule.alpha_bar[t].item()
        return math.sqrt(alpha_bar) * v * x_t / (alpha_bar * v + 1 - alpha_bar)

    return predict_x_0


def one_pixel(value):
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


def last(generator):
    *_, x = generator
    return x


def variance_after(v, times, variance):
    """The exact variance of ancestral samples: each step is linear in (x_t, z), so probe it with (1, 0), (0, 1)."""
    V = 1.0
    for t, s in pairwise(times):
        if s == 0:
            step = [last(ancestral(gaussian_oracle(LINEAR, v), LINEAR, one_pixel(1.0), [t, s], None, variance)), 0.0]
        else:
            step = [
                last(
                    ancestral(
                        gaussian_oracle(LINEAR, v), LINEAR, one_pixel(x), [t, s], lambda z=z: one_pixel(z), variance
                    )
                )
                for x, z in ((1.0, 0.0), (0.0, 1.0))
            ]
        V = float(step[0]) ** 2 * V + float(step[1]) ** 2
    return V


@pytest.mark.parametrize(
    "v, times, variance, published",
    [
        (0.25, EVERY_STEP, "beta", 0.2507521),
        (0.25, EVERY_STEP, "beta_tilde", 0.2461252),
        (0.25, TEN_STEPS, "beta", 0.3585212),
        (0.25, TEN_STEPS, "beta_tilde", 0.1042225),
        (1.0, EVERY_STEP, "beta", 0.9999),
        (1.0, EVERY_STEP, "beta_tilde", 0.9910674),
        (1.0, TEN_STEPS, "beta", 0.9999),
        (1.0, TEN_STEPS, "beta_tilde", 0.5207851),
    ],
)
def test_ancestral_variance(v, times, variance, published):
    assert variance_after(v, times, variance) == pytest.approx(published, abs=1e-7)


def test_a_variance_of_another_name_is_none():
    with pytest.raises(KeyError, match="beta-tilde"):
        list(ancestral(lambda x, t: x, LINEAR, one_pixel(0.0), [2, 1, 0], None, "beta-tilde"))


def test_algorithm_2_as_the_paper_writes_it():
    """Line 4: x_{t-1} = (x_t - beta_t / sqrt(1 - alpha_bar_t) eps_hat) / sqrt(alpha_t) + sigma_t z."""
    x_t, eps_hat, z = torch.randn(3, 2, 1, 4, 4, dtype=torch.float64).unbind()
    for t in (2, 500, 1000):
        predict_x_0 = denoiser(lambda *inputs: eps_hat, LINEAR, "eps", Condition(), clip=False)
        a, s = LINEAR.signal_and_noise(t, x_t)
        mine = last(ancestral(lambda x, t: (x - s * eps_hat) / a, LINEAR, x_t, [t, t - 1], lambda: z, "beta"))  # noqa: B023
        beta, alpha, alpha_bar = (table[t].item() for table in (LINEAR.beta, LINEAR.alpha, LINEAR.alpha_bar))
        paper = (x_t - beta / math.sqrt(1 - alpha_bar) * eps_hat) / math.sqrt(alpha) + math.sqrt(beta) * z
        assert torch.allclose(mine, paper, rtol=1e-10, atol=1e-10)
        assert torch.allclose(predict_x_0(x_t.float(), t).double(), (x_t - s * eps_hat) / a, rtol=1e-4, atol=1e-3)


def test_ancestral_samples_have_the_variance_of_the_data():
    """The same by brute force: 20,000 chains of 100 steps."""
    streams = torch.Generator().manual_seed(1)

    def noise():
        return torch.randn(20_000, 1, 1, 1, dtype=torch.float64, generator=streams)

    schedule = make_schedule("linear", 100)
    times = uniform_times(100, 100)
    samples = last(ancestral(gaussian_oracle(schedule, 0.25), schedule, noise(), times, noise, "beta"))
    assert samples.mean().item() == pytest.approx(0, abs=0.02)
    assert samples.var().item() == pytest.approx(0.25, rel=0.05)


def ode_endpoint(schedule, v, t, s):
    """x_s / x_t on the exact probability-flow ODE of N(0, v) data."""
    variance = [
        alpha_bar * v + 1 - alpha_bar for alpha_bar in (schedule.alpha_bar[t].item(), schedule.alpha_bar[s].item())
    ]
    return math.sqrt(variance[1] / variance[0])


def test_the_ode_oracle_has_the_published_value():
    assert ode_endpoint(LINEAR, 0.25, 1000, 1) == pytest.approx(0.5000825629, rel=1e-9)


@pytest.mark.parametrize("sampler", [ddim, dpm_solver])
def test_ode_samplers_reach_the_exact_endpoint(sampler):
    """Many steps from T to 1. The clean step 1 -> 0 is a denoising step, not the ODE's, so it is left out."""
    extra = (None,) if sampler is ddim else ()
    times = list(range(1000, 0, -1))
    x = last(sampler(gaussian_oracle(LINEAR, 0.25), LINEAR, one_pixel(1.0), times, *extra))
    assert x.item() == pytest.approx(0.5000825629, rel=6e-3 if sampler is ddim else 5e-4)


@pytest.mark.parametrize("n, error_ddim, error_2m", [(10, 0.2139, 0.0329), (20, 0.1136, 0.0132), (40, 0.0586, 0.0036)])
def test_second_order_beats_ddim_on_log_snr_nodes_by_the_published_margin(n, error_ddim, error_2m):
    times = log_snr_times(LINEAR, n + 1)[:-1]
    exact = ode_endpoint(LINEAR, 0.25, 1000, 1)
    found = {}
    for sampler, extra in ((ddim, (None,)), (dpm_solver, ())):
        x = last(sampler(gaussian_oracle(LINEAR, 0.25), LINEAR, one_pixel(1.0), times, *extra))
        found[sampler] = abs(x.item() / exact - 1)
    assert found[ddim] == pytest.approx(error_ddim, abs=6e-5)
    assert found[dpm_solver] == pytest.approx(error_2m, abs=6e-5)


def test_first_step_of_dpm_solver_is_ddim():
    for sampler, extra in ((ddim, (None,)), (dpm_solver, ())):
        x = last(sampler(gaussian_oracle(LINEAR, 0.25), LINEAR, one_pixel(0.7), [901, 801], *extra))
        assert x.item() == pytest.approx(0.6996311503, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SCHEDULES), st.sampled_from(SAMPLERS), st.integers(1, 60), st.floats(-1, 1), st.floats(0, 1))
def test_a_point_is_returned_exactly(kind, sampler, steps, c, eta):
    """Data that is one point c: whatever the sampler, steps and eta, a last step to t = 0 gives c."""
    schedule = make_schedule(kind)
    x_T = torch.randn(2, 1, 2, 2, dtype=torch.float64)
    times = times_for(sampler, schedule, steps)
    point = lambda x, t: torch.full_like(x, c)  # noqa: E731
    path = trajectory(sampler, point, schedule, x_T, times, lambda: torch.randn_like(x_T), eta)
    assert torch.allclose(last(path), torch.full_like(x_T, c), atol=1e-12)


@pytest.mark.parametrize("t, s", [(1000, 999), (500, 499), (1000, 900), (112, 1), (1, 0)])
def test_ddim_with_eta_1_is_the_ancestral_step(t, s):
    x_t, z = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64).unbind()
    oracle = gaussian_oracle(LINEAR, 0.25)
    one = last(ddim(oracle, LINEAR, x_t, [t, s], lambda: z, eta=1.0))
    other = last(ancestral(oracle, LINEAR, x_t, [t, s], lambda: z, "beta_tilde"))
    assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)
    assert torch.equal(other, last(ancestral(oracle, LINEAR, x_t, [t, s], lambda: z)))  # what it is unless told


def test_eps_is_derived_from_the_clipped_x_0():
    """x = 0.3, eps_hat = -0.7 at t = 901 -> 801: x_0_hat = 60.82 is clipped to 1 (published: 0.3222122; with the
    stale eps it would be -0.66, without clipping 1.66)."""
    network = lambda x, t, condition: torch.full_like(x, -0.7)  # noqa: E731
    for clip, published in ((True, 0.3222122), (False, 1.6621595)):
        predict_x_0 = denoiser(network, LINEAR, "eps", Condition(), clip=clip)
        x = last(ddim(predict_x_0, LINEAR, torch.full((1, 1, 1, 1), 0.3), [901, 801], None))
        assert x.item() == pytest.approx(published, rel=1e-5)


def test_times():
    assert uniform_times(1000, 1000) == list(range(1000, -1, -1))
    assert uniform_times(1000, 10) == [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    published = [999, 898, 785, 653, 492, 302, 138, 52, 17, 4, 0]  # counted from 0
    assert log_snr_times(LINEAR, 11) == [t + 1 for t in published] + [0]
    assert len(log_snr_times(LINEAR, 41)) == 41  # one node met another
    assert log_snr_times(make_schedule("cosine"), 10)[:3] == [1000, 988, 962]  # 996, of 0.6 % signal, gives way to T
    assert log_snr_times(make_schedule("linear", zero_terminal_snr=True), 10)[-1] == 0
    for n in (0, 1001):
        with pytest.raises(ValueError, match="1 to 1000"):
            uniform_times(1000, n)


def test_each_sampler_has_the_times_that_suit_it():
    assert times_for("dpm-solver", LINEAR, 10) == log_snr_times(LINEAR, 10)
    assert times_for("ddim", LINEAR, 10) == times_for("ancestral", LINEAR, 10) == uniform_times(1000, 10)


@pytest.mark.parametrize("n", [5, 30, 799])  # at 799, nodes in float32 would be nearest to other times
def test_log_snr_times_are_nearest_to_even_nodes(n):
    lam = LINEAR.half_log_snr()[1:].numpy()
    nearest = {int(abs(lam - node).argmin()) + 1 for node in np.linspace(lam[-1], lam[0], n)}
    assert log_snr_times(LINEAR, n) == sorted(nearest | {0}, reverse=True)


def test_a_schedule_that_never_reaches_noise_is_still_walked_once():
    alpha_bar = torch.tensor([1, 0.9, 0.5, 0.3], dtype=torch.float64).view(-1, 1, 1, 1)
    assert log_snr_times(Schedule(alpha_bar, alpha_bar, alpha_bar), 3) == [3, 2, 1, 0]  # only alpha_bar is read


def test_the_nodes_begin_at_the_lowest_log_snr():
    lowest = LINEAR.half_log_snr()[900].item()
    assert log_snr_times(LINEAR, 1000, lowest)[:3] == [1000, 899, 898]  # T is in the place of 900


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SCHEDULES), st.integers(21, 1000), st.data())
def test_times_fall_from_T_to_0(kind, T, data):
    n = data.draw(st.integers(1, T))
    for times in (uniform_times(T, n), log_snr_times(make_schedule(kind, T), n)):
        assert times == sorted(set(times), reverse=True) and times[-1] == 0 and len(times) <= n + 1
        assert times[0] == T
    assert len(uniform_times(T, n)) == n + 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_yield_every_x_t_beginning_with_x_T(sampler):
    x_T = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    times = times_for(sampler, LINEAR, 7)
    oracle = gaussian_oracle(LINEAR, 0.25)
    noise = (lambda: torch.randn_like(x_T)) if sampler == "ancestral" else None  # the others are deterministic
    path = list(trajectory(sampler, oracle, LINEAR, x_T, times, noise))
    assert len(path) == 8 and torch.equal(path[0], x_T)


def test_a_trajectory_is_the_walk_of_its_sampler():
    x_T, z, times = *torch.randn(2, 1, 1, 2, 2, dtype=torch.float64).unbind(0), [1000, 700, 300, 0]
    oracle = gaussian_oracle(LINEAR, 0.25)
    for eta in (0.0, 0.7):
        walks = {
            "ancestral": ancestral(oracle, LINEAR, x_T, times, lambda: z),
            "ddim": ddim(oracle, LINEAR, x_T, times, lambda: z, eta),
            "dpm-solver": dpm_solver(oracle, LINEAR, x_T, times),
        }
        for sampler, walk in walks.items():
            path = trajectory(sampler, oracle, LINEAR, x_T, times, lambda: z, eta)
            assert all(torch.equal(mine, other) for mine, other in zip(path, walk, strict=True))
    with pytest.raises(ValueError, match="none of"):
        trajectory("euler", oracle, LINEAR, x_T, times, lambda: z)
    with pytest.raises(ValueError, match="none of"):
        times_for("euler", LINEAR, 10)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_begin_from_pure_noise(sampler, kind):
    """With a zero terminal SNR x_T holds no signal: nothing may be divided by sqrt(alpha_bar_T) = 0."""
    schedule, x_T = make_schedule(kind, zero_terminal_snr=True), torch.randn(1, 1, 64, 64, dtype=torch.float64)
    for times in (uniform_times(1000, 200), times_for(sampler, schedule, 200)):
        walk = trajectory(sampler, gaussian_oracle(schedule, 0.25), schedule, x_T, times, lambda: torch.randn_like(x_T))
        assert last(walk).var().item() == pytest.approx(0.25, rel=0.15)


# Guidance (Ho & Salimans 2022)


def tells_what_it_sees(x, t, condition):
    """A network whose answer for a sample is 1 for a mask it sees, plus 10 for a contrast, plus 100 for a sex."""
    mask, labels = condition.mask.any(dim=(1, 2, 3)), condition.labels
    seen = mask.float() + 10 * (labels["contrast"] > 0) + 100 * (labels["sex"] > 0)
    return seen.view(-1, 1, 1, 1).expand_as(x)


EVERYTHING = Condition(torch.ones(1, 2, 1, 2), {"contrast": torch.tensor([1]), "sex": torch.tensor([2])})
UNMASKED = Condition(labels=EVERYTHING.labels)


@pytest.mark.parametrize(
    "guided, guidance, expected",
    [
        (("mask",), 3.0, 110 + 3 * 1),  # u + k (c - u): the labels are in both, so they count once
        (("mask",), 0.0, 110),
        (("mask",), 1.0, 111),
        (("contrast",), 3.0, 101 + 3 * 10),
        (("mask", "contrast"), 3.0, 100 + 3 * 11),
        (("mask", "contrast", "sex"), 3.0, 3 * 111),
    ],
)
def test_guidance_strengthens_what_it_names_and_nothing_else(guided, guidance, expected):
    predict_x_0 = denoiser(tells_what_it_sees, LINEAR, "x_0", EVERYTHING, guidance, guided, clip=False)
    assert predict_x_0(torch.zeros(1, 1, 1, 2), 500).flatten().tolist() == [expected] * 2


@pytest.mark.parametrize(
    "condition, guidance, images",
    [(EVERYTHING, 1.5, 2), (EVERYTHING, 1.0, 1), (UNMASKED, 1.5, 1), (Condition(), 1.5, 1)],
)
def test_both_answers_come_from_one_call_and_the_second_is_asked_for_only_where_it_differs(condition, guidance, images):
    asked = []
    denoiser(lambda x, t, c: asked.append((x, t)) or x, LINEAR, "x_0", condition, guidance)(
        torch.zeros(1, 1, 1, 2), 500
    )
    assert [(len(x), t.tolist()) for x, t in asked] == [(images, [500] * images)]


@pytest.mark.parametrize("interval, guided", [((0, 1), (1, 500, 1000)), ((0.5, 1), (500, 1000)), ((0, 0.5), (1, 500))])
def test_guidance_is_1_outside_its_interval(interval, guided):
    predict_x_0 = denoiser(tells_what_it_sees, LINEAR, "x_0", EVERYTHING, 3.0, ("mask",), interval, clip=False)
    for t in (1, 500, 1000):
        expected = 110 + 3 * 1 if t in guided else 111
        assert predict_x_0(torch.zeros(1, 1, 1, 2), t).flatten().tolist() == [expected] * 2


def test_unless_told_otherwise_the_network_is_called_once_in_float32_and_its_x_0_is_clipped():
    """And it gets the times where the images are, whatever the default device."""
    calls = []

    def network(x, t, condition):
        calls.append((t.tolist(), t.dtype, t.device == x.device, torch.is_autocast_enabled("cpu")))
        return 7 * x

    predict_x_0 = denoiser(network, LINEAR, "x_0", EVERYTHING)
    x_t = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)
    with torch.device("meta"):
        x_0_hat = predict_x_0(x_t, 500)
    assert calls == [([500, 500], torch.int64, True, False)] and torch.equal(x_0_hat, x_t)


def test_bf16_is_bfloat16_where_the_default_is_float16():
    """As on a GPU. What the network answers is float32 before anything is done with it."""
    inside = []

    def network(x, t, condition):
        inside.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return torch.full_like(x, 1 / 3, dtype=torch.bfloat16)

    default = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float16)
    try:
        x_0_hat = denoiser(network, LINEAR, "x_0", EVERYTHING, 1.5, bf16=True)(torch.zeros(1, 1, 1, 2), 500)
    finally:
        torch.set_autocast_dtype("cpu", default)
    assert inside == [(True, torch.bfloat16)] and x_0_hat.dtype == torch.float32


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_guidance_is_the_same_in_every_parameterisation(objective):
    """eps, x_0 and v are affine in each other at fixed x_t and the guidance weights sum to 1."""
    schedule, t = make_schedule("cosine"), 600
    x_t, with_mask, without = torch.randn(3, 2, 1, 4, 4, dtype=torch.float64).unbind()

    def network(x, t, condition):
        assert not condition.mask[2:].any()
        x_0 = torch.cat([with_mask, without])
        eps = schedule.eps_from(x_0, x, 600)
        return {"x_0": x_0, "eps": eps, "v": schedule.v_from(x_0, eps, 600)}[objective]

    condition = Condition(torch.ones(2, 1, 4, 4))
    predict_x_0 = denoiser(network, schedule, objective, condition, guidance=2.5, clip=False)
    assert torch.allclose(predict_x_0(x_t, t).double(), without + 2.5 * (with_mask - without), atol=1e-4)


# From pure noise


@pytest.mark.parametrize(
    "T, steps, mean, deviation",
    [
        (10, 10, -0.9, 0.1),  # the first node by log SNR is 9, which holds 15 % of the image: -0.893
        # What 64 x 64 pixels have along their mean: the node 996 holds 0.6 % of 45, which is 0.29 deviations off at the end.
        *[(1000, steps, -45, deviation) for steps in (10, 20, 50) for deviation in (3, 10, 20)],
    ],
)
def test_pure_noise_becomes_the_mean_of_the_data(T, steps, mean, deviation):
    """Data N(mean, deviation^2) and its exact denoiser: the walk begins where N(0, I) is what x_t is, so the samples have
    that mean. (They begin at T. One that begins with pure noise at a node that holds some signal does not.)"""
    schedule = make_schedule("cosine", T)

    def predict_x_0(x, t):
        a = schedule.alpha_bar[t].sqrt().item()
        return mean + a * deviation**2 * (x - a * mean) / (a**2 * deviation**2 + 1 - a**2)

    x_T = torch.zeros(1, 1, 1, 1, dtype=torch.float64)  # the walk is linear in x_T, so this is the mean's
    times = times_for("dpm-solver", schedule, steps)
    x_0 = last(trajectory("dpm-solver", predict_x_0, schedule, x_T, times, None)).item()
    assert abs(x_0 - mean) < (0.02 if T == 10 else 0.005) * deviation


# The end of DPM-Solver++(2M)


def test_dpm_solver_ends_on_the_line_of_x_0_hat():
    """Where x_0_hat = c + d exp(-lambda), noise over signal, the exact end is c."""
    schedule = make_schedule("cosine")
    over = (-schedule.half_log_snr()).exp()

    def line(x_t, t):
        return torch.full_like(x_t, 0.3 + 2 * over[t].item())

    for times in ([900, 400, 30, 0], [500, 20, 1, 0]):
        *_, x_0 = dpm_solver(line, schedule, torch.zeros(1, 1, 2, 2, dtype=torch.float64), times)
        assert torch.allclose(x_0, torch.full_like(x_0, 0.3), atol=1e-9)
    *_, x_0 = dpm_solver(line, schedule, torch.zeros(1, 1, 2, 2), [1, 0])  # one value makes no line
    assert torch.allclose(x_0, line(x_0, 1))


@pytest.mark.parametrize("deviation", [0.02, 0.035])
def test_ten_steps_of_dpm_solver_keep_noise_as_fine_as_a_scans(deviation):
    """Gaussian data of that standard deviation, whose x_0_hat is known: to 0.3 dB. Ending in x_0_hat loses 1.0 and 0.4."""
    schedule = make_schedule("cosine")
    alpha_bar = schedule.alpha_bar.flatten()

    def predict_x_0(x_t, t):
        return x_t * (alpha_bar[t].sqrt() * deviation**2 / (alpha_bar[t] * deviation**2 + 1 - alpha_bar[t])).item()

    *_, x_0 = dpm_solver(
        predict_x_0, schedule, torch.ones(1, 1, 1, 1, dtype=torch.float64), log_snr_times(schedule, 10)
    )
    assert abs(20 * math.log10(x_0.item() / deviation)) < 0.3


# Few times


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SCHEDULES), st.integers(30, 1000), st.integers(2, 30))
def test_the_student_stops_on_the_teachers_walk_and_fewer_stops_are_among_more(kind, T, steps):
    schedule = make_schedule(kind, T)
    walk = log_snr_times(schedule, steps)
    before = {walk[0], 0}
    for n in range(1, len(walk)):
        times = middle_times(schedule, walk, n)
        assert len(times) == n + 1 and times == sorted(times, reverse=True) and before <= set(times) <= set(walk)
        before = set(times)
    assert times == walk


def test_the_middle_of_a_walk_is_kept():
    schedule = make_schedule("cosine")
    walk = log_snr_times(schedule, 10)
    assert walk == [1000, 988, 962, 884, 672, 329, 111, 32, 7, 1, 0]
    assert [middle_times(schedule, walk, n)[1:-1] for n in (1, 2, 3, 4)] == [[], [672], [672, 329], [884, 672, 329]]
    assert middle_times(schedule, walk, 10) == walk
    for n in (0, 11):
        with pytest.raises(ValueError, match=f"1 to 10 steps, not {n}"):
            middle_times(schedule, walk, n)


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 1000), st.integers(2, 12))
def test_nonuniform_times_are_dense_where_there_is_noise(T, n):
    n = min(n, T // 4)
    times = nonuniform_times(T, n) if n >= 2 else nonuniform_times(T, 2)
    n = max(n, 2)
    assert len(times) == n + 1 == len(set(times)) and times[0] == T and times[-1] == 0 and round(0.7 * T) in times
    assert times == sorted(times, reverse=True)
    assert abs(sum(t > round(0.7 * T) for t in times) - 0.6 * n) <= 0.5 + 0.4 * (n < 3)


def test_ten_nonuniform_times():
    assert nonuniform_times(1000, 10) == [1000, 950, 900, 850, 800, 750, 700, 525, 350, 175, 0]
    assert nonuniform_times(8, 2) == [8, 6, 0] and nonuniform_times(1000, 3) == [1000, 850, 700, 0]
    assert len(nonuniform_times(1000, 250)) == 251
    for T, n, most in ((1000, 1, "2 to 250 such steps"), (8, 3, "2 to 2 such steps"), (7, 2, "no such steps")):
        with pytest.raises(ValueError, match=f"walked in {most}.*, not {n}"):
            nonuniform_times(T, n)
