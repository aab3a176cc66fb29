"""The closed form of q(x_t | x_0), the targets, and the loss (Eqs. 4 and 14)."""

import math

import pytest
import torch

from ddpm.conditions import Condition
from ddpm.forward import LOSS_WEIGHTS, denoising_loss, draw_times, loss_weight, q_sample, training_target
from ddpm.schedule import OBJECTIVES, SCHEDULES, make_schedule


@pytest.mark.parametrize("kind", SCHEDULES)
def test_closed_form_is_t_single_steps(kind):
    """Eq. 2, x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) z, step by step in mean and variance, against Eq. 4."""
    schedule = make_schedule(kind, 200)
    x_0, mean, variance = 0.7, 0.7, 0.0
    for t in range(1, 201):
        beta = schedule.beta[t].item()
        mean, variance = (1 - beta) ** 0.5 * mean, (1 - beta) * variance + beta
        at = torch.tensor([t])
        clean = torch.full((1, 1, 1, 1), x_0, dtype=torch.float64)
        closed_mean = q_sample(schedule, clean, at, torch.zeros_like(clean)).item()
        closed_sigma = q_sample(schedule, torch.zeros_like(clean), at, torch.ones_like(clean)).item()
        assert closed_mean == pytest.approx(mean, rel=1e-9)
        assert closed_sigma**2 == pytest.approx(variance, rel=1e-9)


def test_q_sample_has_the_published_value_and_keeps_float32():
    schedule = make_schedule("linear")
    x_0, eps, t = torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), -1.2), torch.tensor([501])
    x_t = q_sample(schedule, x_0, t, eps)
    assert x_t.dtype == torch.float32
    assert x_t.item() == pytest.approx(-1.0129167652, rel=1e-6)


def test_each_sample_has_its_own_time():
    schedule = make_schedule("cosine")
    x_0, eps = torch.rand(3, 2, 4, 6) * 2 - 1, torch.randn(3, 2, 4, 6)
    t = torch.tensor([1, 400, 1000])
    together = q_sample(schedule, x_0, t, eps)
    for i in range(3):
        assert torch.equal(together[i : i + 1], q_sample(schedule, x_0[i : i + 1], t[i : i + 1], eps[i : i + 1]))
    assert torch.equal(q_sample(schedule, x_0, torch.zeros(3).long(), eps), x_0)  # t = 0 is the clean image


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_network_that_answers_the_target_has_no_loss_and_gives_back_x_0(objective):
    schedule = make_schedule("cosine")
    x_0, eps, t = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 1, 8, 8), torch.tensor([1, 300, 700, 990])
    target = training_target(schedule, objective, x_0, t, eps)
    loss = denoising_loss(schedule, lambda *inputs: target, objective, x_0, t, eps, Condition())
    assert torch.equal(loss, torch.zeros(4))
    x_t = q_sample(schedule, x_0, t, eps)
    assert torch.allclose(schedule.x_0_from(objective, target, x_t, t), x_0, atol=2e-4)


def test_loss_is_the_mean_over_pixels_of_each_sample():
    """The network sees x_t of Eq. 4, the time and the condition; an error of 0.5 everywhere costs 0.25."""
    schedule = make_schedule("linear")
    x_0, eps, t = torch.rand(2, 1, 8, 4), torch.randn(2, 1, 8, 4), torch.tensor([10, 900])
    condition = Condition(torch.ones(2, 3, 8, 4), {"contrast": torch.tensor([1, 2])})

    def network(*inputs):
        assert torch.equal(inputs[0], q_sample(schedule, x_0, t, eps))
        assert torch.equal(inputs[1], t) and inputs[2] is condition
        return eps + 0.5

    loss = denoising_loss(schedule, network, "eps", x_0, t, eps, condition)
    assert torch.allclose(loss, torch.full((2,), 0.25))


def test_an_error_in_the_foreground_counts_as_often_as_it_is_told():
    """An error of 1 in 2 of 8 pixels; of three classes the mask of the first image has the second and third there, that of
    the second nothing but background, and that of the third is withheld."""
    labels = torch.zeros(3, 2, 4).long()
    labels[0, 0, :2] = torch.tensor([1, 2])
    mask = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    mask[2] = 0
    eps = torch.randn(3, 2, 2, 4)
    wrong = eps.clone()
    wrong[:, :, 0, :2] += 1
    given = make_schedule("linear"), lambda *inputs: wrong, "eps", torch.zeros(3, 2, 2, 4), torch.tensor([5, 5, 5]), eps
    for weight, expected in ((1, [0.25, 0.25, 0.25]), (4, [1, 0.25, 0.25]), (0.5, [0.125, 0.25, 0.25])):
        assert torch.allclose(denoising_loss(*given, Condition(mask), weight), torch.tensor(expected)), weight
    assert torch.allclose(denoising_loss(*given, Condition(), 4.0), torch.tensor([0.25] * 3))


def test_the_foreground_weight_leaves_the_best_answer_where_it_is():
    """Many x_0 of one mask and one x_t: at their mean the loss has no slope, with the weight as without."""
    mask = torch.zeros(500, 2, 4, 4)
    mask[:, 1, 1:3, 1:3], mask[:, 0] = 1, 1 - mask[0, 1]
    x_0, t = torch.randn(500, 1, 4, 4, dtype=torch.float64) ** 3, torch.full((500,), 400)  # a skewed distribution
    for weight in (1.0, 7.0):
        answer = x_0.mean(dim=0, keepdim=True).requires_grad_()
        network = lambda *inputs: answer.expand(500, -1, -1, -1)  # noqa: B023, E731
        loss = denoising_loss(make_schedule("cosine"), network, "x_0", x_0, t, x_0, Condition(mask), weight).mean()
        loss.backward()
        assert answer.grad.abs().max() < 1e-6
        assert loss > 0.1


def test_the_network_gets_the_time_where_the_image_is():
    """Times are drawn on the CPU. (On the device `meta` there are shapes and no values.)"""
    x_0, eps = torch.empty(2, 2, 1, 4, 4, device="meta")
    devices = []
    network = lambda x_t, t, condition: devices.append(t.device.type) or x_t  # noqa: E731
    loss = denoising_loss(make_schedule("linear"), network, "eps", x_0, torch.tensor([1, 9]), eps, Condition())
    assert devices == ["meta"] and loss.shape == (2,)


def test_min_snr_weights_have_the_published_values():
    schedule, t = make_schedule("linear"), torch.tensor([101])
    assert schedule.snr(101).item() == pytest.approx(8.5366696, rel=1e-6)
    for objective, expected in (("eps", 0.5857086), ("x_0", 5), ("v", 0.5242920)):
        assert loss_weight(schedule, "min-snr", objective, t).item() == pytest.approx(expected, rel=1e-6)


def test_gamma_is_where_min_snr_is_cut():
    """min(SNR, gamma) is the weight of the error in x_0: half of gamma is half of the weight where SNR is above both."""
    schedule, t = make_schedule("linear"), torch.tensor([50, 101, 500])
    snr = schedule.snr(t).flatten()
    for gamma in (1.0, 2.0, 5.0):
        weights = {objective: loss_weight(schedule, "min-snr", objective, t, gamma) for objective in OBJECTIVES}
        assert torch.allclose(weights["x_0"], torch.minimum(snr, torch.tensor(gamma)))
        assert torch.allclose(weights["eps"] * snr, weights["x_0"])
        assert torch.allclose(weights["v"] * (snr + 1), weights["x_0"])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_plain_loss_weighs_all_alike(objective):
    weights = {
        kind: loss_weight(make_schedule("cosine"), kind, objective, torch.arange(1, 1001)) for kind in LOSS_WEIGHTS
    }
    assert (weights.pop("plain") == 1).all()
    assert all(weight.shape == (1000,) and not (weight == 1).all() for weight in weights.values())


def test_min_snr_makes_the_three_objectives_one_loss():
    schedule, t = make_schedule("cosine"), torch.tensor([5, 200, 600, 950])
    x_0, eps = torch.randn(4, 1, 8, 8).double(), torch.randn(4, 1, 8, 8).double()
    x_t = q_sample(schedule, x_0, t, eps)
    guess = x_0 + 0.1 * torch.randn_like(x_0)
    eps_hat = schedule.eps_from(guess, x_t, t)
    answers = {"x_0": guess, "eps": eps_hat, "v": schedule.v_from(guess, eps_hat, t)}
    weighted = []
    for objective in OBJECTIVES:
        target = training_target(schedule, objective, x_0, t, eps)
        error = (answers[objective] - target).square().mean(dim=(1, 2, 3))
        weighted.append(loss_weight(schedule, "min-snr", objective, t) * error)
    assert all(torch.allclose(weighted[0], other, rtol=1e-6) for other in weighted[1:])


def test_what_is_no_objective_is_refused():
    schedule, t, x = make_schedule("cosine"), torch.tensor([5]), torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="none of"):
        training_target(schedule, "F", x, t, x)
    with pytest.raises(ValueError, match="none of"):
        schedule.x_0_from("F", x, x, t)
    with pytest.raises(ValueError, match="no weight 'min-snr'"):
        loss_weight(schedule, "min-snr", "F", t)


def test_min_snr_survives_a_zero_terminal_snr():
    schedule = make_schedule("linear", zero_terminal_snr=True)
    for objective, expected in (("eps", 1), ("x_0", 0), ("v", 0)):
        assert loss_weight(schedule, "min-snr", objective, torch.tensor([1000])).item() == expected


def test_times_are_uniform_on_1_to_T_and_spread_over_the_range():
    draws = torch.stack([draw_times(8, 20) for _ in range(5000)])
    counts = torch.bincount(draws.flatten(), minlength=21)
    assert counts[0] == 0 and len(counts) == 21
    assert (counts[1:] / 2000 - 1).abs().max() < 0.1  # 2,000 expected of each
    by_place = draws.double().mean(dim=0)
    assert (by_place - 10.5).abs().max() < 0.5  # every place in the batch sees every time
    assert (draw_times(1000, 1000).sort().values == torch.arange(1, 1001)).all()


def test_rounding_neither_repeats_a_time_nor_leads_past_T(monkeypatch):
    n = 2**18  # float32 would have six bits left for the place within a part
    assert (draw_times(n, n).sort().values == torch.arange(1, n + 1)).all()
    monkeypatch.setattr(torch, "rand", lambda n, dtype: torch.full((n,), 1 - 2**-53, dtype=dtype))
    assert draw_times(8, 20).max() == 20


@pytest.mark.parametrize("mean, std", [(-0.5, 1.2), (0.4, 0.7)])
def test_times_can_be_logit_normal(mean, std):
    """P(t <= k) is the normal law's at logit(k / T); one time from each n-th of it."""
    T, n = 1000, 4000
    t = draw_times(n, T, mean, std)
    for k in (10, 100, 300, 500, 800, 990):
        z = (math.log(k / T / (1 - k / T)) - mean) / std
        assert (t <= k).double().mean().item() == pytest.approx(0.5 * (1 + math.erf(z / 2**0.5)), abs=1.01 / n)
    assert t.min() >= 1 and t.max() <= T
    assert draw_times(n, T, std=std).double().median().item() == pytest.approx(
        T / 2, abs=2
    )  # a mean of 0, unless given
    assert torch.corrcoef(torch.stack([t.double(), torch.arange(n).double()]))[0, 1].abs() < 0.1  # in random order


@pytest.mark.parametrize("n", [1, 3, 10])
def test_few_times_are_drawn_equally_often_and_no_others(n, monkeypatch):
    few = tuple(range(100 * n, 0, -100))
    assert sorted(draw_times(6 * n, 1000, -0.5, 1.2, few).tolist()) == sorted(6 * few)
    monkeypatch.setattr(torch, "rand", lambda n, dtype: torch.full((n,), 1 - 2**-53, dtype=dtype))
    assert set(draw_times(8, 1000, few=few).tolist()) <= set(few)  # 1 - 2^-53 may be rounded to 1
