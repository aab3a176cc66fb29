"""Refinement: the discriminator's loss, a reference that is known exactly, and the command lines."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sample
import train
from ddpm.conditions import Condition, Vocabulary
from ddpm.data.images import to_float, to_uint8
from ddpm.data.sources import load_data
from ddpm.forward import q_sample
from ddpm.model import Model, draw, load_model
from ddpm.refinement import LOOKS, SCALE, discriminative_loss
from ddpm.runtime.config import Config
from ddpm.runtime.start import share_of_validation
from ddpm.schedule import make_schedule
from ddpm.training import make_training, training_step

COSINE = make_schedule("cosine")


class GaussianUNet(torch.nn.Module):
    """The best answer v_hat for data of which every pixel is N(mean, deviation^2), both to be learnt."""

    def __init__(self, mean, deviation):
        super().__init__()
        self.mean, self.deviation = (torch.nn.Parameter(torch.tensor(x)) for x in (mean, deviation))

    def forward(self, x_t, t, condition):
        a, s = COSINE.signal_and_noise(t, x_t)
        variance = self.deviation**2
        x_0_hat = self.mean + a * variance / (a**2 * variance + s**2) * (x_t - a * self.mean)
        return (a * x_t - x_0_hat) / s


def gaussian_model(mean, deviation):
    config = Config(image_size=[8, 8], mask_drop=0.0, label_drop=0.0, all_drop=0.0, extra_noise=0.0, precision="fp32")
    return Model(config, Vocabulary(), COSINE, GaussianUNet(mean, deviation).requires_grad_(False))


def looks(B, seed):
    """Real images N(0.1, 0.3^2), times and noise."""
    random = torch.Generator().manual_seed(seed)
    x_0 = to_float(to_uint8(0.1 + 0.3 * torch.randn(B, 1, 8, 8, generator=random)))
    t = torch.randint(50, 900, (LOOKS, B), generator=random)
    return x_0, t, torch.randn(LOOKS, B, 1, 8, 8, generator=random), Condition()


def test_a_copy_that_is_equal_tells_nothing():
    reference = gaussian_model(0.0, 0.2)
    loss = discriminative_loss(reference.unet, reference, reference.config, *looks(3, 0), seeds=[1, 2, 3])
    assert torch.equal(loss, torch.full((LOOKS, 3), 2 * math.log(2)))


def test_the_loss_is_a_discriminators():
    """-log d(x_0) - log(1 - d(x_drawn)), d = sigmoid of the difference of the two errors, computed pair by pair."""
    reference, copy = gaussian_model(0.0, 0.2), GaussianUNet(0.05, 0.25)
    x_0, t, eps, condition = looks(3, 0)
    loss = discriminative_loss(copy, reference, reference.config, x_0, t, eps, condition, seeds=[4, 5, 6])
    *_, (_, drawn) = draw(reference, condition, [4, 5, 6])
    drawn = to_float(to_uint8(drawn))

    def d(image, t, eps):
        target = COSINE.v_from(image, eps, t)
        x_t = q_sample(COSINE, image, t, eps)
        of_reference, of_copy = (
            (network(x_t, t, condition) - target).square().sum() for network in (reference.unet, copy)
        )
        return 1 / (1 + torch.exp(-SCALE * (of_reference - of_copy)))

    for n in range(LOOKS):
        for i in range(3):
            one = t[n, i : i + 1], eps[n, i : i + 1]
            expected = -torch.log(d(x_0[i : i + 1], *one)) - torch.log(1 - d(drawn[i : i + 1], *one))
            assert loss[n, i].item() == pytest.approx(expected.item(), rel=1e-4)


def gradient(reference, copy):
    """Of the mean loss over 400 pairs, by the copy's mean and deviation."""
    x_0, t, eps, condition = looks(400, 1)
    discriminative_loss(copy, reference, reference.config, x_0, t, eps, condition, range(400)).mean().backward()
    return copy.mean.grad.item(), copy.deviation.grad.item()


def test_nothing_pulls_at_a_copy_of_what_draws_the_data():
    """Where p_ref = p, the two halves of the gradient cancel; where it errs, the pull is to the data's side."""
    at_data = gradient(gaussian_model(0.1, 0.3), GaussianUNet(0.1, 0.3))
    below = gradient(gaussian_model(0.05, 0.25), GaussianUNet(0.05, 0.25))
    above = gradient(gaussian_model(0.15, 0.35), GaussianUNet(0.15, 0.35))
    for i in range(2):
        assert below[i] < 0 < above[i]
        assert abs(at_data[i]) < 0.35 * min(-below[i], above[i])  # not 0: ten steps of the solver err a little


def test_it_mends_what_squared_error_cannot_see():
    """A network that is right, and a way of drawing that errs: images have too little noise. Squared error leaves the
    network as it is, as it has the best answer. The loss makes it draw more."""
    reference = gaussian_model(0.1, 0.3)
    weak = Model(reference.config, Vocabulary(), COSINE, GaussianUNet(0.1, 0.25).requires_grad_(False))
    x_0, t, eps, condition = looks(400, 2)
    copy = GaussianUNet(0.1, 0.3)
    *_, (_, drawn) = draw(weak, condition, range(400))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddpm.refinement.draw", lambda *asked: [(0, drawn)])
        discriminative_loss(copy, reference, reference.config, x_0, t, eps, condition, range(400)).mean().backward()
    assert copy.deviation.grad.item() < -1  # descent enlarges it


def test_learning_moves_a_copy_towards_the_data():
    reference, copy = gaussian_model(0.0, 0.2), GaussianUNet(0.0, 0.2)
    optimizer = torch.optim.Adam(copy.parameters(), lr=0.01)
    for step in range(12):
        optimizer.zero_grad()
        seeds = [(step, i) for i in range(16)]
        discriminative_loss(copy, reference, reference.config, *looks(16, 10 + step), seeds).mean().backward()
        optimizer.step()
    assert abs(copy.mean.item() - 0.1) < 0.05 and abs(copy.deviation.item() - 0.3) < 0.05


# On a small network

FLAGS = ["--steps", "6", "--batch-size", "2", "--save-every", "3", "--precision", "fp32"]


@pytest.fixture(scope="module")
def refined_run(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "refined"
    assert train.main(["--preset", "tiny", "--reference", str(tiny_run), *FLAGS, "--out", str(folder)]) == 0
    return folder


def weights(path, which="model"):
    return torch.load(path, weights_only=True)[which]


def training_of(reference, **settings):
    config = replace(reference.config, reference="r", batch_size=4, lr=2e-4, muon_lr=1e-3, **settings)
    data = load_data(config, "train")
    training = make_training(config, data.vocabulary, torch.device("cpu"))
    training.unet.load_state_dict(reference.unet.state_dict())
    training.reference = reference
    return training, data


def test_a_copy_learns_to_tell_pairs_that_it_has_not_seen(tiny_run, small_phantom):
    reference = load_model(tiny_run)
    training, data = training_of(reference, steps=20)
    held_out = load_data(reference.config, "val")
    x_0, condition = held_out.batch(np.arange(16))
    t = torch.randint(1, 1000, (LOOKS, 16), generator=torch.Generator().manual_seed(0))
    eps = torch.randn(LOOKS, *x_0.shape, generator=torch.Generator().manual_seed(1))

    def loss():
        with torch.no_grad():
            pairs = x_0, t, eps, condition, range(16)
            return discriminative_loss(training.unet, reference, training.config, *pairs).mean().item()

    before = loss()
    assert before == pytest.approx(2 * math.log(2), rel=1e-5)
    for step in range(20):
        training_step(training, data, step)
    assert loss() < 0.85 * before


def test_a_pair_shares_its_condition_its_times_and_its_noise(tiny_run, small_phantom):
    reference = load_model(tiny_run)
    data = load_data(reference.config, "val")
    x_0, condition = data.batch(np.arange(3))
    t = torch.arange(100, 100 + LOOKS * 3).view(LOOKS, 3)
    eps, asked = torch.randn(LOOKS, *x_0.shape), []

    def copy(x_t, t, condition):
        asked.append((x_t, t, condition))
        return reference.unet(x_t, t, condition)

    discriminative_loss(copy, reference, replace(reference.config, precision="fp32"), x_0, t, eps, condition, [1, 2, 3])
    ((x_t, times, told),) = asked
    assert torch.equal(times.view(LOOKS, 2, 3), t[:, None].expand(LOOKS, 2, 3))
    assert torch.equal(told.mask.view(LOOKS, 2, 3, *condition.mask.shape[1:])[2, 1], condition.mask)
    assert torch.equal(told.labels["contrast"].view(-1, 3)[-1], condition.labels["contrast"])
    *_, (_, drawn) = draw(reference, condition, [1, 2, 3])
    x_t = x_t.view(LOOKS, 2, 3, *x_0.shape[1:])
    for n in range(LOOKS):
        assert torch.equal(x_t[n, 0], q_sample(reference.schedule, x_0, t[n], eps[n]))
        assert torch.allclose(
            x_t[n, 1], q_sample(reference.schedule, to_float(to_uint8(drawn)), t[n], eps[n]), atol=1e-2
        )


def test_parts_of_a_batch_add_up_to_it(tiny_run, small_phantom):
    states = []
    for parts in (1, 2):
        training, data = training_of(load_model(tiny_run), grad_accum=parts)
        step = training_step(training, data, 0)
        assert step.t.shape == step.losses.shape == (LOOKS, 4)
        states.append((step.losses, step.grad_norm))
    assert torch.allclose(states[0][0], states[1][0], rtol=1e-4)
    assert torch.allclose(states[0][1], states[1][1], rtol=1e-3)


def test_every_pair_has_a_drawn_image_of_its_own(tiny_run, small_phantom, monkeypatch):
    seen = []

    def spy(*asked):
        seen.extend(asked[-1])
        return discriminative_loss(*asked)

    monkeypatch.setattr("ddpm.training.discriminative_loss", spy)
    training, data = training_of(load_model(tiny_run), grad_accum=2)
    for step in range(2):
        training_step(training, data, step)
    assert len(seen) == len(set(seen)) == 8


def test_a_stopped_refinement_goes_on_to_the_same_weights(refined_run):
    assert train.main(["--resume", str(refined_run / "checkpoints/step_000003.pt"), "--out", "branch"]) == 0
    ended, branch = (weights(place / "checkpoints/step_000006.pt") for place in (refined_run, Path("branch")))
    assert all(torch.equal(ended[name], branch[name]) for name in ended)


def test_a_refinement_begins_as_its_reference_and_is_drawn_from_as_any_model(refined_run, tiny_run, capsys):
    config = load_model(refined_run).config
    assert config.reference == str(tiny_run / "checkpoints/step_000040.pt") and config.muon_lr == 5e-5
    begun = weights(tiny_run / "checkpoints/step_000040.pt", "ema")
    moved = weights(refined_run / "checkpoints/step_000006.pt")
    assert all((moved[name] - begun[name]).abs().max() < 1e-3 for name in begun)
    line = json.loads((refined_run / "log.jsonl").read_text().splitlines()[0])
    assert 1 < line["loss"] < 1.5 and line["images_per_second"] > 0
    assert sample.main(["--ckpt", str(refined_run), "--mask", "--n", "1", "--out", "o"]) == 0
    assert "10 dpm-solver steps" in capsys.readouterr().out


def test_a_resumed_refinement_needs_its_reference(refined_run, tiny_run, capsys):
    raw = torch.load(refined_run / "checkpoints/step_000003.pt", weights_only=True)
    raw["config"]["reference"] = "gone.pt"
    torch.save(raw, "lost.pt")
    assert train.main(["--resume", "lost.pt", "--out", "branch"]) == 2
    assert "gone.pt" in capsys.readouterr().err
    where = ["--resume", "lost.pt", "--reference", str(tiny_run), "--out", "branch"]
    assert train.main([*where, "--steps", "4"]) == 0  # it lies elsewhere now
    ended = torch.load("branch/checkpoints/step_000004.pt", weights_only=True)
    ended["config"]["reference"] = "gone.pt"
    torch.save(ended, "ended.pt")
    capsys.readouterr()
    assert train.main(["--resume", "ended.pt", "--out", "elsewhere"]) == 0  # what has nothing left to learn needs none
    assert "nothing left to do" in capsys.readouterr().out
    assert train.main(["--resume", str(tiny_run), "--reference", str(tiny_run), "--out", "no"]) == 2
    assert "which was trained with none" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--reference", "RUN", "--teacher", "RUN"], "--reference has no meaning with --teacher"),
        (["--reference", "RUN", "--init", "RUN"], "--init has no meaning with --reference"),
        (["--reference", "RUN", "--few-steps", "4"], "--few-steps has no meaning with --reference"),
        (["--reference", "RUN", "--loss-weight", "min-snr"], "--loss-weight has no meaning with --reference"),
        (["--reference", "RUN", "--foreground-weight", "2"], "--foreground-weight has no meaning with --reference"),
        (["--reference", "RUN", "--labels", "tissue"], "was trained with"),
        (["--reference", "RUN", "--channels", "8"], "--reference"),
        (["--reference", "RUN", "--image-size", "16"], "--reference"),
        (["--reference", "nothing.pt"], "nothing.pt"),
        (["--reference", ""], "an empty name"),
        (["--reference", "pretrained-fast", "--image-size", "64"], "knows 4 times alone"),
    ],
)
def test_flags_that_do_not_go_together(flags, told, tiny_run, capsys):
    flags = [str(tiny_run) if flag == "RUN" else flag for flag in flags]
    assert train.main(["--preset", "tiny", "--precision", "fp32", *flags, "--out", "bad"]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_the_plan_counts_what_is_drawn():
    """A step draws an image (20 passes) and looks at two, with the copy (three passes) and its reference, LOOKS times."""
    config = Config(reference="r", batch_size=16)
    assert share_of_validation(config) == pytest.approx((256 + 24 * 20) / (16 * (20 + 8 * LOOKS)))
