"""The model in the box, and starting from the weights of another."""

import json
import shutil
import sys
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import folder_of_pairs, log_of

import sample
import train
from ddpm import asked
from ddpm.model import load_model
from ddpm.runtime import checkpoint, start
from ddpm.runtime.config import make_config
from tools import pretrained

pytestmark = pytest.mark.usefixtures("small_phantom")


@pytest.fixture(scope="module")
def box(tiny_run, tmp_path_factory):
    """The tiny run, packed as the model in the box is, every weight shaken so that none is 0."""
    place = tmp_path_factory.mktemp("box")
    raw = torch.load(tiny_run / "checkpoints" / "step_000040.pt", weights_only=True)
    for weight in raw["ema"].values():
        weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    torch.save(raw, place / "shaken.pt")
    pretrained.pack(place / "shaken.pt", place / "pretrained.pt")
    return place / "pretrained.pt"


@pytest.fixture
def in_the_box(box, monkeypatch):
    monkeypatch.setattr(checkpoint, "PRETRAINED", box)


# What is packed


def test_packing_keeps_the_averaged_weights_in_half_precision_and_no_path(box):
    raw = torch.load(box, weights_only=True)
    assert raw["model"] == {} and raw["opt"] == [] and raw["config"]["out"] == ""
    assert all(weight.dtype == torch.float16 for weight in raw["ema"].values())
    for name, weight in torch.load(box.parent / "shaken.pt", weights_only=True)["ema"].items():
        assert torch.allclose(raw["ema"][name].float(), weight, rtol=2**-11, atol=1e-7), name
    assert box.stat().st_size < 0.2 * (box.parent / "shaken.pt").stat().st_size


def test_a_packed_model_draws_what_the_run_draws(box, tmp_path):
    for name in ("shaken", "pretrained"):
        flags = ["--ckpt", str(box.parent / f"{name}.pt"), "--n", "2", "--sample-steps", "4", "--out", name]
        assert sample.main([*flags, "--precision", "fp32"]) == 0
    drawn = [np.asarray(Image.open(f"{name}/unconditional_1.png")).astype(int) for name in ("shaken", "pretrained")]
    assert np.abs(drawn[0] - drawn[1]).mean() < 1


def test_the_tool_packs_a_run_that_is_there(tiny_run, tmp_path, capsys):
    assert pretrained.main(["--run", str(tiny_run), "--out", "packed.pt"]) == 0
    assert load_model("packed.pt").step == 40
    assert "sha256" in capsys.readouterr().out


def test_the_tool_packs_no_run_that_was_stopped(tiny_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    half = tiny_run / "checkpoints" / "step_000020.pt"
    (tmp_path / "run" / "checkpoints" / half.name).write_bytes(half.read_bytes())
    monkeypatch.setattr(pretrained.train, "main", lambda argv: 0)  # stopped at once
    assert pretrained.main(["--run", "run", "--out", "packed.pt"]) == 2
    assert "stopped before its end, step 40" in capsys.readouterr().err and not Path("packed.pt").exists()


def test_each_stage_refines_what_the_one_before_it_made(tmp_path, monkeypatch, capsys):
    short = "--preset tiny --precision fp32 --steps {} --guidance 1.5"
    monkeypatch.setitem(pretrained.STAGES, "pretrained", tuple(short.format(steps) for steps in (2, 3, 4)))
    assert pretrained.main(["--out", "packed.pt"]) == 0
    last = checkpoint.load(Path("results/pretrained-3/checkpoints/step_000004.pt"))
    assert last["config"].reference == "results/pretrained-2/checkpoints/step_000003.pt"
    assert load_model("results/pretrained-2").config.reference == "results/pretrained/checkpoints/step_000002.pt"
    assert load_model("packed.pt").step == 4 and load_model("packed.pt").config.reference == ""
    assert pretrained.main(["--out", "again.pt"]) == 0  # nothing is trained twice
    assert Path("again.pt").read_bytes() == Path("packed.pt").read_bytes()
    assert "nothing left to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, says", [(["--run", "none"], "none: no such"), (["--out", "/proc/a/b.pt"], "cannot write")]
)
def test_what_the_tool_cannot_do_is_said_before_a_training(flags, says, monkeypatch, capsys):
    monkeypatch.setattr(train, "open_data", lambda config: pytest.fail("it trains"))
    with pytest.raises(SystemExit, match="2"):
        sys.exit(pretrained.main(flags))
    assert says in capsys.readouterr().err and not Path("none").exists()


# Which checkpoint is meant


def test_without_a_run_the_box_is_drawn_from_and_a_run_comes_first(in_the_box, tiny_run, tmp_path, capsys):
    assert sample.main(["--n", "1", "--sample-steps", "1", "--out", "a"]) == 0
    assert "pretrained.pt: step 40" in capsys.readouterr().out
    Path("results").mkdir()
    (tmp_path / "results" / "run").symlink_to(tiny_run)
    for flags, named in (([], "run/checkpoints/step_000040.pt"), (["--ckpt", "pretrained"], "pretrained.pt")):
        assert sample.main([*flags, "--n", "1", "--sample-steps", "1", "--out", "a"]) == 0
        assert named in capsys.readouterr().out


@pytest.mark.parametrize(
    "program, flags, says",
    [
        (sample, ["--ckpt", "pretrained", "--weights", "raw"], "averaged weights only"),
        (train, ["--resume", "pretrained"], "start a new run with --init"),
        (train, ["--preset", "tiny", "--init", "pretrained", "--attention", "0"], "trained with --attention 1; give"),
        (train, ["--preset", "tiny", "--init", "pretrained", "--zero-terminal-snr"], "with --no-zero-terminal-snr;"),
        (train, ["--init", "nowhere.pt"], "no such checkpoint"),
        (sample, ["--mask", ""], "--mask: an empty name"),
        (sample, ["--restore", "", "--as", "denoise"], "--restore: an empty name"),
        (train, ["--preset", "tiny", "--init", "pretrained", "--channels", "32"], "trained with --channels 16; give"),
        (train, ["--preset", "tiny", "--init", "pretrained", "--mults", "1", "2", "2"], "with --mults 1 2; give"),
        (train, ["--preset", "tiny", "--init", "pretrained", "--no-lean"], "with --lean; give"),
        (
            train,
            ["--preset", "tiny", "--init", "pretrained", "--objective", "eps"],
            "--objective v; give that here too",
        ),
    ],
)
def test_what_the_box_cannot_do_is_one_line(in_the_box, program, flags, says, tmp_path, capsys):
    assert program.main([*flags, "--out", "o"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not list(tmp_path.glob("o/checkpoints/*"))


@pytest.mark.parametrize("flag", ["--init", "--teacher", "--reference"])
def test_what_cannot_be_started_from_leaves_no_folder(flag, in_the_box, tmp_path):
    assert train.main(["--preset", "tiny", flag, "nowhere.pt"]) == 2
    assert not (tmp_path / "results").exists()


def test_the_box_may_be_named_by_a_path():
    assert checkpoint.find(Path("pretrained-fast")) == checkpoint.find("pretrained-fast")


def test_without_a_run_there_is_nothing_to_resume(in_the_box, capsys):
    assert train.main(["--resume"]) == 2
    assert "results: no checkpoint in this folder" in capsys.readouterr().err


# Starting from it


def trained_from(path, *flags):
    """The averaged weights after one step of next to no learning rate."""
    steps = ["--steps", "1", "--lr", "1e-12", "--muon-lr", "1e-12", "--precision", "fp32", "--threads", "1"]
    assert train.main(["--preset", "tiny", "--init", str(path), *steps, *flags, "--out", "begun"]) == 0
    return checkpoint.load(checkpoint.newest("begun"))


def test_the_same_data_starts_with_all_weights(box, capsys):
    begun = trained_from(box)
    for name, weight in checkpoint.load(box)["ema"].items():
        assert torch.allclose(begun["ema"][name], weight.float(), atol=1e-6), name
        assert torch.allclose(begun["model"][name], weight.float(), atol=1e-6), name
    out = capsys.readouterr().out
    assert f"weights of {box}, step 40\n" in out and begun["config"].init == str(box)
    assert begun["config"].muon_decay == 0  # what was learnt stays, unless asked otherwise
    assert make_config("tiny", {"init": "x", "muon_decay": 0.1}).muon_decay == make_config("tiny", {}).muon_decay == 0.1


def test_classes_and_values_find_their_weights_by_name(box, capsys):
    begun, there = trained_from(box, "--labels", "tissue", "--contrast", "T2"), checkpoint.load(box)["ema"]
    assert "anew: CSF (conv_in), GM (conv_in), WM (conv_in)\n" in capsys.readouterr().out
    columns = begun["ema"]["conv_in.weight"].split(4, dim=1)  # image, background, CSF, GM, WM, lesion
    theirs = there["conv_in.weight"].float().split(4, dim=1)  # image, background, lesion
    for ours, known in ((0, 0), (1, 1), (5, 2)):
        assert torch.allclose(columns[ours], theirs[known], atol=1e-6)
    assert not any(torch.allclose(columns[ours], known) for ours in (2, 3, 4) for known in theirs)
    rows = there["labels.contrast.weight"].float()[[0, 2]]  # null, T2
    assert torch.allclose(begun["ema"]["labels.contrast.weight"], rows, atol=1e-6)
    assert torch.allclose(begun["ema"]["conv_out.weight"], there["conv_out.weight"].float(), atol=1e-6)


def test_a_folder_without_contrasts_and_of_another_size_starts_from_it(box, tmp_path, capsys):
    folder = folder_of_pairs(tmp_path / "pairs", n=12)
    begun = trained_from(box, "--data", str(folder), "--image-size", "16")
    assert "labels.contrast.weight" not in begun["ema"]
    assert "anew" in capsys.readouterr().out  # class 1 of the folder is not called lesion


def test_a_new_label_value_is_named():
    from ddpm.conditions import Vocabulary

    names = start.parts_of({"labels.contrast.weight": torch.zeros(3, 2)}, Vocabulary((), {"contrast": ("T1", "PD")}), 1)
    assert [name for _, name in names] == ["none given", "T1", "PD"]


# A checkpoint of the versions before


def test_a_run_of_version_2_goes_on(tiny_run, tmp_path):
    """Its one optimiser is AdamW for all, its network the paper's, and nothing is withheld all at once."""
    flags = [
        "--no-lean",
        "--muon-lr",
        "0",
        "--time-std",
        "0",
        "--lr",
        "8e-4",
        "--batch-size",
        "8",
        "--precision",
        "fp32",
        "--threads",
        "1",
    ]
    assert train.main(["--preset", "tiny", *flags, "--steps", "20", "--out", "old"]) == 0
    path = checkpoint.newest("old")
    raw = torch.load(path, weights_only=True)
    raw["version"], raw["opt"] = 2, raw["opt"][0]
    for name in ("lean", "time_mean", "time_std", "muon_lr", "all_drop", "phantom_images", "init", "source", "words"):
        raw["config"].pop(name, None)
    raw["config"].update(mask_drop=0.1, label_drop=0.2)
    torch.save(raw, path)
    config = checkpoint.load(path)["config"]
    assert (config.lean, config.time_std, config.muon_lr) == (False, 0, 0)
    assert (config.mask_drop, config.label_drop, config.all_drop) == (0.1, 0.2, 0)
    assert train.main(["--resume", "old", "--steps", "22"]) == 0
    assert log_of(Path("old"))[-1]["step"] == 22 and json.loads(Path("old/config.json").read_text())["lean"] is False


def gone_on(version, flags, age):
    """A run of 22 steps, and its continuation from step 20, whose checkpoint `age` turned into one of that version."""
    flags = f"--preset tiny --precision fp32 --threads 1 --steps 22 --save-every 20 {flags}"
    assert train.main([*flags.split(), "--out", "whole"]) == 0
    shutil.copytree("whole", "old")
    Path("old/checkpoints/step_000022.pt").unlink()
    path = checkpoint.newest("old")
    raw = torch.load(path, weights_only=True)
    age(raw)
    torch.save({**raw, "version": version}, path)
    assert train.main(["--resume", "old"]) == 0
    return [checkpoint.load(checkpoint.newest(folder)) for folder in ("whole", "old")]


def test_a_run_of_version_4_goes_on_as_it_began():
    """Without decay and with a foreground that counts as all else: neither was known."""

    def age(raw):
        for name in ("muon_decay", "foreground_weight"):
            raw["config"].pop(name)
        for group in raw["opt"][1]["param_groups"]:
            del group["weight_decay"]

    whole, old = gone_on(4, "--muon-decay 0 --foreground-weight 1", age)
    assert (old["config"].muon_decay, old["config"].foreground_weight, old["step"]) == (0, 1, 22)
    assert all(torch.equal(value, whole["model"][name]) for name, value in old["model"].items())


def test_a_run_of_version_5_decays_on_as_it_began():
    """Its configuration had the decay of a step, not that of 3,000 steps."""

    def age(raw):
        (raw["config"]["muon_decay"],) = {group["weight_decay"] for group in raw["opt"][1]["param_groups"]}
        assert raw["config"]["muon_decay"] == 0.0011 * 3000 / 22

    whole, old = gone_on(5, "--muon-decay 0.0011", age)
    assert old["config"].muon_decay == pytest.approx(0.0011) and old["step"] == 22
    assert all(torch.allclose(value, whole["model"][name], atol=1e-6) for name, value in old["model"].items())


# The file itself


@pytest.mark.parametrize("name", checkpoint.IN_THE_BOX)
def test_the_recipe_is_what_the_model_in_the_box_was_trained_with(name):
    """Whatever became the default since. (A student or a model of masks has no foreground to weigh; a student is guided as
    its teacher.)"""
    *before, flags = pretrained.STAGES[name]
    config, _ = start.read_command_line([*flags.split(), *["--reference", "pretrained"] * bool(before), "--out", "run"])
    trained = checkpoint.load(Path(checkpoint.__file__).parents[1] / f"{name}.pt")["config"]
    learnt = {f.name for f in fields(config)} - {"out", "precision", "save_every", "sample_every", "reference"}
    learnt -= {"foreground_weight"} if name in ("pretrained-fast", "pretrained-masks") else set()
    learnt -= {"guidance"} if config.teacher else set()
    assert {key: getattr(config, key) for key in learnt} == {key: getattr(trained, key) for key in learnt}


@pytest.mark.parametrize("name, steps", [("pretrained", 6), ("pretrained-fast", 4), ("pretrained-128", 6)])
def test_the_model_in_the_box_knows_the_phantom_and_draws_its_lesions(name, steps):
    """A lesion where the mask has one, and none where not, said by the judge."""
    from ddpm.data import phantom
    from ddpm.data.sources import load_data
    from ddpm.evaluation.comparison import draw_for
    from ddpm.metrics.segmenter import load_segmenter
    from ddpm.model import Sampling

    assert checkpoint.find(name).stat().st_size < 12e6
    model = load_model(name)
    assert model.vocabulary.classes == phantom.CLASSES["lesion"]
    assert model.vocabulary.labels["contrast"] == phantom.CONTRASTS
    held_out = load_data(model.config, "val")
    large = np.argsort(-(held_out.masks == 1).sum(axis=(1, 2)))[:8]
    verdict = load_segmenter().judge(draw_for(model, held_out, large, Sampling(steps=steps)))
    found, wanted = verdict.labels == 4, held_out.masks[large] == 1
    dice = 2 * (found & wanted).sum() / (found.sum() + wanted.sum())
    assert dice > 0.75
    assert (verdict.contrasts + 1 == held_out.labels["contrast"][large]).mean() > 0.8


def test_the_model_of_masks_in_the_box_draws_what_prompts_ask_for():
    """Its size and its side, by the rules that made the descriptions."""
    from ddpm.asked import drawn_masks
    from ddpm.data.descriptions import describe

    assert checkpoint.find("pretrained-masks").stat().st_size < 4e6
    drafter = load_model("pretrained-masks")
    for prompt, part, value in (
        ("lesion, left", "side", "left"),
        ("lesion, right", "side", "right"),
        ("large lesion", "size", "large"),
        ("small lesion", "size", "small"),
        ("no lesion", "presence", "no lesion"),
    ):
        masks = drawn_masks(drafter, drafter.vocabulary.numbers([prompt] * 8), range(8))
        assert np.mean([describe(mask == 1).get(part) == value for mask in masks]) > 0.6, prompt


def test_a_drafted_mask_keeps_its_proportions(monkeypatch):
    """The phantom's field of view is as wide as the shorter side."""
    square = np.zeros((1, 64, 64), np.uint8)
    square[0, 10:20, 40:50] = 1
    monkeypatch.setattr(asked, "drawn_masks", lambda drafter, words, seeds: square)
    model = SimpleNamespace(config=SimpleNamespace(image_size=[96, 64]))
    args = Namespace(prompt="large lesion", text_embeddings=None, n=1, batch_size=8, seed=0)
    [mask] = asked.draft_masks(args, model).values()
    assert np.array_equal(mask, np.pad(square[0], ((16, 16), (0, 0))))
