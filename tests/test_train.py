"""Algorithm 1 as a program: it learns, it can be stopped at any step and go on, and it refuses what it cannot do."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import ddpm.runtime.run
import sample
import train
from ddpm import UserError, training
from ddpm.conditions import Condition, Vocabulary
from ddpm.data import Slices, phantom
from ddpm.data.images import colour_labels
from ddpm.data.sources import load_data
from ddpm.forward import denoising_loss
from ddpm.model import Sampling, draw, load_model
from ddpm.reverse import STEPS
from ddpm.runtime import checkpoint, progress, run, start
from ddpm.runtime.command_line import one_line_errors
from ddpm.runtime.config import CHANGEABLE, PRESETS, Config, make_config
from ddpm.runtime.files import make_folder
from ddpm.runtime.run import Run
from ddpm.schedule import OBJECTIVES, make_schedule
from ddpm.training import make_training, training_step
from ddpm.unet import UNet
from tools.soak import same

pytestmark = pytest.mark.usefixtures("small_phantom")


def log_of(folder, key="loss"):
    return [line for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if key in line]


# What a run leaves behind


def test_a_run_leaves_its_files(tiny_run):
    assert sorted(path.name for path in (tiny_run / "checkpoints").iterdir()) == ["step_000020.pt", "step_000040.pt"]
    assert sorted(path.name for path in (tiny_run / "samples").iterdir()) == ["step_000020.png", "step_000040.png"]
    config = json.loads((tiny_run / "config.json").read_text())
    assert config["steps"] == 40 and config["precision"] == "fp32" and config["image_size"] == [32, 32]
    lines = log_of(tiny_run)
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    for key in (
        "loss",
        "loss_q1",
        "loss_q2",
        "loss_q3",
        "loss_q4",
        "grad_norm",
        "lr",
        "images_per_second",
        "memory_gb",
    ):
        assert all(line[key] > 0 for line in lines), key
    assert [line["step"] for line in log_of(tiny_run, "val_loss")] == [20, 40]
    assert lines[-1]["loss"] < lines[0]["loss"]
    grid = np.asarray(Image.open(tiny_run / "samples" / "step_000040.png"))
    assert grid.shape == (6 * 130, 6 * 130, 3)  # mask | real | 4 samples, in 6 rows of 32 pixels enlarged 4 times


def test_checkpoint_has_all_that_sampling_needs(tiny_run):
    loaded = checkpoint.load(tiny_run / "checkpoints" / "step_000040.pt")
    assert loaded.keys() == checkpoint.KEYS
    assert loaded["conditions"].classes == ("background", "lesion")
    assert loaded["conditions"].labels["contrast"] == ("T1", "T2", "FLAIR")
    assert loaded["step"] == 40 and loaded["config"].channels == 16
    unet = load_model(tiny_run).unet
    assert same(dict(unet.state_dict()), dict(loaded["ema"])) and not same(dict(loaded["ema"]), dict(loaded["model"]))


def test_averaged_weights_are_parameters_only(tiny_run):
    loaded = checkpoint.load(tiny_run / "checkpoints" / "step_000040.pt")
    assert set(loaded["ema"]) == {name for name, _ in load_model(tiny_run, "raw").unet.named_parameters()}


# It learns


def test_one_batch_can_be_learnt_by_heart():
    """Fixed images, times and noise: a network that cannot overfit eight images has a broken gradient path."""
    torch.manual_seed(0)
    schedule, vocabulary = make_schedule("cosine"), Vocabulary(("background", "lesion"))
    unet = UNet(vocabulary=vocabulary, channels=32, mults=(1, 2), blocks=1, attention=(1,))
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3)
    x_0, eps = torch.rand(8, 1, 16, 16) * 2 - 1, torch.randn(8, 1, 16, 16)
    t, mask = torch.linspace(50, 950, 8).long(), torch.zeros(8, 2, 16, 16)
    for step in range(200):
        loss = denoising_loss(schedule, unet, "v", x_0, t, eps, Condition(mask)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            first = loss.item()
    assert loss.item() < 0.02 * first


def test_the_mask_changes_what_a_trained_network_says(tiny_run):
    unet = load_model(tiny_run).unet
    mask = torch.zeros(1, 2, 32, 32)
    mask[:, 0] = 1
    lesion = mask.clone()
    lesion[:, :, 12:18, 12:18] = 1 - lesion[:, :, 12:18, 12:18]
    x_t, t = torch.randn(1, 1, 32, 32), torch.tensor([600])
    answers = [unet(x_t, t, Condition(m)) for m in (None, mask, lesion)]
    assert (answers[0] - answers[1]).abs().max() > 1e-3 and (answers[1] - answers[2]).abs().max() > 1e-3


# Nothing is lost


def go_on_from(folder, step, there):
    """A run's folder as it was when it had saved `step`."""
    (there / "checkpoints").mkdir(parents=True)
    name = f"checkpoints/step_{step:06d}.pt"
    (there / name).write_bytes((folder / name).read_bytes())
    if (folder / "log.jsonl").exists():
        (there / "log.jsonl").write_text((folder / "log.jsonl").read_text() + '{"step": 4, "lo')  # killed in the middle
    return there


def last_checkpoint(folder):
    return checkpoint.load(max((folder / "checkpoints").iterdir()))


@pytest.mark.parametrize("precision, channels", [("fp32", "64"), ("bf16", "16")])  # some processors crawl in bf16
def test_resume_is_the_run_that_never_stopped(precision, channels, tmp_path, monkeypatch):
    """With the settings of `make train` (six steps of them), and dropout, which also draws random numbers."""
    monkeypatch.setitem(STEPS, "dpm-solver", 1)
    flags = ["--steps", "6", "--save-every", "3", "--log-every", "1", "--precision", precision, "--dropout", "0.1",
             "--batch-size", "8", "--channels", channels]  # fmt: skip
    whole = tmp_path / "whole"
    assert train.main([*flags, "--out", str(whole)]) == 0
    halved = go_on_from(whole, 3, tmp_path / "halved")
    assert train.main(["--resume", "--out", str(halved)]) == 0
    a, b = last_checkpoint(whole), last_checkpoint(halved)
    assert a["step"] == b["step"] == 6
    for part in ("model", "ema", "opt"):
        assert same(a[part], b[part]), part
    assert [line["step"] for line in log_of(halved)] == [1, 2, 3, 4, 5, 6]
    losses = [[line["loss"] for line in log_of(folder)] for folder in (whole, halved)]
    assert losses[0] == losses[1]


def test_resume_takes_only_the_steps_that_are_left_and_uses_what_it_loads(tiny_run, tmp_path, monkeypatch):
    steps = []
    record = Run.record
    monkeypatch.setattr(Run, "record", lambda self, step, *rest: (steps.append(step), record(self, step, *rest)))
    again = go_on_from(tiny_run, 20, tmp_path / "again")
    changed = go_on_from(tiny_run, 20, tmp_path / "changed")
    path = changed / "checkpoints" / "step_000020.pt"
    raw = torch.load(path, weights_only=True)
    raw["model"]["conv_in.weight"][0, 0, 0, 0] += 0.5
    torch.save(raw, path)
    for folder in (again, changed):
        steps.clear()
        assert train.main(["--resume", str(folder)]) == 0
        assert steps == list(range(21, 41))
    reference = last_checkpoint(tiny_run)
    assert same(last_checkpoint(again)["model"], reference["model"])
    assert not same(last_checkpoint(changed)["model"], reference["model"])


def test_how_a_run_is_drawn_from_may_change_where_it_goes_on(tiny_run, tmp_path):
    flags = ["--steps", "41", "--guidance", "1.5", "--extra-noise", "0.02", "--out", str(tmp_path / "run")]
    assert train.main(["--resume", str(tiny_run), *flags]) == 0
    config = load_model(tmp_path / "run").config
    assert (config.steps, config.guidance, config.extra_noise) == (41, 1.5, 0.02)


def test_more_steps_go_on_training(tiny_run, tmp_path):
    path, folder = tiny_run / "checkpoints" / "step_000040.pt", tmp_path / "longer"
    assert train.main(["--resume", str(path), "--steps", "44", "--out", str(folder)]) == 0  # leaves the old run alone
    assert last_checkpoint(folder)["step"] == 44
    # On the line that leads to the new end, where it would have been at 0.
    config = Config(**{**PRESETS["tiny"], "steps": 44})
    assert log_of(folder)[-1]["lr"] == pytest.approx(config.lr * training.rate(config, 43), rel=1e-3)


def test_resume_with_nothing_left_says_so(tiny_run, capsys):
    assert train.main(["--resume", str(tiny_run)]) == 0
    assert "nothing left" in capsys.readouterr().out


def test_resume_refuses_contradictions_and_accepts_repetition(tiny_run, tmp_path, capsys):
    folder = go_on_from(tiny_run, 20, tmp_path / "run")
    for flags in (
        ["--lr", "1e-3"],
        ["--channels", "32"],
        ["--preset", "ho"],
        ["--minutes", "3"],
        ["--objective", "eps"],
        ["--init", "pretrained"],
    ):
        assert train.main(["--resume", str(folder), *flags]) == 2
        error = capsys.readouterr().err
        assert "contradicts" in error and error.count("\n") == 1
    assert "which was trained with none; leave it out" in error
    assert train.main(["--resume", str(folder), "--grad-accum", "1000"]) == 2
    assert "--grad-accum 1000 is more parts than" in capsys.readouterr().err
    assert len(list((folder / "checkpoints").iterdir())) == 1
    assert train.main(["--preset", "tiny", "--out", str(folder), "--precision", "auto", "--resume"]) == 0


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_ends_the_run(name, tmp_path, monkeypatch, capsys):
    record = Run.record

    def interrupt_at_7(self, step, *rest):
        if step == 7:
            os.kill(os.getpid(), getattr(signal, name))
        record(self, step, *rest)

    monkeypatch.setattr(Run, "record", interrupt_at_7)
    before = signal.getsignal(signal.SIGINT)
    assert train.main(["--preset", "tiny", "--precision", "fp32", "--out", str(tmp_path / "run")]) == 0
    assert signal.getsignal(signal.SIGINT) is before
    assert f"stopped by {name}" in capsys.readouterr().out
    assert last_checkpoint(tmp_path / "run")["step"] == 8  # the step at hand when the signal was seen


def test_a_loss_that_is_not_finite_stops_and_is_never_saved(tmp_path, capsys):
    flags = ["--preset", "tiny", "--precision", "fp32", "--lr", "1e30", "--warmup", "0", "--out", str(tmp_path / "run")]
    assert train.main(flags) == 2
    error = capsys.readouterr().err
    assert "no longer finite" in error and error.count("\n") == 1
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_full_disk_leaves_older_checkpoints_whole(tiny_run, tmp_path, monkeypatch, capsys):
    folder = go_on_from(tiny_run, 20, tmp_path / "run")
    before = (folder / "checkpoints" / "step_000020.pt").read_bytes()

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    assert train.main(["--resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "No space left" in error and "older checkpoints are whole" in error and error.count("\n") == 1
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_000020.pt"]
    assert (folder / "checkpoints" / "step_000020.pt").read_bytes() == before


# Gradients, averages, rates


def gradients(loaded):
    """What a checkpoint's optimisers keep of the gradients. From nothing, one step leaves 0.1 of them: Adam's first moment
    is 0.9 of the old one plus 0.1 of the gradient, Muon's momentum 0.95 and 0.05, so it counts twice."""
    adamw, muon = ([*optimizer["state"].values()] for optimizer in loaded["opt"])
    return [state["exp_avg"] for state in adamw] + [2 * state["momentum"] for state in muon]


def test_accumulated_gradients_are_the_gradient_of_the_batch(tiny_run, tmp_path):
    """8 images in parts of 3, 3 and 2. The optimisers' steps would hide an error of scale, so compare what they keep of
    the gradients; and wake the layers that start at zero."""
    moments = []
    for parts in (1, 3):
        folder = go_on_from(tiny_run, 20, tmp_path / f"parts{parts}")
        path = folder / "checkpoints" / "step_000020.pt"
        raw = torch.load(path, weights_only=True)
        raw["config"]["clip"] = 1e9
        generator = torch.Generator().manual_seed(0)
        for weight in raw["model"].values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
        torch.save(raw, path)
        assert train.main(["--resume", str(folder), "--steps", "21", "--grad-accum", str(parts)]) == 0
        moments.append(gradients(last_checkpoint(folder)))
    largest = max(moment.abs().max() for moment in moments[0])
    assert largest > 1e-2
    for one, three in zip(*moments, strict=True):
        assert torch.allclose(one, three, atol=1e-6 * largest)


def test_ema_closes_in_on_a_constant_as_it_should():
    """ema - theta = decay^n (ema_0 - theta)."""
    unet, ema = (UNet(channels=8, mults=(1,), attention=()) for _ in range(2))
    start = [(e - p).detach().clone() for e, p in zip(ema.parameters(), unet.parameters(), strict=True)]
    for _ in range(5):
        training.update_ema(ema, unet, 0.9)
    for s, e, p in zip(start, ema.parameters(), unet.parameters(), strict=True):
        assert torch.allclose(e - p, 0.9**5 * s, atol=1e-6)


def test_learning_rate_rises_then_falls_to_nothing():
    config = Config(steps=100, warmup=10)
    rates = [training.rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[-1] == pytest.approx(0.01)
    assert max(rates) == rates[9] == pytest.approx(0.91)
    assert all(b < a for a, b in zip(rates[9:], rates[10:], strict=False))
    assert rates == [training.rate(Config(steps=100, warmup=50), step) for step in range(100)]  # a tenth at most


def moments_after_one_step(tiny_run, folder, **changes):
    """0.1 of the gradient of a step with a changed configuration."""
    go_on_from(tiny_run, 20, folder)
    path = folder / "checkpoints" / "step_000020.pt"
    raw = torch.load(path, weights_only=True)
    raw["config"].update(changes)
    adamw, muon = raw["opt"]
    for state in adamw["state"].values():
        state["exp_avg"].zero_()
    for state in muon["state"].values():
        state["momentum"].zero_()
    torch.save(raw, path)
    assert train.main(["--resume", str(folder), "--steps", "21"]) == 0
    return torch.cat([part.flatten() for part in gradients(last_checkpoint(folder))])


def test_gradients_are_clipped_to_their_norm(tiny_run, tmp_path):
    free = moments_after_one_step(tiny_run, tmp_path / "free", clip=1e9)
    clipped = moments_after_one_step(tiny_run, tmp_path / "clipped", clip=0.01)
    assert clipped.norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert torch.allclose(clipped / clipped.norm(), free / free.norm(), atol=1e-4)


def test_min_snr_changes_the_gradient(tiny_run, tmp_path):
    plain = moments_after_one_step(tiny_run, tmp_path / "plain", clip=1e9)
    weighted = moments_after_one_step(tiny_run, tmp_path / "weighted", clip=1e9, loss_weight="min-snr")
    assert weighted.norm() < 0.95 * plain.norm()  # every weight is below 1


def test_the_weight_of_the_foreground_changes_the_gradient(tiny_run, tmp_path):
    plain = moments_after_one_step(tiny_run, tmp_path / "plain", clip=1e9, foreground_weight=1.0)
    weighted = moments_after_one_step(tiny_run, tmp_path / "weighted", clip=1e9, foreground_weight=50.0)
    assert (weighted - plain).norm() > 0.1 * plain.norm()


def test_what_is_shown_is_worked_on_in_parts_as_in_training(tiny_run, small_phantom):
    """Or a run that fits into memory in parts would end at its first grid."""
    model = load_model(tiny_run)
    held_out = load_data(model.config, "val")
    parts = replace(model, config=replace(model.config, batch_size=16, grad_accum=3))
    assert run.at_once(parts.config) == 6
    grids = [run.sample_grid(one, held_out, Sampling(steps=2)).astype(int) for one in (model, parts)]
    assert np.abs(grids[0] - grids[1]).max() <= 1


def test_a_row_shows_a_mask_its_image_and_samples_of_that_mask(monkeypatch):
    """A sampler that draws the mask itself, in parts that end within a row."""
    masks = np.eye(8, dtype=np.uint8)[:, None].repeat(8, axis=1)  # image i: a line in column i
    data = replace(numbered(8), masks=masks, images=np.arange(8, dtype=np.uint8).repeat(64).reshape(8, 1, 8, 8))

    def drawn(model, condition, seeds, how):
        assert len(seeds) == len(condition.mask)
        return iter([(0, 2 * condition.mask[:, 1:] - 1)])

    monkeypatch.setattr(run, "draw", drawn)
    monkeypatch.setattr(run, "grid", lambda cells: cells)
    cells = run.sample_grid(SimpleNamespace(config=Config(batch_size=6)), data, Sampling())
    rows = cells[:, 1, 0, 0, 0]  # the grey level of an image is its number
    assert cells.shape == (run.GRID_ROWS, 2 + run.GRID_SAMPLES, 3, 8, 8) and len(set(rows.tolist())) == run.GRID_ROWS
    assert np.array_equal(cells[:, 0], colour_labels(masks[rows], 2))
    assert (cells[:, 2:] == 255 * masks[rows][:, None, None]).all()


def test_a_folder_is_validated_on_slices_of_all_its_subjects(tmp_path, monkeypatch):
    """They lie subject by subject, so the first of them are one subject's."""
    monkeypatch.setattr(run, "VALIDATION_IMAGES", 12)
    subjects, asked = np.repeat(np.arange(10), 6), []
    slices = Slices(np.zeros((60, 1, 32, 32), np.uint8), None, {}, Vocabulary(), subjects, index={"subjects": subjects})
    monkeypatch.setattr(Slices, "batch", lambda self, rows, of=Slices.batch: asked.append(rows) or of(self, rows))
    run.Run(begun(slices, out=str(tmp_path / "r")), slices, 0).validate(1, SimpleNamespace(write=print))
    seen = np.concatenate(asked)
    assert len(seen) == 12 and len(np.unique(subjects[seen])) > 5


def test_the_averaged_weights_are_validated_and_shown_with_the_same_times_and_noise_each_time(tmp_path, monkeypatch):
    """Else one checkpoint would be kept as the best by chance."""
    asked, shown, data = [], [], numbered(12)

    def spy(schedule, unet, objective, x_0, t, eps, condition):
        asked.append((unet, t.tolist(), eps))
        return denoising_loss(schedule, unet, objective, x_0, t, eps, condition)

    monkeypatch.setattr(run, "denoising_loss", spy)
    grid = np.zeros((4, 4, 3), np.uint8)
    monkeypatch.setattr(run, "sample_grid", lambda model, *rest: shown.append(model.unet) or grid)
    made = begun(data, out=str(tmp_path / "r"))
    there = run.Run(made, data, 0)
    for step in (1, 2):
        there.validate(step, SimpleNamespace(write=print))
    assert len(shown) == 2 and all(unet is made.ema for unet in (*shown, *(unet for unet, _, _ in asked)))
    once, again = asked[:2], asked[2:]  # a batch of 8, and one of 4
    for (_, t, eps), (_, t_again, eps_again) in zip(once, again, strict=True):
        assert t == t_again and torch.equal(eps, eps_again)
    (_, t, eps), (_, last, other) = once
    assert (t[0], last[-1]) == (1, 1000) and not torch.equal(eps[:4], other)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_min_snr_weighs_by_the_objective_and_the_gamma_asked_for(objective, tiny_run, tmp_path, monkeypatch):
    asked = dict(objective=objective, gamma=0.7, clip=1e9)
    ours = moments_after_one_step(tiny_run, tmp_path / "ours", loss_weight="min-snr", **asked)

    def weight(schedule, kind, objective_given, t, gamma_given):
        a = schedule.alpha_bar[t].flatten()
        snr = a / (1 - a)
        return snr.clamp(max=0.7) / {"eps": snr, "x_0": 1, "v": snr + 1}[objective]

    monkeypatch.setattr(training, "loss_weight", weight)
    theirs = moments_after_one_step(tiny_run, tmp_path / "theirs", **asked)
    assert theirs.norm() > 1e-3 and torch.allclose(ours, theirs, atol=1e-5 * theirs.abs().max())


def test_dropout_drops_and_a_resumed_run_drops_the_same(tmp_path):
    flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "4", "--save-every", "2", "--sample-every", "9"]
    for dropout in ("0", "0.3"):
        assert train.main([*flags, "--dropout", dropout, "--out", dropout]) == 0
    plain, dropped = (last_checkpoint(tmp_path / dropout) for dropout in ("0", "0.3"))
    assert not same(plain["model"], dropped["model"])
    halved = go_on_from(tmp_path / "0.3", 2, tmp_path / "halved")
    assert train.main(["--resume", str(halved)]) == 0
    assert same(last_checkpoint(halved)["model"], dropped["model"])


@pytest.mark.parametrize("step, decay", [(0, 0.1), (8, 0.5), (500, 0.9)])
def test_averaged_weights_follow_closely_at_first_and_then_as_they_are_told(step, decay):
    """A decay of 0.9 from the first step on would keep the untrained weights for as long as it keeps any."""
    data = numbered(8)
    made = begun(data, steps=1000, ema_decay=0.9)
    before = copy.deepcopy(made.ema)
    training_step(made, data, step)
    for e, b, p in zip(*(unet.parameters() for unet in (made.ema, before, made.unet)), strict=True):
        assert torch.allclose(e, decay * b + (1 - decay) * p, atol=1e-7)
    assert not same(dict(before.state_dict()), dict(made.unet.state_dict()))


def test_one_contrast_alone(tmp_path, capsys):
    flags = [
        "--preset",
        "tiny",
        "--contrast",
        "T2",
        "--steps",
        "2",
        "--precision",
        "fp32",
        "--out",
        str(tmp_path / "run"),
    ]
    assert train.main(flags) == 0
    assert int(capsys.readouterr().out.split(": ")[1].split()[0]) == 96  # each subject, in that contrast
    assert last_checkpoint(tmp_path / "run")["conditions"].labels["contrast"] == ("T2",)


def test_the_phantom_has_as_many_training_images_as_are_asked_for(tmp_path, capsys):
    flags = ["--preset", "tiny", "--steps", "1", "--precision", "fp32", "--phantom-images", "130", "--out", "run"]
    assert train.main(flags) == 0  # 96 unless asked otherwise here
    assert "130 training and 24 validation" in capsys.readouterr().out


def test_options_of_the_diffusion_train(tmp_path):
    flags = [
        "--preset",
        "tiny",
        "--steps",
        "2",
        "--precision",
        "fp32",
        "--zero-terminal-snr",
        "--loss-weight",
        "min-snr",
    ]
    for schedule, objective in (("linear", "v"), ("sigmoid", "x_0")):
        out = tmp_path / schedule
        assert train.main([*flags, "--schedule", schedule, "--objective", objective, "--out", str(out)]) == 0
    assert train.main([*flags[:6], "--objective", "eps", "--schedule", "linear", "--out", str(tmp_path / "eps")]) == 0


# Data order and dropped conditions


def numbered(n):
    """A data set in which image i has grey level i everywhere."""
    images = np.repeat(np.arange(n, dtype=np.uint8), 16).reshape(n, 1, 4, 4)
    vocabulary = Vocabulary(("background", "lesion"), {"contrast": ("a", "b", "c")})
    return Slices(images, np.ones((n, 4, 4), np.uint8), {"contrast": np.arange(n) % 3 + 1}, vocabulary)


def begun(data, **changes):
    """A training of the preset `tiny` before its first step, in float32."""
    config = Config(**PRESETS["tiny"] | {"precision": "fp32"} | changes)
    return make_training(config, data.vocabulary, torch.device("cpu"))


def test_every_epoch_has_every_image_once_in_another_order():
    data, config = numbered(10), Config(batch_size=4)
    seen = torch.cat([training.draw_batch(data, config, step)[0][:, 0, 0, 0] for step in range(10)])
    seen = ((seen + 1) * 127.5).round().int().tolist()
    epochs = [seen[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_conditions_are_dropped_for_each_sample_by_itself():
    data, config = numbered(250), Config(batch_size=250, mask_drop=0.1, label_drop=0.2, all_drop=0.1)
    batches = [training.draw_batch(data, config, step)[1] for step in range(40)]
    mask_given = torch.cat([condition.mask.sum(dim=1).amax(dim=(1, 2)) for condition in batches])
    contrast_given = torch.cat([condition.labels["contrast"] > 0 for condition in batches])
    assert set(mask_given.tolist()) == {0.0, 1.0}
    assert abs(1 - mask_given.mean() - 0.19) < 0.016  # 0.1 + 0.9 x 0.1; four standard deviations of 10,000 draws
    assert abs(1 - contrast_given.float().mean() - 0.28) < 0.018
    both = ((mask_given == 0) & ~contrast_given).float().mean()
    assert abs(both - 0.118) < 0.013  # 0.1 + 0.9 x 0.1 x 0.2
    per_batch = [(condition.mask.sum(dim=1).amax(dim=(1, 2)) == 0).float().mean() for condition in batches]
    assert 0 < min(per_batch) < max(per_batch) < 1


def test_each_drop_withholds_its_own_kind():
    data = numbered(4)
    data = replace(data, source=np.full_like(data.images, 255), words=np.ones((4, 1), np.int64))
    kinds = {"mask_drop": "mask", "label_drop": "contrast", "source_drop": "source", "words_drop": "words"}
    for drop in (*kinds, "all_drop"):
        config = Config(batch_size=4, **{name: float(name == drop) for name in (*kinds, "all_drop")})
        _, condition = training.draw_batch(data, config, 0)
        gone = {kind for kind, x in condition.parts.items() if not x.any()}
        assert gone == ({kinds[drop]} if drop in kinds else set(kinds.values()))


def test_another_seed_has_other_weights_another_order_and_other_times():
    data = numbered(64)
    one, other = begun(data), begun(data, seed=1)
    assert not torch.equal(one.unet.conv_in.weight, other.unet.conv_in.weight)
    images = [training.draw_batch(data, made.config, 0)[0] for made in (one, other)]
    assert not torch.equal(*images)
    assert not torch.equal(*(training_step(made, data, 0).t for made in (one, other)))


def test_times_are_distributed_as_the_configuration_says():
    """sigmoid(-3) T is 47. At other times the network would learn as well, and draw worse."""
    data = numbered(8)
    t = training_step(begun(data, time_mean=-3.0, time_std=0.1), data, 0).t
    assert 30 < t.min() < 47 < t.max() < 70


# The plan


def test_bf16_that_is_slow_is_given_up_after_two_images(tmp_path, monkeypatch, capsys):
    sizes, now = [], [0.0]

    def slow_in_bf16(schedule, unet, objective, x_0, *rest):
        if torch.is_autocast_enabled("cpu"):
            sizes.append(len(x_0))
        now[0] += 10.0 if torch.is_autocast_enabled("cpu") else 0.1
        return denoising_loss(schedule, unet, objective, x_0, *rest)

    monkeypatch.setattr(training, "denoising_loss", slow_in_bf16)
    monkeypatch.setattr(train.time, "perf_counter", lambda: now[0])  # a clock that only the network moves
    assert train.main(["--preset", "tiny", "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    assert "precision fp32" in capsys.readouterr().out
    assert sizes == [2]  # 10 s for the first: no second try


def test_minutes_fix_the_number_of_steps(tmp_path, capsys):
    assert (
        train.main(["--preset", "tiny", "--minutes", "0.06", "--precision", "fp32", "--out", str(tmp_path / "run")])
        == 0
    )
    out = capsys.readouterr().out
    steps = json.loads((tmp_path / "run" / "config.json").read_text())["steps"]
    assert f"plan: {steps} steps" in out and f"done: step {steps}" in out
    assert last_checkpoint(tmp_path / "run")["config"].steps == steps


@pytest.mark.parametrize("one, chosen", [(0.8, 1), (0.95, 2)])
def test_one_thread_where_it_is_clearly_faster_then_and_after_a_resume(one, chosen, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(start, "seconds", lambda *rest: {1: one, 2: 1.0}[torch.get_num_threads()])
    monkeypatch.setattr(Run, "validate", lambda *rest: None)
    try:
        torch.set_num_threads(2)
        flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "2", "--out", "run"]
        assert train.main(flags) == 0
        assert torch.get_num_threads() == chosen
        assert ("is another program busy here?" in capsys.readouterr().out) == (chosen == 1)
        assert json.loads((tmp_path / "run" / "config.json").read_text())["threads"] == chosen
        torch.set_num_threads(3 - chosen)
        assert train.main(["--resume", "run", "--steps", "3"]) == 0
        assert torch.get_num_threads() == chosen
        assert train.main([*flags[:-1], "asked", "--threads", str(3 - chosen)]) == 0  # then nothing is timed
        assert torch.get_num_threads() == 3 - chosen
    finally:
        torch.set_num_threads(1)


# What is told


def test_where_there_is_no_terminal_lines_come_now_and_then(tmp_path, monkeypatch, capsys):
    flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "3", "--log-every", "1", "--out"]
    assert train.main([*flags, "quick"]) == 0
    assert capsys.readouterr().err == ""  # it was over before the first was due
    monkeypatch.setattr(progress, "EVERY", 0.0)
    assert train.main([*flags, "run"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert "\r" not in "".join(lines) and len(lines) >= 3
    assert all(" of 3, " in line and " left" in line for line in lines)
    assert lines[-1].startswith("3 of 3, ") and "loss " in lines[-1]
    assert list(progress.progress("ab", "decoding val")) == ["a", "b"]
    assert capsys.readouterr().err.splitlines()[-1].startswith("decoding val: 2 of 2, ")


def test_a_compiled_network_learns_the_same(monkeypatch, tmp_path):
    """PyTorch traces the whole network, in one piece; what it would build from that takes minutes here, so it is not built."""
    compiled, original = [], torch.nn.Module.compile

    def traced(self):
        compiled.append(self)
        original(self, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "2", "--out"]
    assert train.main([*flags, "as-it-is"]) == train.main([*flags, "compiled", "--compile"]) == 0
    assert len(compiled) == 1
    one, other = (checkpoint.load(checkpoint.newest(Path(name)))["model"] for name in ("as-it-is", "compiled"))
    assert all(torch.allclose(weight, other[name], atol=1e-6) for name, weight in one.items())


def test_memory_is_that_of_the_device_in_use(monkeypatch):
    """Also on a machine with a GPU on which nothing was computed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5e9)
    peak = ddpm.runtime.run.peak_memory_gb
    assert 0.05 < peak(torch.device("cpu")) != 5.0 == peak(torch.device("cuda"))
    own = peak(torch.device("cpu"))
    monkeypatch.setattr(ddpm.runtime.run.sys, "platform", "darwin")  # counts in bytes
    assert peak(torch.device("cpu")) == pytest.approx(own / 1024, rel=0.1)
    monkeypatch.setattr(ddpm.runtime.run, "resource", None)
    assert peak(torch.device("cpu")) == 0.0


def test_the_next_command_names_this_python_also_on_another_drive(tmp_path, monkeypatch, capsys):
    def other_drive(path):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")  # Windows

    monkeypatch.setattr(os.path, "relpath", other_drive)
    flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "1", "--out"]
    for python, shown in (("/other/.venv/bin/python", "/other/.venv/bin/python"), ("/usr/bin/python3", "python"),
                          (f"{tmp_path}/.venv/bin/python", ".venv/bin/python")):  # fmt: skip
        monkeypatch.setattr(ddpm.runtime.run.sys, "executable", python)
        assert train.main([*flags, f"run{len(shown)}"]) == 0
        out = f"run{len(shown)}"  # not in results/, where sample.py would look
        assert f"next: {shown} sample.py --mask --ckpt {out}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, asks",
    [([], "--source PATH"), (["--mask-drop", "0", "--all-drop", "0"], "--mask --source PATH")],
)
def test_the_next_command_gives_what_the_network_cannot_do_without(flags, asks, capsys):
    flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "1", "--source", "noisy", *flags]
    assert train.main([*flags, "--out", "run"]) == 0
    assert f"sample.py {asks} --ckpt run\n" in capsys.readouterr().out


# Bad input


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--image-size", "30"], "nearest: 28 or 32"),
        (["--image-size", "64", "3"], "nearest: 4"),
        (["--image-size", "64", "64", "1"], "height and width"),
        (["--image-size", "512"], "16 to 256"),
        (["--image-size", "big"], "invalid int value"),
        (["--batch-size", "0"], "at least 1"),
        (["--lr", "-1"], "greater than 0"),
        (["--mask-drop", "1.5"], "at most 1"),
        (["--data", "somewhere", "--phantom-images", "9"], "no meaning with --data somewhere"),
        (["--grad-accum", "9"], "more parts"),
        (["--timesteps", "10", "--schedule", "linear"], "needs more steps"),
        (["--zero-terminal-snr", "--objective", "eps"], "undefined"),
        (["--muon-lr", "0", "--muon-decay", "0.1"], "--muon-decay has no meaning with --muon-lr 0"),
        (["--gamma", "3"], "--gamma has no meaning without --loss-weight min-snr"),
        (["--time-mean", "1", "--time-std", "0"], "--time-mean has no meaning with --time-std 0"),
        (["--words-drop", "0.1"], "--words-drop has no meaning where there is nothing"),
        (["--source-drop", "0.1"], "--source-drop has no meaning"),
        (["--labels", "none", "--mask-drop", "0.1"], "--mask-drop has no meaning"),
        (["--labels", "none", "--foreground-weight", "2"], "--foreground-weight has no meaning where no mask"),
        (["--segment", "--foreground-weight", "2"], "--foreground-weight has no meaning where no mask"),
        (["--objective", "score"], "invalid choice"),
        (["--no-such-flag"], "unrecognized arguments"),
        (["--attention", "5"], "does not have"),
        (["--mults", "1", "0"], "at least 1"),
        (["--channels", "2"], "at least 4"),
        (["--masks", "somewhere"], "no meaning with --data phantom"),
        (["--data", "somewhere", "--contrast", "T1"], "no meaning with --data somewhere"),
        (["--device", "cuda"], "--device cpu"),
        (["--seed", str(2**64)], "at most 9,223,372,036,854,775,807"),
        (["--seed", "-1"], "at least 0"),
        (["--minutes", "inf"], "a finite number"),
        (["--minutes", "nan"], "a finite number"),
        (["--lr", "inf"], "a finite number"),
        (["--data", ""], "--data: an empty name"),
        (["--init", ""], "--init: an empty name"),
        (["--teacher", "", "--few-steps", "4"], "--teacher: an empty name"),
        (["--data", "d", "--masks", ""], "--masks: an empty name"),
        (["--words", "--text-embeddings", ""], "--text-embeddings: an empty name"),
        (["--segment", "--evaluate-every", "1"], "--segment draws masks"),
        (["--channels", "10000000"], "at most 4,096"),
        (["--timesteps", "1000000000000"], "at most 1,000,000"),
        (["--batch-size", "1000000000"], "at most 65,536"),
        (["--threads", "100000"], "at most 1,024"),
        (["--resume", "nowhere"], "no such checkpoint"),
        (["--resume", ""], "an empty name"),
        (["--resume", "nowhere.pt"], "no such checkpoint"),
        (["--data", "nowhere"], "no such folder"),
        (["--data", "no\nwhere"], r"--data no\nwhere: no such folder"),
        (["--out", "/proc/a\nb"], r"--out /proc/a\nb: cannot write there"),
        (["--precision", "a\nb"], "invalid choice"),
        (["--out", "/proc/run"], "cannot write there"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(flags, says, tmp_path, capsys):
    if flags[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert train.main(["--preset", "tiny", "--steps", "1", *flags]) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_system_is_one_line_too(capsys):
    assert one_line_errors(lambda argv: os.stat("no\nwhere"))([]) == 2
    assert capsys.readouterr().err == "error: no\\nwhere: No such file or directory\n"


def test_a_reader_that_goes_away_is_no_error():
    """As in `sample.py | head -1`: nothing is said, and the status is that of a program that SIGPIPE ended."""
    say = "import sys; from ddpm.runtime.command_line import one_line_errors; print('ready', flush=True); sys.stdin.read()"
    say += "; sys.exit(one_line_errors(lambda argv: print('x'))([]))"
    root, pipe = Path(train.__file__).parent, subprocess.PIPE
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", say], stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=root, env=buffered
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == "" and process.wait() == 141


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you ..."
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        MemoryError(),
    ],
)
def test_out_of_memory_is_one_line(error, monkeypatch, capsys):
    def step(*rest):
        raise error

    monkeypatch.setattr(train, "training_step", step)
    flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "1", "--out", "run"]
    assert train.main(flags) == 2
    told = capsys.readouterr().err
    assert "out of memory" in told and "--batch-size" in told and "--grad-accum" in told and told.count("\n") == 1
    error = type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})("no C++ compiler\nTraceback")
    assert train.main([*flags, "--threads", "1"]) == 2
    assert capsys.readouterr().err == (
        "error: --compile: no C++ compiler; it needs a C++ compiler (on a GPU Triton): install that, or leave it out\n"
    )
    error = RuntimeError("of another kind")
    with pytest.raises(RuntimeError, match="another kind"):
        train.main([*flags[:-1], "run2"])


def test_a_small_evaluation_of_too_few_images_is_refused_at_the_start(tmp_path, capsys):
    for n in (3, 4):
        data = folder_of_pairs(tmp_path / str(n), n=n)
        flags = ["--preset", "tiny", "--precision", "fp32", "--data", str(data), "--steps", "2", "--sample-every", "9"]
        status = train.main([*flags, "--evaluate-every", "1", "--out", f"run{n}"])
        error = capsys.readouterr().err
        assert status == (2 if n < 4 else 0), error
        assert (
            "--evaluate-every needs two samples and two images of other subjects" in error and error.count("\n") == 1
        ) == (n < 4)
    assert not Path("run3").exists() and [line["step"] for line in log_of(Path("run4"), "kid")] == [1, 2]


def test_a_step_is_saved_before_it_is_evaluated(tmp_path, monkeypatch):
    def fails(self, step, bar):
        raise UserError("this cannot be judged")

    monkeypatch.setattr(Run, "evaluate", fails)
    flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "4", "--save-every", "2", "--evaluate-every", "2"]
    assert train.main([*flags, "--out", "run"]) == 2
    assert last_checkpoint(tmp_path / "run")["step"] == 2


def test_a_film_too_wide_for_a_gif_is_refused_before_sampling(tiny_run, monkeypatch, capsys):
    """A column is 130 pixels wide, and a GIF 65,535 at most: 504 columns, one of them the mask's."""

    def started(*rest):
        raise UserError("it samples")

    monkeypatch.setattr(sample, "draw", started)
    monkeypatch.setattr(sample, "OVERVIEW", 1000)
    for n, says in ((503, "it samples"), (504, "65,535 a side")):
        assert sample.main(["--ckpt", str(tiny_run), "--mask", "--film", "--n", str(n), "--out", f"o{n}"]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    assert Path("o503").exists() and not Path("o504").exists()


def test_a_finished_run_is_not_overwritten(tiny_run, capsys):
    assert train.main(["--preset", "tiny", "--out", str(tiny_run)]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_presets_are_whole():
    for preset in PRESETS:
        config = make_config(preset, {})
        assert config.steps or preset == "laptop"
    assert set(CHANGEABLE) <= set(Config.__dataclass_fields__)


def test_the_schedule_of_a_configuration_is_the_one_that_it_names():
    for kind, T, zero in (("linear", 50, True), ("linear", 50, False), ("cosine", 40, True)):
        mine = Config(schedule=kind, timesteps=T, zero_terminal_snr=zero).make_schedule()
        assert torch.equal(mine.alpha_bar, make_schedule(kind, T, zero).alpha_bar)


# Folders of one's own


def folder_of_pairs(root, n=6, size=(40, 36), masks=True):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(n):
            for kind, top in (("images", 256), ("masks", 2))[: 2 if masks else 1]:
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, top, size, dtype=np.uint8) * (1 if kind == "images" else 255)
                Image.fromarray(pixels).save(root / split / kind / f"slice{i}.png")
    return root


@pytest.mark.parametrize("masks", [True, False])
def test_a_folder_trains(masks, tmp_path, capsys):
    data = folder_of_pairs(tmp_path / "data", masks=masks)
    flags = [
        "--preset",
        "tiny",
        "--precision",
        "fp32",
        "--data",
        str(data),
        "--steps",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    assert train.main(flags) == 0
    assert f"classes {'background, class 1' if masks else 'none'}" in capsys.readouterr().out
    known = last_checkpoint(tmp_path / "run")["conditions"]
    assert len(known.classes) == 2 * masks and not known.labels


def test_masks_may_lie_elsewhere_or_be_left_out(tmp_path):
    data = folder_of_pairs(tmp_path / "data")
    for split in ("train", "val"):
        (tmp_path / "masks").mkdir(exist_ok=True)
        (data / split / "masks").rename(tmp_path / "masks" / split)
    flags = ["--preset", "tiny", "--precision", "fp32", "--data", str(data), "--steps", "1"]
    assert train.main([*flags, "--masks", str(tmp_path / "masks"), "--out", str(tmp_path / "a")]) == 0
    assert last_checkpoint(tmp_path / "a")["conditions"].classes == ("background", "class 1")
    assert train.main([*flags, "--out", str(tmp_path / "b")]) == 0
    assert last_checkpoint(tmp_path / "b")["conditions"].classes == ()


def test_sixteen_bits_are_refused_rather_than_cut_off(tmp_path, capsys):
    data = folder_of_pairs(tmp_path / "data")
    Image.fromarray(np.full((40, 36), 4000, np.uint16)).save(data / "train" / "images" / "slice0.png")
    assert train.main(["--preset", "tiny", "--data", str(data), "--steps", "1"]) == 2
    assert "slice0.png: more than 8 bits" in capsys.readouterr().err


def test_folders_with_something_missing_or_unreadable_are_refused(tmp_path, capsys):
    def complains(data, says):
        assert train.main(["--preset", "tiny", "--data", str(data), "--steps", "1"]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1

    data = folder_of_pairs(tmp_path / "a")
    (data / "train" / "masks" / "slice3.png").unlink()
    complains(data, "slice3.png: no mask of that name")
    data = folder_of_pairs(tmp_path / "b")
    (data / "val" / "images" / "slice2.png").unlink()
    complains(data, "slice2.png: no image of that name")
    data = folder_of_pairs(tmp_path / "c")
    path = data / "train" / "images" / "slice1.png"
    path.write_bytes(path.read_bytes()[:100])
    complains(data, "slice1.png: damaged, or not a picture")
    data = folder_of_pairs(tmp_path / "d")
    Image.fromarray(np.full((40, 36), 7, np.uint8)).save(data / "train" / "masks" / "slice0.png")
    complains(data, "slice0.png: the mask has labels 7")


# Long proofs


@pytest.mark.slow
def test_lesions_appear_where_the_mask_says(tmp_path, monkeypatch):
    """A minute or two of training on FLAIR alone, where lesions are bright: sampled images must be brighter under
    the mask than at the mirrored place, as real ones are."""
    monkeypatch.setattr(phantom, "SPLITS", {"train": 3000, "val": 300, "test": 300})
    flags = [
        "--preset",
        "tiny",
        "--contrast",
        "FLAIR",
        "--channels",
        "32",
        "--mults",
        "1",
        "2",
        "2",
        "--attention",
        "2",
    ]
    flags += ["--batch-size", "16", "--steps", "1500", "--save-every", "5000", "--sample-every", "5000", "--lr", "1e-3"]
    assert train.main([*flags, "--out", str(tmp_path / "run")]) == 0
    model = load_model(tmp_path / "run")
    held_out = load_data(model.config, "val")
    big = np.flatnonzero((held_out.masks == 1).sum(axis=(1, 2)) > 20)[:24]
    x_0, condition = held_out.batch(big)
    *_, (_, drawn) = draw(model, condition, range(len(big)), Sampling(steps=20, guidance=1))

    def brighter(images):
        lesion = condition.mask[:, 1:]
        mirrored = lesion.flip(-1) * (1 - lesion)
        inside, beside = ((images * m).sum((1, 2, 3)) / m.sum((1, 2, 3)).clamp(min=1) for m in (lesion, mirrored))
        return (inside > beside).float().mean().item()

    assert brighter(x_0) > 0.8 and brighter(drawn) > 0.8
    assert brighter(drawn.roll(1, dims=0)) < brighter(drawn) - 0.1  # and not under somebody else's mask


def test_each_step_draws_its_own_times_and_noise(small_phantom, monkeypatch):
    drawn = []

    def watched(schedule, unet, objective, x_0, t, eps, *condition):
        drawn.append((tuple(t.tolist()), eps.flatten()[0].item()))
        return denoising_loss(schedule, unet, objective, x_0, t, eps, *condition)

    monkeypatch.setattr(training, "denoising_loss", watched)
    assert train.main(["--preset", "tiny", "--steps", "5", "--precision", "fp32", "--out", "run"]) == 0
    times, noises = zip(*drawn, strict=True)
    assert len(drawn) == 5 == len(set(times)) == len(set(noises))


def test_two_trainings_of_one_second_have_folders_of_their_own(small_phantom, tmp_path, monkeypatch):
    ticks = iter(["a", "a", "a", "b", "c"])
    monkeypatch.setattr(time, "strftime", lambda form: next(ticks))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert [make_folder("", "results/run") for _ in range(2)] == ["results/run-a", "results/run-b"]
    assert make_folder("results/run-a", "") == "results/run-a"  # what is named is taken


def test_weights_that_the_last_step_destroyed_are_not_saved(small_phantom, monkeypatch, capsys):
    """The loss of that step was that of the weights before it."""

    def destroys(training, data, step):
        figures = training_step(training, data, step)
        next(training.unet.parameters()).data.fill_(np.nan)
        return figures

    monkeypatch.setattr(train, "training_step", destroys)
    assert train.main(["--preset", "tiny", "--steps", "1", "--precision", "fp32", "--out", "run"]) == 2
    assert "no longer finite" in capsys.readouterr().err and not list(Path("run/checkpoints").iterdir())
