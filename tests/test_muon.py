"""Muon against the singular value decomposition, and what the optimisers share out between them."""

import numpy as np
import pytest
import torch

from ddpm.conditions import Vocabulary
from ddpm.data import Slices
from ddpm.muon import MOMENTUM, Muon, orthogonal
from ddpm.runtime.config import Config
from ddpm.training import make_optimizers, make_training, make_unet, rate, training_step


def with_singular_values(values, m, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=torch.float64))[0][:, : len(values)]
    v = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0][:, : len(values)]
    return u, v, u @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ v.T


@pytest.mark.parametrize("m, n", [(4, 4), (4, 9), (9, 4)])
def test_orthogonal_keeps_the_singular_vectors_and_sets_the_values_near_1(m, n):
    u, v, G = with_singular_values([3.0, 1.0, 0.3, 0.05], m, n)
    values = torch.diag(u.T @ orthogonal(G.float()).double() @ v)
    assert ((values > 0.65) & (values < 1.3)).all()
    off = u.T @ orthogonal(G.float()).double() @ v - torch.diag(values)
    assert off.abs().max() < 1e-4


def test_orthogonal_is_the_iteration_as_published():
    """X <- a X + b (X X^T) X + c (X X^T)^2 X, five times, on the matrix itself."""
    G = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
    X = G.double() / G.double().norm()
    for _ in range(5):
        gram = X @ X.T
        X = 3.4445 * X - 4.7750 * gram @ X + 2.0315 * gram @ gram @ X
    assert torch.allclose(orthogonal(G).double(), X, atol=1e-4)


def test_the_scale_of_the_gradient_does_not_matter_and_a_zero_gradient_is_no_step():
    G = torch.randn(2, 5, 7)
    assert torch.allclose(orthogonal(1000 * G), orthogonal(G), atol=1e-4)
    assert torch.equal(orthogonal(torch.zeros(2, 5, 7)), torch.zeros(2, 5, 7))
    for scale in (1e-9, 1e-7):  # so small that it counts as nothing: a step in its direction all the same, or none
        assert (orthogonal(scale * G / G.norm()) * G).sum() > 0


def test_each_of_several_matrices_is_made_orthogonal_by_itself():
    G = torch.randn(3, 5, 7)
    for one, alone in zip(orthogonal(G), G, strict=True):
        assert torch.allclose(one, orthogonal(alone), atol=1e-5)


def test_a_step_is_nesterov_momentum_made_orthogonal():
    """Two steps by hand, for a tall convolution: (8, 1 * 2 * 2), so sqrt(8 / 4) times as long."""
    weight = torch.nn.Parameter(torch.zeros(8, 1, 2, 2))
    optimizer = Muon([weight], lr=0.1)
    expected, momentum = torch.zeros(8, 4), torch.zeros(8, 4)
    for seed in range(2):
        G = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
        weight.grad = G.view(8, 1, 2, 2).clone()
        optimizer.step()
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * G
        expected = expected - 0.1 * 2**0.5 * orthogonal((1 - MOMENTUM) * G + MOMENTUM * momentum)
    assert torch.allclose(weight.data.flatten(1), expected, atol=1e-5)


def test_decay_shrinks_a_weight_before_its_step_by_the_rate_times_the_decay():
    G, start = torch.randn(4, 6), torch.randn(4, 6)
    weights = [torch.nn.Parameter(start.clone()), torch.nn.Parameter((1 - 0.1 * 0.5) * start)]
    for weight, decay in zip(weights, (0.5, 0.0), strict=True):
        weight.grad = G.clone()
        Muon([weight], lr=0.1, weight_decay=decay).step()
    assert torch.allclose(*weights, atol=1e-6)


def test_a_weight_without_a_gradient_stays_and_those_after_it_learn():
    weights = [torch.nn.Parameter(torch.zeros(4, 6)) for _ in range(2)]
    weights[1].grad = torch.randn(4, 6)
    Muon(weights, lr=1.0).step()
    assert not weights[0].any() and torch.allclose(weights[1].data, -orthogonal(weights[1].grad), atol=1e-5)


def test_parts_of_a_weight_are_matrices_of_their_own_and_the_gradient_is_left_alone():
    weight = torch.nn.Parameter(torch.zeros(6, 4, 1, 1))
    weight.grad = torch.randn(6, 4, 1, 1)
    before = weight.grad.clone()
    Muon([{"params": [weight], "parts": 3}], lr=1.0).step()
    for rows in range(0, 6, 2):
        expected = -orthogonal(before[rows : rows + 2].flatten(1))
        assert torch.allclose(weight.data[rows : rows + 2].flatten(1), expected, atol=1e-4)
    assert torch.equal(weight.grad, before)


def test_weights_of_one_size_are_made_orthogonal_together_and_learn_as_alone():
    """A (4, 6) matrix, one that is the same as a convolution, and two of (4, 6) in one layer, at two rates."""
    shapes, parts, rates = [(4, 6), (4, 3, 1, 2), (8, 6), (5, 6)], [1, 1, 2, 1], [0.1, 0.2, 0.1, 0.1]

    def steps(chosen):
        weights = [torch.nn.Parameter(torch.ones(shapes[i])) for i in chosen]
        groups = zip(weights, (parts[i] for i in chosen), (rates[i] for i in chosen), strict=True)
        optimizer = Muon([{"params": [weight], "parts": n, "lr": lr} for weight, n, lr in groups], lr=1.0)
        for seed in range(2):
            for i, weight in zip(chosen, weights, strict=True):
                generator = torch.Generator().manual_seed(10 * seed + i)
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()
        return weights

    for together, i in zip(steps(range(4)), range(4), strict=True):
        assert torch.allclose(together, steps([i])[0], atol=1e-5), i


def test_a_weight_without_gradient_stays():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    Muon([weight], lr=1.0).step()
    assert torch.equal(weight.data, torch.ones(2, 2))


def test_muon_has_the_inner_convolutions_and_adamw_all_else():
    config = Config(channels=16, mults=[1, 2])
    unet = make_unet(config, Vocabulary(("background", "lesion"), {"contrast": ("T1",)}))
    names = {parameter: name for name, parameter in unet.named_parameters()}
    adamw, muon = make_optimizers(unet, config)
    parts = {names[weight]: group["parts"] for group in muon.param_groups for weight in group["params"]}
    rest = {names[weight] for group in adamw.param_groups for weight in group["params"]}
    assert parts.keys() | rest == set(names.values()) and not parts.keys() & rest
    inner = {name for name, weight in unet.named_parameters() if weight.ndim == 4}
    assert parts.keys() == inner - {"conv_in.weight", "conv_out.weight"}
    assert {name for name, number in parts.items() if number == 3} == {name for name in parts if "qkv" in name}
    assert all(number in (1, 3) for number in parts.values())


def test_without_muon_adamw_has_everything():
    config = Config(channels=16, mults=[1, 2], muon_lr=0.0)
    unet = make_unet(config, Vocabulary())
    (adamw,) = make_optimizers(unet, config)
    assert sum(len(group["params"]) for group in adamw.param_groups) == len(list(unet.parameters()))


def test_each_optimiser_steps_at_its_own_rate():
    data = Slices(np.zeros((4, 1, 16, 16), np.uint8), None, {}, Vocabulary(), np.arange(4))
    config = Config(channels=16, mults=[1, 2], steps=10, warmup=0, batch_size=2, lr=0.5, muon_lr=0.25)
    training = make_training(config, Vocabulary(), torch.device("cpu"))
    training_step(training, data, 4)
    rates = [{group["lr"] for group in optimizer.param_groups} for optimizer in training.optimizers]
    assert rates == [{0.5 * 0.6}, {0.25 * 0.6}]


def decays(config):
    """AdamW's and Muon's weight decay in a step."""
    data = Slices(np.zeros((4, 1, 16, 16), np.uint8), None, {}, Vocabulary(), np.arange(4))
    training = make_training(config, Vocabulary(), torch.device("cpu"))
    training_step(training, data, 0)
    (adamw,), (muon,) = ({group["weight_decay"] for group in made.param_groups} for made in training.optimizers)
    return adamw, muon


@pytest.mark.parametrize("steps", [600, 3000])
def test_trainings_of_any_length_decay_as_much_in_all(steps):
    """Muon: by exp(-sum of lr decay), whatever the number of steps. AdamW: as it is told, in each step."""
    config = Config(channels=16, mults=[1, 2], steps=steps, batch_size=2, muon_lr=0.02, weight_decay=0.3)
    adamw, muon = decays(config)
    in_all = sum(config.muon_lr * rate(config, step) for step in range(steps)) * muon
    assert adamw == 0.3 and in_all == pytest.approx(0.1 * 3000 * 0.02 * 0.46, rel=0.03)


def test_a_few_steps_do_not_decay_everything():
    assert decays(Config(channels=16, mults=[1, 2], steps=2, batch_size=2))[1] == 1
