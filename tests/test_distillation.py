"""Distillation: the closed forms, a teacher that is known exactly, and the command lines."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import sample
import train
from ddpm import UserError
from ddpm.conditions import Condition, Vocabulary
from ddpm.data.sources import load_data
from ddpm.distillation import angle, distillation_loss, lessons, velocity_between
from ddpm.forward import denoising_loss
from ddpm.model import Model, Sampling, draw, load_model
from ddpm.reverse import ddim
from ddpm.runtime.config import Config
from ddpm.runtime.run import Run
from ddpm.runtime.start import share_of_validation
from ddpm.schedule import SCHEDULES, Schedule, make_schedule
from ddpm.training import Step, make_training, training_step

COSINE = make_schedule("cosine")
X, V = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def exact_cosine(T):
    """alpha_bar = cos^2(pi t / 2 T): steps of equal length are rotations by equal angles, from pure noise."""
    alpha_bar = (torch.cos(torch.linspace(0, 1, T + 1, dtype=torch.float64) * math.pi / 2) ** 2).view(-1, 1, 1, 1)
    alpha_bar[-1] = 0
    beta = torch.cat([torch.zeros(1, 1, 1, 1), 1 - alpha_bar[1:] / alpha_bar[:-1]])
    return Schedule(beta, 1 - beta, alpha_bar)


def step_of_ddim(schedule, x_t, v, t, s):
    _, x_s = ddim(lambda x_t, t: schedule.x_0_from("v", v, x_t, t), schedule, x_t, [t, s], None)
    return x_s


# The equations


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("t, s", [(1000, 999), (1000, 0), (600, 200), (1, 0)])
def test_the_target_leads_there_in_one_step_of_ddim(kind, t, s):
    schedule = make_schedule(kind)
    x_s = step_of_ddim(schedule, X, V, t, s)
    assert torch.allclose(velocity_between(schedule, X, x_s, t, s), V, atol=1e-7)
    d = angle(schedule, t) - angle(schedule, s)
    assert torch.allclose(math.cos(d) * X - math.sin(d) * V, x_s, atol=1e-9)  # a rotation


def test_the_target_of_two_half_steps_is_the_closed_form():
    """v* = 1/2 [ v_1 + (v_2 - sin(h) x) / cos(h) ] for two equal angles h."""
    schedule, (t, middle, s) = exact_cosine(8), (8, 6, 4)
    v_1, v_2, h = V, V.flip(-1), math.pi / 8
    x_s = step_of_ddim(schedule, step_of_ddim(schedule, X, v_1, t, middle), v_2, middle, s)
    published = 0.5 * (v_1 + (v_2 - math.sin(h) * X) / math.cos(h))
    assert torch.allclose(velocity_between(schedule, X, x_s, t, s), published, atol=1e-12)


@pytest.mark.parametrize("t, s", [(900, 500), (500, 1), (250, 0)])
def test_the_target_is_the_one_of_the_paper(t, s):
    """Salimans & Ho 2022, Algorithm 2: x~ = (z_s - (sigma_s / sigma_t) z_t) / (alpha_s - (sigma_s / sigma_t) alpha_t)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (COSINE.signal_and_noise(time, X) for time in (t, s))
    z_t, z_s = X, V
    target = (z_s - sigma_s / sigma_t * z_t) / (alpha_s - sigma_s / sigma_t * alpha_t)
    v = velocity_between(COSINE, z_t, z_s, t, s)
    assert torch.allclose(COSINE.x_0_from("v", v, z_t, t), target, atol=1e-9)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_angle_is_that_of_signal_and_noise(kind):
    schedule = make_schedule(kind)
    for t in (0, 1, 500, 1000):
        a, s = schedule.signal_and_noise(t, X)
        assert math.cos(angle(schedule, t)) == pytest.approx(a.item(), abs=1e-12)
        assert math.sin(angle(schedule, t)) == pytest.approx(s.item(), abs=1e-12)


# A teacher that is known exactly: data N(m, v) has the closed form x_0_hat, and the ODE a closed-form path


class GaussianUNet(torch.nn.Module):
    """The best answer v_hat for data of which every pixel is N(mean, variance)."""

    def __init__(self, schedule, mean, variance):
        super().__init__()
        self.schedule, self.mean, self.variance, self.calls = schedule, mean, variance, 0
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x_t, t, condition):
        self.calls += 1
        a, s = self.schedule.signal_and_noise(t, x_t)
        x_0_hat = self.mean + a * self.variance / (a**2 * self.variance + s**2) * (x_t - a * self.mean)
        return (a * x_t - x_0_hat) / s


FOUR, TWO = [1000, 884, 672, 329, 0], [1000, 672, 0]  # of the teacher's ten steps


def gaussian_teacher(**settings):
    config = replace(Config(image_size=[8, 8], mask_drop=0.0, label_drop=0.0, all_drop=0.0), **settings)
    return Model(config, Vocabulary(), COSINE, GaussianUNet(COSINE, 0.1, 0.02))


def path(t, x_T, T):
    """Where the ODE leads from x_T at T: x_t - a m shrinks as the standard deviation of x_t does."""
    (a, s), (a_T, s_T) = (COSINE.signal_and_noise(time, x_T) for time in (t, T))
    shrinks = (a**2 * 0.02 + s**2).sqrt() / (a_T**2 * 0.02 + s_T**2).sqrt()
    return a * 0.1 + shrinks * (x_T - a_T * 0.1)


def test_lessons_are_the_path_of_a_known_teacher():
    teacher = gaussian_teacher(extra_noise=0.0)  # the path is that of the equation as it is
    config = Config(few_times=FOUR, teacher="t", teacher_steps=100, precision="fp32")
    x_t, v = lessons(teacher, config, Condition(), seeds=[1, 2, 3])
    assert x_t.shape == v.shape == (4, 3, 1, 8, 8)
    assert teacher.unet.calls <= 100
    start = config.few_times[0]
    for i, (t, s) in enumerate(pairwise(config.few_times)):
        assert torch.allclose(x_t[i], path(t, x_t[0], start), atol=4e-3)
        exact = velocity_between(COSINE, path(t, x_t[0], start), path(s, x_t[0], start), t, s)
        assert torch.allclose(v[i], exact, atol=4e-2)


class Remembers(torch.nn.Module):
    """A student that learnt its lessons by heart."""

    def __init__(self, times, v):
        super().__init__()
        self.lessons, self.calls = dict(zip(times, v, strict=False)), 0
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x_t, t, condition):
        self.calls += 1
        return self.lessons[t[0].item()]


@pytest.mark.parametrize("steps", [1, 2, 4, 9])
def test_a_perfect_student_ends_where_its_teacher_does_in_one_call_a_step(steps):
    teacher = gaussian_teacher()
    config = replace(teacher.config, few_steps=steps, teacher="t", precision="fp32", extra_noise=0.0)
    config.choose_few_times()
    _, v = lessons(teacher, config, Condition(), seeds=[1, 2])
    *_, (_, goal) = draw(teacher, Condition(), [1, 2])
    student = replace(teacher, config=config, unet=Remembers(config.few_times, v))
    passed = list(draw(student, Condition(), [1, 2]))
    assert [t for t, _ in passed] == config.few_times and student.unet.calls == steps
    assert torch.allclose(passed[-1][1], goal, atol=1e-5)


def test_a_long_step_is_not_clipped():
    """From pure noise v* may lead through an x_0_hat far outside [-1, 1]."""
    config = replace(gaussian_teacher().config, few_steps=1, few_times=[1000, 0], teacher="t")
    wild = torch.full((1, 1, 8, 8), -3.0)
    student = replace(gaussian_teacher(), config=config, unet=Remembers(config.few_times, [wild]))
    *_, (_, x_0) = draw(student, Condition(), [0])
    assert x_0.min() > 2.9


def test_the_loss_is_the_distance_to_the_lessons():
    """The student is asked at the x_t where each of its steps begins, with its time and the condition of its walk."""
    teacher, config = gaussian_teacher(), Config(few_times=TWO, teacher="t", precision="fp32")
    begins, v = lessons(teacher, config, Condition(), seeds=[5, 6, 7])
    loss = distillation_loss(lambda x_t, t, condition: torch.zeros_like(x_t), teacher, config, Condition(), [5, 6, 7])
    assert torch.allclose(loss, v.square().mean(dim=(2, 3, 4)))
    asked = []
    condition = Condition(labels={"contrast": torch.tensor([1, 2])})

    def student(x_t, t, condition):
        asked.append((t.tolist(), condition.labels["contrast"].tolist()))
        assert torch.equal(x_t, begins[:, :2].flatten(0, 1))
        return x_t

    distillation_loss(student, teacher, config, condition, [5, 6])
    assert asked == [([1000, 1000, 672, 672], [1, 2, 1, 2])]


# On a small network


@pytest.fixture(scope="module")
def student_run(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "student"
    assert train.main(["--preset", "tiny", "--teacher", str(tiny_run), *STUDENT, "--out", str(folder)]) == 0
    return folder


STUDENT = ["--steps", "6", "--batch-size", "2", "--save-every", "3", "--precision", "fp32"]


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def test_each_walk_learns_what_its_condition_asks_for_and_guidance_is_in_it(tiny_run, small_phantom):
    model = load_model(tiny_run)
    for weight in model.unet.parameters():  # 40 steps leave the last layers near 0: conditions would hardly show
        weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    student = dict(few_steps=2, few_times=TWO, teacher="t", extra_noise=0.0)
    config = replace(model.config, **student, precision="fp32")
    condition = load_data(model.config, "val").condition(np.arange(2))
    _, v = lessons(model, config, condition, [1, 2])
    *_, (_, guided) = draw(model, condition, [1, 2])
    *_, (_, plain) = draw(model, condition, [1, 2], Sampling(guidance=1.0))
    student = replace(model, config=config, unet=Remembers(config.few_times, v))
    *_, (_, x_0) = draw(student, condition, [1, 2])
    assert torch.allclose(x_0, guided, atol=1e-4) and not torch.allclose(x_0, plain, atol=1e-3)


def test_parts_of_a_batch_add_up_to_it(tiny_run, small_phantom):
    states = []
    for parts in (1, 2):
        model = load_model(tiny_run)
        config = replace(model.config, few_times=TWO, teacher="t", batch_size=4, grad_accum=parts)
        data = load_data(config, "train")
        training = make_training(config, data.vocabulary, torch.device("cpu"))
        training.teacher = model
        step = training_step(training, data, 0)
        assert step.t.tolist() == [[1000] * 4, [672] * 4] and step.losses.shape == (2, 4)
        states.append((step.losses, step.grad_norm))
    assert torch.allclose(states[0][0], states[1][0], rtol=1e-4)
    assert torch.allclose(states[0][1], states[1][1], rtol=1e-4)


def test_every_walk_has_noise_of_its_own(tiny_run, small_phantom, monkeypatch):
    seen = []

    def spy(unet, teacher, config, condition, seeds):
        seen.extend(seeds)
        return distillation_loss(unet, teacher, config, condition, seeds)

    monkeypatch.setattr("ddpm.training.distillation_loss", spy)
    model = load_model(tiny_run)
    config = replace(model.config, few_times=[1000, 0], teacher="t", batch_size=4, grad_accum=2)
    data = load_data(config, "train")
    training = make_training(config, data.vocabulary, torch.device("cpu"))
    training.teacher = model
    for step in range(2):
        training_step(training, data, step)
    assert len(seen) == len(set(seen)) == 8


def test_a_student_starts_as_its_teacher_and_learns(tiny_run, small_phantom):
    """Its loss falls on walks that it has not seen."""
    teacher = load_model(tiny_run)
    config = replace(teacher.config, few_times=TWO, teacher="t", batch_size=4, steps=25, muon_lr=0.005)
    data = load_data(config, "train")
    training = make_training(config, data.vocabulary, torch.device("cpu"))
    training.unet.load_state_dict(teacher.unet.state_dict())
    training.teacher = teacher

    def loss():
        condition = data.condition(np.arange(16))
        with torch.no_grad():
            return distillation_loss(training.unet, teacher, config, condition, range(16)).mean().item()

    before = loss()
    for step in range(25):
        training_step(training, data, step)
    assert loss() < 0.7 * before


def test_a_student_is_sampled_in_its_steps_alone(student_run, capsys):
    assert sample.main(["--ckpt", str(student_run), "--mask", "--n", "1", "--out", "o"]) == 0
    out = capsys.readouterr().out
    assert "4 ddim steps" in out and "guidance 1, extra noise 0.015 " in out
    for flags, told in (
        (["--sample-steps", "5"], "was trained for 4 steps and no others"),
        (["--sampler", "dpm-solver"], "knows --sampler ddim"),
        (["--sampler", "ddim", "--eta", "0.5"], "without --eta"),
        (["--guidance", "1.5"], "distilled from a guided teacher"),
        (["--guided", "mask"], "distilled from a guided teacher"),
        (["--guidance-interval", "0", "1"], "distilled from a guided teacher"),
    ):
        assert sample.main(["--ckpt", str(student_run), "--mask", "--out", "p", *flags]) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    assert sample.main(["--ckpt", str(student_run), "--mask", "--n", "1", "--sample-steps", "4", "--out", "q"]) == 0


def test_an_older_student_that_names_neither_extra_noise_nor_times_has_a_students(student_run):
    raw = torch.load(student_run / "checkpoints" / "step_000006.pt", weights_only=True)
    assert raw["config"].pop("extra_noise") == 0.015 and raw["config"].pop("few_times") == FOUR
    torch.save(raw, "older.pt")
    config = load_model("older.pt").config
    assert config.extra_noise == 0.015 and config.few_times == FOUR
    raw["config"]["few_steps"] = 2000
    torch.save(raw, "broken.pt")
    with pytest.raises(UserError, match="its configuration is not one of this version"):
        load_model("broken.pt")


def test_a_student_keeps_its_times_whatever_the_rule_becomes(student_run, monkeypatch):
    monkeypatch.setattr("ddpm.runtime.config.middle_times", lambda *asked: [999, 500, 250, 100, 0])
    assert Sampling().complete(load_model(student_run), ()).times == tuple(FOUR)


def test_times_may_be_given_instead_of_chosen(tiny_run, student_run, small_phantom, capsys):
    """A teacher's student takes some of its times; without a teacher, the network learns at any."""
    flags = ["--preset", "tiny", *STUDENT, "--teacher"]
    assert train.main([*flags, str(student_run), "--few-times", "1000", "884", "0", "--out", "two"]) == 0
    config = load_model("two").config
    assert config.few_times == [1000, 884, 0] and config.few_steps == 2
    alone = ["--preset", "tiny", "--steps", "2", "--precision", "fp32", "--few-times", "1000", "40", "0"]
    assert train.main([*alone, "--out", "alone"]) == 0
    assert [t for t, _ in draw(load_model("alone"), load_model("alone").vocabulary.condition(), [0])] == [1000, 40, 0]
    capsys.readouterr()
    for teacher, times, told in (
        (student_run, "1000 500 0", "--few-times 500: "),
        (tiny_run, "1000 500 0", "comes by 1000 "),
    ):
        assert train.main([*flags, str(teacher), "--few-times", *times.split(), "--out", "none"]) == 2
        error = capsys.readouterr().err
        assert told in error and "give some of those" in error and error.count("\n") == 1
    for given, told in (
        ("--few-times 900 0", "they must fall from 1000 to 0"),
        ("--few-times 1000 500", "they must fall from 1000 to 0"),
        ("--few-times 1000 400 500 0", "they must fall from 1000 to 0"),
        ("--few-times 0", "they must fall from 1000 to 0"),
        ("--few-times 1000 -1", "it must be at least 0"),
        ("--few-times 1000 0 --few-steps 1", "--few-steps has no meaning with --few-times"),
        ("--few-times 1000 0 --train-times uniform", "--train-times has no meaning with --few-times"),
        ("--few-times 1000 0 --time-mean 1", "--time-mean has no meaning with --few-steps"),
        ("--few-times 1000 0 --reference r", "has no meaning with --reference"),
    ):
        assert train.main(["--preset", "tiny", *given.split(), "--out", "bad"]) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    assert not Path("bad").exists()


def test_what_asks_at_every_time_refuses_a_student(student_run, tmp_path, capsys):
    Image.fromarray(np.full((32, 32), 90, np.uint8)).save("x.png")
    flags = ["--ckpt", str(student_run), "--restore", "x.png", "--as", "denoise", "--noise", "0.1", "--out", "o"]
    assert sample.main(flags) == 2
    assert "knows 4 steps alone" in capsys.readouterr().err
    assert evaluate.main(["--ckpt", str(student_run), "--metrics", "likelihood", "--n", "40", "--out", "e"]) == 2
    assert "knows 4 steps alone" in capsys.readouterr().err


def test_a_stopped_distillation_goes_on_to_the_same_weights(student_run, tiny_run):
    assert train.main(["--resume", str(student_run / "checkpoints/step_000003.pt"), "--out", "branch"]) == 0
    ended, branch = (weights(place / "checkpoints/step_000006.pt") for place in (student_run, Path("branch")))
    assert all(torch.equal(ended[name], branch[name]) for name in ended)


def test_a_students_log_and_checkpoint_say_what_it_is(student_run, tiny_run):
    config = load_model(student_run).config
    assert config.teacher == str(tiny_run / "checkpoints/step_000040.pt")
    assert config.few_times == FOUR
    lines = [json.loads(line) for line in (student_run / "log.jsonl").read_text().splitlines()]
    assert {"loss_q2", "loss_q3", "loss_q4"} <= lines[0].keys() and "val_loss" in lines[-1]
    assert lines[0]["loss"] > 0


def test_a_student_of_a_student(student_run, capsys):
    flags = ["--preset", "tiny", "--teacher", str(student_run), *STUDENT]
    assert train.main([*flags, "--few-steps", "2", "--out", "half"]) == 0
    assert load_model("half").config.few_times == TWO
    assert train.main([*flags, "--few-steps", "5", "--out", "more"]) == 2
    assert "takes 4; give fewer" in capsys.readouterr().err


@pytest.mark.parametrize("spacing", ["uniform", "nonuniform"])
def test_few_steps_without_a_teacher_train_and_sample_at_the_same_times(spacing, small_phantom, monkeypatch, capsys):
    asked = {"ddpm.training": set(), "ddpm.runtime.run": set()}  # the times of training and of validation

    def spied(times):
        def loss(schedule, unet, objective, x_0, t, *rest):
            times.update(t.tolist())
            return denoising_loss(schedule, unet, objective, x_0, t, *rest)

        return loss

    for place, times in asked.items():
        monkeypatch.setattr(f"{place}.denoising_loss", spied(times))
    flags = ["--preset", "tiny", "--few-steps", "5", "--train-times", spacing, "--steps", "2", "--precision", "fp32"]
    assert train.main([*flags, "--out", "fast"]) == 0
    model = load_model("fast")
    assert len(model.config.few_times) == 6
    assert asked["ddpm.training"] == asked["ddpm.runtime.run"] == set(model.config.few_times[:-1])
    for sampler in ("ancestral", "ddim", "dpm-solver"):
        how = Sampling(sampler=sampler).complete(model, ())
        assert list(how.times) == model.config.few_times and how.steps == 5
    assert sample.main(["--ckpt", "fast", "--mask", "--n", "1", "--out", "o"]) == 0
    assert sample.main(["--ckpt", "fast", "--mask", "--sample-steps", "10", "--out", "p"]) == 2
    assert "trained for 5 steps and no others" in capsys.readouterr().err


def test_a_student_cannot_do_without_what_its_teacher_never_did_without(tiny_run, capsys):
    raw = torch.load(tiny_run / "checkpoints/step_000040.pt", weights_only=True)
    raw["config"].update(mask_drop=0.0, label_drop=0.1, all_drop=0.0)
    torch.save(raw, "bound.pt")
    flags = ["--preset", "tiny", "--steps", "1", "--teacher", "bound.pt", "--precision", "fp32"]
    assert train.main([*flags, "--out", "bad"]) == 2
    assert "never learnt to do without --mask; give --mask-drop 0 --all-drop 0 here too" in capsys.readouterr().err
    assert train.main([*flags, "--mask-drop", "0", "--all-drop", "0", "--out", "good"]) == 0


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--teacher-steps", "2"], "no meaning without --teacher"),
        (["--train-times", "nonuniform"], "says how --few-steps lie"),
        (["--few-steps", "1", "--train-times", "nonuniform"], "2 to 250 such steps, not 1"),
        (["--few-steps", "1000", "--train-times", "nonuniform"], "2 to 250 such steps"),
        (["--few-steps", "20", "--timesteps", "10"], "1 to 10 steps, not 20"),
        (["--few-steps", "10", "--time-mean", "0"], "--time-mean has no meaning with --few-steps"),
        (["--few-steps", "-1"], "at least 0"),
        (["--teacher", "RUN", "--few-steps", "11"], "shortened to 1 to 10 steps, not 11"),
        (["--teacher", "RUN", "--teacher-steps", "60", "--few-steps", "60"], "--few-steps 60: a walk of 5"),
        (
            ["--teacher", "RUN", "--timesteps", "50", "--teacher-steps", "60"],
            "--teacher-steps 60 is more than --timesteps 50",
        ),
        (["--teacher", "RUN", "--image-size", "16"], "draws images of 32x32, not 16x16"),
        (["--teacher", "RUN", "--time-std", "1"], "--time-std has no meaning with"),
        (["--teacher", "RUN", "--train-times", "nonuniform"], "--train-times has no meaning with --teacher"),
        (["--teacher", "RUN", "--few-steps", "0"], "give the steps of the student"),
        (["--teacher", "RUN", "--objective", "eps"], "a student learns v"),
        (["--teacher", "RUN", "--init", "pretrained"], "--init has no meaning with --teacher"),
        (["--teacher", "RUN", "--loss-weight", "min-snr"], "--loss-weight has no meaning with --teacher"),
        (["--teacher", "RUN", "--foreground-weight", "2"], "--foreground-weight has no meaning with --teacher"),
        (["--teacher", "RUN", "--labels", "tissue"], "was trained with"),
        (["--teacher", "RUN", "--channels", "8"], "was trained with --channels 16"),
        (["--teacher", "RUN", "--schedule", "linear"], "was trained with --schedule cosine"),
        (["--teacher", "nothing.pt"], "nothing.pt"),
    ],
)
def test_flags_that_do_not_go_together(flags, told, tiny_run, capsys):
    flags = [str(tiny_run) if flag == "RUN" else flag for flag in flags]
    assert train.main(["--preset", "tiny", "--precision", "fp32", *flags, "--out", "bad"]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_resumed_distillation_needs_its_teacher(student_run, tiny_run, capsys):
    raw = torch.load(student_run / "checkpoints/step_000003.pt", weights_only=True)
    raw["config"]["teacher"] = "gone.pt"
    torch.save(raw, "lost.pt")
    assert train.main(["--resume", "lost.pt", "--out", "branch"]) == 2
    assert "gone.pt" in capsys.readouterr().err
    where = ["--resume", "lost.pt", "--teacher", str(tiny_run), "--out", "branch"]
    assert train.main([*where, "--steps", "4"]) == 0  # it lies elsewhere now
    assert load_model("branch").config.teacher == str(tiny_run / "checkpoints" / "step_000040.pt")
    assert train.main(["--resume", str(tiny_run), "--teacher", str(tiny_run), "--out", "no"]) == 2
    assert "--teacher" in (error := capsys.readouterr().err) and "which was trained with none" in error


def test_a_teacher_that_trains_on_does_not_change_the_student(tiny_run, small_phantom):
    """The folder of a run is resolved once: what is resumed has the teacher it began with."""
    folder = Path("teachers")
    (folder / "checkpoints").mkdir(parents=True)
    first = folder / "checkpoints/step_000020.pt"
    first.write_bytes((tiny_run / "checkpoints/step_000020.pt").read_bytes())
    assert train.main(["--preset", "tiny", "--teacher", str(folder), *STUDENT, "--out", "s"]) == 0
    assert load_model("s").config.teacher == str(first)


def test_a_student_of_a_student_must_know_its_walk(student_run, capsys):
    flags = ["--preset", "tiny", "--teacher", str(student_run), *STUDENT, "--few-steps", "2", "--out", "o"]
    assert train.main([*flags, "--teacher-steps", "20"]) == 2
    assert "give --teacher-steps 10" in capsys.readouterr().err
    fast = ["--preset", "tiny", "--few-steps", "5", "--steps", "1", "--precision", "fp32", "--out", "fast"]
    assert train.main(fast) == 0
    assert train.main(["--preset", "tiny", "--teacher", "fast", "--few-steps", "2", *STUDENT, "--out", "o"]) == 2
    assert "knows 5 times alone; name one that knows all" in capsys.readouterr().err


def test_a_preset_with_resume_does_not_contradict_a_students_defaults(student_run):
    assert train.main(["--preset", "tiny", "--resume", str(student_run), "--out", "more", "--steps", "7"]) == 0


def test_the_plan_counts_what_a_validation_of_a_student_costs():
    """In forward passes: 32 walks of 20, their 4 lessons, and 24 images in 4 calls, against 8 walks of 20 and 4 lessons."""
    config = Config(teacher="t", few_steps=4, batch_size=8)
    assert share_of_validation(config) == pytest.approx((32 * 24 + 24 * 4) / (8 * 32))
    assert share_of_validation(Config()) == pytest.approx((256 + 24 * 20) / 96)
    assert share_of_validation(Config(few_steps=5)) == pytest.approx((256 + 24 * 10) / 96)


def test_the_averaged_weights_are_validated_on_the_same_walks_each_time(tiny_run, small_phantom, monkeypatch):
    asked = []

    def spy(unet, teacher, config, condition, seeds):
        asked.append((unet.training, seeds))  # the average is in evaluation mode, the network in training
        return distillation_loss(unet, teacher, config, condition, seeds)

    monkeypatch.setattr("ddpm.runtime.run.distillation_loss", spy)
    flags = ["--preset", "tiny", "--teacher", str(tiny_run), *STUDENT, "--sample-every", "3", "--out", "o"]
    assert train.main(flags) == 0
    once = asked[: len(asked) // 2]
    assert asked == 2 * once and not any(training for training, _ in asked)
    assert [seed for _, seeds in once for seed in seeds] == list(range(24))  # walks, of 24 validation images


def test_images_a_second_are_walks_and_not_their_lessons(monkeypatch):
    run, written = Run.__new__(Run), []
    run.config, run.window, run.window_began, run.write = Config(log_every=1), [], 0.0, written.append
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    run.training = SimpleNamespace(unet=torch.nn.Linear(1, 1), optimizers=[optimizer], device=torch.device("cpu"))
    monkeypatch.setattr("ddpm.runtime.run.time.perf_counter", lambda: 2.0)
    bar = SimpleNamespace(update=lambda: None, set_postfix_str=lambda *text, **how: None)
    run.record(1, Step(torch.full((4, 8), 500), torch.ones(4, 8), torch.ones(())), bar, last=False)
    assert written[0]["images_per_second"] == 4 and written[0]["loss"] == 1
