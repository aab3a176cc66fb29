"""The evaluation as a program: every score against what it must be for images whose quality is known."""

import io
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from small_sets import noise, split_set, subject_set, write

import ddpm.evaluation.small
import evaluate
import train
from benchmarks import damage
from benchmarks.damage import damaged, scores
from ddpm import UserError
from ddpm.conditions import Vocabulary
from ddpm.data import Slices, phantom
from ddpm.data.sources import load_data
from ddpm.evaluation import comparison, questions
from ddpm.evaluation.comparison import Comparison, Sides, draw_for, nearest_training, split_by_subject
from ddpm.evaluation.questions import QUESTIONS, Row, condition_fidelity
from ddpm.evaluation.report import NO_PLOTS, figure, page_of, table, write_report
from ddpm.metrics import segmenter
from ddpm.metrics.features import Extractor, extract
from ddpm.metrics.fid import fid_infinity, frechet_distance_of_features
from ddpm.metrics.kid import cmmd, gaussian_mmd, kid, median_distance
from ddpm.metrics.manifold import precision_recall_density_coverage
from ddpm.metrics.segmenter import Verdict, load_segmenter
from ddpm.metrics.spectrum import histogram_distance, intensity_histogram
from ddpm.model import Model, Sampling, load_model
from ddpm.runtime import files
from ddpm.runtime.config import Config


@pytest.fixture(scope="session")
def ckpt(tiny_run):
    return str(tiny_run / "checkpoints" / "step_000040.pt")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Trainings inside the evaluation take a few steps."""
    monkeypatch.setattr(questions, "USEFUL_STEPS", 2)
    monkeypatch.setattr(comparison, "JUDGE_STEPS", 2)


def pictures(folder, n=80, size=(32, 32), seed=0, level=128):
    """n smooth random pictures as PNG files."""
    Path(folder).mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(level - 60, level + 60, (6, 6)).astype(np.uint8))
        coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC).save(f"{folder}/{i:03d}.png")
    return str(folder)


def rendered(split: str, first: int, end: int) -> Slices:
    """Pairs of the embedded data at 64x64."""
    subjects = [phantom.draw_subject(0, split, i) for i in range(first, end)]
    images, tissue = (np.stack(x) for x in zip(*(phantom.render(s, 64) for s in subjects), strict=True))
    contrasts = np.array([s.contrast for s in subjects]) + 1
    masks = phantom.to_label_set(tissue, "lesion")
    return Slices(images[:, None], masks, {"contrast": contrasts}, LESION, np.arange(first, end))


LESION = Vocabulary(phantom.CLASSES["lesion"], {"contrast": phantom.CONTRASTS})


def pixels(images) -> torch.Tensor:
    """The plainest features there are: a picture of 8x8."""
    return torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(images).float(), 8).flatten(1)


class Bright:
    """A judge to whom a lesion is what is brighter than 250."""

    classes, contrasts = ("background", "lesion"), ()

    def judge(self, images):
        return Verdict((images[:, 0] > 250).astype(np.uint8), np.zeros(len(images), int), np.zeros((len(images), 1)))


def compare(samples, real, chosen, others, **rest) -> Comparison:
    """samples: images for the masks, labels and subjects of the chosen real ones."""
    rest = {"extractor": Extractor("pixels", "0", pixels), "judge": Bright()} | rest
    return Comparison(replace(real.part(chosen), images=samples), real, chosen, others, **rest)


def bare(images, subjects=None, **rest) -> Slices:
    return Slices(images, rest.pop("masks", None), {}, rest.pop("vocabulary", Vocabulary()), subjects)


def report(out) -> dict:
    return {row["metric"]: row for row in json.loads((Path(out) / "report.json").read_text())["rows"]}


# ---------------------------------------------------------------- a checkpoint


QUICK = ("--n", "40", "--sample-steps", "2", "--out", "out")


def test_a_checkpoint_gives_a_table_and_a_report(ckpt, capsys):
    metrics = ("kid", "fid", "manifold", "spectrum", "memorisation", "mask", "useful", "likelihood")
    assert evaluate.main(["--ckpt", ckpt, *QUICK, "--metrics", *metrics]) == 0
    printed = capsys.readouterr().out
    assert "samples: 40, dpm-solver in 2 steps" in printed.split("KID")[0]  # before it starts, not after
    assert "FID wants 2,048 images or more, here are 40" in printed
    rows = report("out")
    for name in ("KID x 1000", "FID", "precision", "coverage", "memorisation", "contrast as asked"):
        assert name in rows and name in printed
        assert np.isfinite(rows[name]["samples"])
    assert list(rows)[0] == "KID x 1000"  # below 2,048 images KID leads
    assert 0 < rows["bits per dimension, at most"]["samples"] < 20
    choices = json.loads(Path("out/report.json").read_text())["choices"]
    seen = f"it sees 64x64 [{load_segmenter().fingerprint()}], of images of 32x32"
    assert seen in choices["features"] and "step 40" in choices["model"]
    assert "guidance 1.25 by mask and contrast for t / T in 0.05 to 0.9, " in choices["samples"]
    page = Path("out/report.html").read_text()
    assert "data:image/png;base64," in page and "://" not in page  # nothing to load from elsewhere


def test_settings_can_be_chosen_on_images_that_are_not_reported_on(ckpt, monkeypatch, capsys):
    monkeypatch.setitem(phantom.SPLITS, "val", 96)
    for flags, split in (([], "test"), (["--split", "test"], "test"), (["--split", "val"], "val")):
        command = ["--ckpt", ckpt, *QUICK[:-1], f"o{split}{len(flags)}", "--metrics", "spectrum", *flags]
        assert evaluate.main(command) == 0
        assert f"56 other images of phantom's {split} split" in capsys.readouterr().out
    assert report("otest0") == report("otest2") != report("oval2")


def test_the_same_seed_gives_the_same_scores(ckpt):
    for out in ("a", "b"):
        assert evaluate.main(["--ckpt", ckpt, *QUICK[:-1], out, "--metrics", "kid", "mask"]) == 0
    assert report("a") == report("b")
    assert evaluate.main(["--ckpt", ckpt, *QUICK[:-1], "c", "--metrics", "kid", "mask", "--seed", "1"]) == 0
    assert report("a") != report("c")


def test_features_for_each_image_or_none():
    own = Extractor("own", "x", lambda images: torch.zeros(1, 4))
    with pytest.raises(UserError, match="answers no .batch, features. tensor"):
        extract(own, np.zeros((3, 1, 8, 8), np.uint8))


def test_a_question_asked_by_name_is_answered_or_it_is_said_why_not(ckpt, capsys):
    assert evaluate.main(["--ckpt", ckpt, *QUICK[:-1], "a", "--metrics", "spectrum", "inception-score", "paired"]) == 0
    out = capsys.readouterr().out
    for name, help in (("inception-score", "with --features inception"), ("paired", "the truth that a source")):
        assert re.search(rf"warning: not answered: {name}: nothing here can be asked that \(.*{help}", out)
    assert evaluate.main(["--ckpt", ckpt, *QUICK[:-1], "b", "--metrics", "inception-score"]) == 2
    assert "with --features inception" in capsys.readouterr().err


def test_a_sample_does_not_depend_on_the_batch(ckpt):
    for out, size in (("a", "40"), ("b", "7")):
        assert evaluate.main(["--ckpt", ckpt, *QUICK[:-1], out, "--metrics", "spectrum", "--batch-size", size]) == 0
    a, b = (report(out)["grey levels, distance [of 255]"]["samples"] for out in ("a", "b"))
    assert a == pytest.approx(b, abs=0.05)


@pytest.mark.parametrize("masks", [True, False])
def test_a_folder_of_ones_own(tmp_path, capsys, masks):
    """With masks the judge is trained on the folder's own pairs, once; without, the embedded data's gives the features."""
    data = str(split_set(tmp_path / "data", n=80, masks=masks))
    flags = ["--preset", "tiny", "--steps", "1", "--precision", "fp32", "--num-classes", "2"]
    flags += ["--data", data, "--out", "run"]
    assert train.main(flags) == 0
    capsys.readouterr()
    command = [
        "--ckpt",
        "run",
        *QUICK[:-1],
        "a",
        "--metrics",
        "kid",
        "memorisation",
        "mask",
        "useful"[: 9 * masks] or "fid",
    ]
    assert evaluate.main(command) == 0
    printed = capsys.readouterr().out
    assert ("training a judge on 80 pairs" in printed) == masks
    assert ("Dice of class 1, 12 pixels or more" in report("a")) == masks
    assert ("of the embedded data" in printed) != masks
    assert "are not those of the folder now" not in printed
    if not masks:  # or a judge would be trained anew
        write(
            Path(data) / "train" / "images" / "new.png", np.full((20, 24), 9, np.uint8) * np.arange(24, dtype=np.uint8)
        )
    assert evaluate.main(command) == 0
    printed = capsys.readouterr().out
    assert "training a judge" not in printed and printed.startswith("note: a holds a report already")
    assert printed.count("warning: the training images of run/checkpoints/step_000001.pt are not those of") == (
        not masks
    )
    assert evaluate.main([*command, "--split", "test"]) == 2
    assert f"--split test: {data} has no such split; give --split val" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("n", "subjects", "flags", "says"),
    [
        (60, 90, {}, "--n 60: give 40 to 50, as d's val split has 90 images"),
        (None, 5, {}, "d's val split has 5 image(s); 80 are needed at least, 40 to draw samples for and 40 of other"),
        (40, 1, {}, "try another --seed, or add subjects"),
        (None, 90, {"out": "taken/below"}, "--out taken/below: cannot write there"),
        (None, 90, {"sampling": Sampling(steps=2000)}, "--sample-steps 2000 is more than"),
        (None, 90, {"data": "gone"}, "run was trained with --data gone: no such folder here; start where train.py was"),
        (None, 90, {"masks": "gone"}, "run was trained with --masks gone: no such folder here"),
    ],
)
def test_what_cannot_be_judged_is_told_before_a_judge_is_trained(n, subjects, flags, says, tmp_path, monkeypatch):
    for split, images in (("train", 1), ("val", max(subjects, 90 if subjects == 1 else 0))):
        for i in range(images):
            subject = i if subjects > 1 else int(i < 3)
            write(tmp_path / "d" / split / "images" / f"{split}{subject}" / f"{i}.png", noise(images, i))
    Path("taken").write_text("a file")
    monkeypatch.setattr(comparison, "make_judge", lambda *what: pytest.fail("a judge was trained"))
    config = Config(data=flags.get("data", "d"), masks=flags.get("masks", ""), image_size=[16, 16])
    model = Model(config, Vocabulary(), None, None, "run")
    with pytest.raises(UserError) as error:
        comparison.from_model(model, flags.get("sampling", Sampling()), 50, n, 0, None, flags.get("out", "out"))
    assert says in str(error.value) and "smaller --n" not in str(error.value)


def test_the_judge_of_ones_own_data_is_trained_again_when_its_code_changes(tmp_path, capsys, monkeypatch, own_cache):
    config = Config(data=str(split_set(tmp_path / "data")), image_size=[16, 16])
    pairs = load_data(config, "train")
    judges = []
    for code in ("", "", "edited"):
        if code:
            monkeypatch.setattr(segmenter, "CODE", code)
        judges.append(comparison.make_judge(config, pairs)[0])
        assert ("training a judge" in capsys.readouterr().out) == (len(judges) != 2)
    assert len({judge.fingerprint() for judge in judges}) == 1 and not any(judge.training for judge in judges)
    [*_, path] = own_cache.glob("segmenter-*.pt")
    path.write_bytes(path.read_bytes()[:-10])
    assert comparison.make_judge(config, pairs)[0].fingerprint() == judges[0].fingerprint()


def test_a_sample_is_its_masks_own_whatever_is_drawn_beside_it(ckpt):
    model, how = load_model(ckpt), Sampling("ancestral", 3, 1.5)
    held_out = load_data(model.config, "val")
    three = draw_for(model, held_out, np.array([2, 5, 9]), how, 0, 2).astype(int)
    one = draw_for(model, held_out, np.array([5]), how, 0, 2).astype(int)
    assert np.abs(three[1] - one[0]).max() <= 1 < np.abs(three[0] - one[0]).max()


def test_training_can_evaluate_itself(small_phantom, tiny_run, monkeypatch):
    flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "4", "--sample-every", "4", "--out", "run"]
    compared = []

    def watched(fakes, reals, **how):
        compared.append((len(fakes), len(reals)))
        return kid(fakes, reals, **how)

    monkeypatch.setattr(ddpm.evaluation.small, "kid", watched)
    assert train.main([*flags, "--evaluate-every", "2"]) == 0
    lines = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "kid" in line]
    assert [line["step"] for line in evaluated] == [2, 4]
    assert {"kid_std", "evaluated", "contrast as asked"} <= evaluated[0].keys()
    plain = torch.load(tiny_run / "checkpoints" / "step_000040.pt", weights_only=True)
    assert plain["config"]["evaluate_every"] == 0
    assert compared == [(12, 12)] * 2  # 12 samples with the 12 validation images that nothing was asked of
    # Evaluating draws random numbers; training must not notice.
    assert train.main([*flags[:-1], "silent"]) == 0
    a, b = (torch.load(f"{run}/checkpoints/step_000004.pt", weights_only=True)["model"] for run in ("run", "silent"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_guidance_needs_a_network_that_met_missing_masks(ckpt, capsys):
    raw = torch.load(ckpt, weights_only=True)
    raw["config"].update(mask_drop=0.0, label_drop=0.0, all_drop=0.0)
    torch.save(raw, "never.pt")
    command = ["--ckpt", "never.pt", *QUICK, "--metrics", "spectrum"]
    assert evaluate.main([*command, "--guidance", "2"]) == 2
    assert "never learnt to do without --mask" in capsys.readouterr().err
    assert evaluate.main(command) == 0
    assert "guidance 1, " in capsys.readouterr().out


# ---------------------------------------------------------------- two folders


def test_two_folders_of_one_kind_and_of_two(tmp_path):
    real, same, other = (
        pictures(tmp_path / name, seed=i, level=lv)
        for i, (name, lv) in enumerate((("real", 128), ("same", 128), ("other", 160)))
    )
    for fake, out in ((same, "a"), (other, "b")):
        assert evaluate.main(["--real", real, "--fake", fake, "--metrics", "kid", "fid", "spectrum", "--out", out]) == 0
    a, b = report("a"), report("b")
    assert abs(a["KID x 1000"]["samples"]) < 0.2 * b["KID x 1000"]["samples"]
    assert b["grey levels, distance [of 255]"]["samples"] > 25 > 5 * a["grey levels, distance [of 255]"]["samples"]
    assert "memorisation" not in a


def test_samples_of_a_head_are_not_held_against_that_head(tmp_path, capsys):
    """24 heads of 4 slices, and the same heads with other noise, as a reconstruction has: each set's heads by name."""
    rng = np.random.default_rng(0)
    heads = ndimage.gaussian_filter(rng.normal(0, 400, (24, 32, 32)), (0, 3, 3)) + 128
    for folder in ("real", "fake"):
        (tmp_path / folder).mkdir()
        for head in range(24):
            for n in range(4):
                image = (heads[head] + rng.normal(0, 4, (32, 32))).clip(0, 255).astype(np.uint8)
                Image.fromarray(image).save(f"{folder}/sub{head:02}_{n}.png")
    command = ["--real", "real", "--fake", "fake", "--metrics", "manifold", "--out", "out"]
    assert evaluate.main([*command, "--subject-pattern", "sub[0-9]+"]) == 0
    known = report("out")["coverage"]
    assert evaluate.main(command) == 0
    assert abs(known["samples"] - known["real"]) < 0.2  # not told whose they are, each is found again:
    assert report("out")["coverage"]["samples"] > 0.8 > known["samples"] + 0.2
    reals, fakes = comparison.numbered(*(comparison.read_folder(f, "", "sub[0-9]+", False) for f in ("real", "fake")))
    c = comparison.from_folders("real", "fake", "sub[0-9]+", False, 46, 0, None, "out")
    assert len(c.samples) == len(c.chosen) == 46 and not {*c.samples.subjects} & {*c.reference.subjects}
    assert {*c.stand_in.subjects} == {*c.samples.subjects}
    for path in sorted(tmp_path.glob("fake/sub*"))[::8]:  # of every second head a slice less: half of the heads have
        path.unlink()  # fewer samples than real images, of which as many stand in
    c = comparison.from_folders("real", "fake", "sub[0-9]+", False, None, 0, None, "out")
    assert 40 <= len(c.samples) == len(c.chosen) < 48 and {*c.stand_in.subjects} == {*c.samples.subjects}
    few = [path for path in sorted(tmp_path.glob("fake/sub*")) if path.name < "sub12"]
    for path in {*tmp_path.glob("fake/sub*")} - {*few}:  # of 12 heads there are samples: those stand in first
        path.unlink()
    c = comparison.from_folders("real", "fake", "sub[0-9]+", False, None, 0, None, "out")
    assert len(c.samples) == len(c.chosen) == len(few) and {*c.samples.subjects} <= {*c.stand_in.subjects}
    sides = comparison.split_by_subject(
        reals, 40, 0, np.repeat(np.arange(24), 2)
    )  # two samples a head: half of all heads
    assert [len(np.unique(reals.subjects[side])) for side in sides] == [12, 12]
    assert len(reals) == len(fakes) == 96 and {*reals.subjects} == {*fakes.subjects} == {*range(24)}


def test_masks_among_pictures_are_left_out_and_counted(tmp_path, capsys):
    folder = pictures(tmp_path / "real", n=3)
    for name in ("000_mask", "001_seg"):
        Image.new("L", (32, 32)).save(f"{folder}/{name}.png")
    assert len(comparison.read_folder(folder, "--real", "", False)) == 3
    assert f"--real {folder}: 2 file(s) left out that are named as masks are" in capsys.readouterr().out


def test_samples_that_are_the_real_images_are_refused(tmp_path):
    real = pictures(tmp_path / "real")
    fake = shutil.copytree(real, tmp_path / "fake")
    with pytest.raises(
        UserError, match=r"fake/\d+.png: the same image as .*real/\d+.png, so --fake holds what it is comp"
    ):
        comparison.from_folders(real, str(fake), "", False, None, 0, None, "out")


def test_a_report_without_a_name_has_a_folder_of_its_own(tmp_path, monkeypatch):
    ticks = iter(["a", "a", "b"])  # the second one starts in the same second
    monkeypatch.setattr(files.time, "strftime", lambda form: next(ticks))
    folders = ["--real", pictures(tmp_path / "real"), "--fake", pictures(tmp_path / "fake", seed=1)]
    for _ in range(2):
        assert evaluate.main([*folders, "--metrics", "spectrum"]) == 0
    assert all(Path(f"results/evaluation-{tick}/report.json").exists() for tick in "ab")


def test_unreadable_files_are_named_counted_and_left_out_only_if_asked(tmp_path, capsys):
    real, fake = pictures(tmp_path / "real"), pictures(tmp_path / "fake", seed=1)
    (tmp_path / "fake" / "000.png").write_bytes(b"")
    (tmp_path / "fake" / "001.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    command = ["--real", real, "--fake", fake, "--metrics", "spectrum", "--out", "out"]
    assert evaluate.main(command) == 2
    error = capsys.readouterr().err
    assert "000.png" in error and "2 such file(s)" in error and "--skip-bad" in error and error.count("\n") == 1
    assert not Path("out").exists()
    assert evaluate.main([*command, "--skip-bad"]) == 0
    assert "2 unreadable file(s) left out" in capsys.readouterr().out


RAS = np.eye(4)


def volumes(folder, n=6, seed=0, gain=1.0, affine=RAS) -> str:
    """n smooth random heads as NIfTI: 20 slices of 32x32 with brain, stored in the given orientation, and 4 of air."""
    Path(folder).mkdir(parents=True)
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        head = ndimage.gaussian_filter(rng.normal(0, 1, (32, 32, 24)), (3, 3, 1))
        volume = (gain * np.rint((100 + 400 * head).clip(1, 1000))).astype(np.int16)
        volume[:4] = volume[..., 20:] = 0
        ras = nibabel.orientations.axcodes2ornt("RAS")
        turn = nibabel.orientations.ornt_transform(ras, nibabel.io_orientation(affine))
        nibabel.save(nibabel.Nifti1Image(nibabel.apply_orientation(volume, turn), affine), f"{folder}/h{i}.nii.gz")
    return str(folder)


def test_two_folders_of_volumes(tmp_path, capsys):
    """Slice by slice, each in a window of its volume, each volume a subject; what lies beside is not read."""
    turned = np.array([[0, 0, -1, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    real, fake = volumes(tmp_path / "real"), volumes(tmp_path / "fake", 3, seed=1, gain=10, affine=turned)
    Image.new("L", (64, 64)).save("fake/h0_z000_0.png")
    (tmp_path / "real" / "h0_seg.nii.gz").write_bytes(b"")
    command = ["--real", real, "--fake", fake, "--metrics", "kid", "spectrum", "--out", "out"]
    assert evaluate.main(command) == 0
    out = capsys.readouterr().out
    assert "120 slices of 6 volumes" in out and "60 slices of 3 volumes" in out
    assert "subjects: 3 in the place of samples, 3 others" in out
    rows = report("out")
    assert rows["grey levels, distance [of 255]"]["samples"] < 8
    same = comparison.read_folder(volumes(tmp_path / "same", gain=10, affine=turned), "--real", "", False)
    known = comparison.read_folder(real, "--real", "", False)
    assert known.images.shape == (120, 1, 32, 32)
    assert np.abs(known.images.astype(int) - same.images).max() <= 1
    assert np.array_equal(known.subjects, np.repeat([f"h{i}" for i in range(6)], 20))
    halves = comparison.read_folder(real, "--real", "h[0-2]|h", False)
    assert np.unique(halves.subjects, return_counts=True)[1].tolist() == [60, 20, 20, 20]


def test_a_bad_volume_is_named(tmp_path, capsys):
    real, fake = volumes(tmp_path / "real"), volumes(tmp_path / "fake", seed=1)
    (tmp_path / "fake" / "h2.nii.gz").write_bytes(b"hello")
    command = ["--real", real, "--fake", fake, "--metrics", "spectrum", "--out", "out"]
    assert evaluate.main(command) == 2
    error = capsys.readouterr().err
    assert "h2.nii.gz: damaged, or not a NIfTI volume" in error and "--skip-bad" in error and error.count("\n") == 1
    assert not Path("out").exists()
    assert evaluate.main([*command, "--skip-bad"]) == 0
    other = nibabel.Nifti1Image(np.arange(30 * 32 * 20, dtype=np.int16).reshape(30, 32, 20), np.eye(4))
    nibabel.save(other, "fake/h2.nii.gz")
    assert evaluate.main([*command[:-1], "again"]) == 2
    assert "h2.nii.gz: 32x30, but h0.nii.gz is 32x32" in capsys.readouterr().err


def odd_one(folder, size=(40, 32)):
    pictures(folder)
    Image.new("L", size).save(f"{folder}/odd.png")


def deep_one(folder):
    pictures(folder)
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(f"{folder}/deep.png")


class NaN(torch.nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3)) * torch.nan


@pytest.mark.parametrize(
    ("make_fake", "flags", "expected"),
    [
        (lambda folder: None, [], "no such folder"),
        (lambda folder: folder.mkdir(), [], "no pictures here"),
        (lambda folder: pictures(folder, n=1), [], "1 images; 40 are needed"),
        (odd_one, [], "odd.png: 32x40"),
        (deep_one, [], "deep.png: more than 8 bits"),
        (lambda folder: pictures(folder, size=(32, 40)), [], "images of 32x40, but those of --real"),
        (pictures, ["--features", "nan.ts"], "nan.ts .*not finite"),
        (pictures, ["--features", "missing.ts"], "not a TorchScript file"),
        (pictures, ["--features", "inception"], "--features inception needs --inception-weights"),
        (pictures, ["--features", "inception", "--inception-weights", "no.pth"], "no.pth: no such weights file"),
        (pictures, ["--inception-weights", "no.pth"], "--inception-weights belongs to --features inception"),
        (pictures, ["--metrics", "mask"], "--metrics mask needs --ckpt"),
        (pictures, ["--ckpt", "x.pt"], "--ckpt: two folders are compared, nothing is drawn; leave it out"),
        (pictures, ["--guidance", "3"], "--guidance: two folders are compared"),
        (pictures, ["--n", "3"], "--n is 3"),
        (pictures, ["--n", "many"], "invalid int value"),
        (pictures, ["--out", "taken/below"], "cannot write there"),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path, capsys, make_fake, flags, expected):
    real = pictures(tmp_path / "real", seed=1)
    make_fake(tmp_path / "fake")
    torch.jit.script(NaN()).save("nan.ts")
    Path("taken").write_text("a file")
    command = ["--real", real, "--fake", str(tmp_path / "fake"), "--out", "out", "--metrics", "fid", *flags]
    assert evaluate.main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1

    assert re.search(expected, error), error
    assert not Path("out/report.json").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--real", "a"], "--real and --fake go together"),
        (["--real", "", "--fake", ""], "--real and --fake go together"),
        (["--real", "a", "--fake", "b", "--device", "cpu"], "--device: two folders are compared"),
        (["--real", "a", "--fake", "b", "--batch-size", "3"], "--batch-size: two folders are compared"),
        (["--real", "a", "--fake", "b", "--split", "val"], "--split: two folders are compared"),
        (["--n", "70"], "--n 70: give 40 to 56"),
        (["--skip-bad"], "--skip-bad: it is for --real and --fake"),
        (["--metrics", "paired"], "no one truth"),
        (["--ckpt", "no.pt"], "no.pt: no such checkpoint"),
        (["--sample-steps", "2000"], "--sample-steps 2000 is more than the 1000 steps"),
    ],
)
def test_bad_input_with_a_checkpoint(ckpt, capsys, flags, expected):
    command = flags if "--real" in flags or "--ckpt" in flags else ["--ckpt", ckpt, *flags]
    assert evaluate.main(command) == 2
    assert expected in capsys.readouterr().err


# ---------------------------------------------------------------- what the scores mean


def test_a_blur_leaves_the_image_as_bright_as_it_was():
    """Of whole numbers the filter rounds down, once along each axis: a grey level in all."""
    real, training = rendered("test", 0, 8), rendered("train", 0, 60)
    blurred = damaged(real, training.images, "test", np.arange(8))["blur"]
    there = real.images > 25
    assert blurred.dtype == np.uint8 and abs(blurred[there].mean() - real.images[there].mean()) < 2
    assert blurred.mean() == pytest.approx(real.images.mean(), abs=0.02)


def test_the_benchmark_of_damage_says_first_what_it_cannot_do(ckpt, monkeypatch, capsys):
    monkeypatch.setattr(damage, "damaged", lambda *asked: pytest.fail("it renders"))
    for flags, says in (
        (["--n", "57"], "--n is 57; it must be at most 56"),
        (["--n", "0"], "--n is 0; it must be at least 40"),
        (["--n", "50", "--late", ckpt], f"--late {ckpt}: a model of the embedded data is needed"),
        (["--n", "50", "--early", "pretrained", "--late", "gone.pt"], "gone.pt: no such checkpoint"),
        (["--n", "50", "--late", ""], "an empty name for a checkpoint"),
        (["--precision", "fp8"], "invalid choice: 'fp8'"),
    ):
        assert damage.main(flags) == 2
        error = capsys.readouterr().err
        assert says in error and error.startswith("error: ") and error.count("\n") == 1


def test_each_score_sees_the_damage_it_is_there_for():
    """The ordering that docs/evaluation.md tabulates, on few images."""
    n = 150
    real, training = rendered("test", 0, 3 * n), rendered("train", 0, 2 * n)
    images = damaged(real.part(np.arange(n)), training.images, "test", np.arange(n))
    images["copies"] = training.images[np.random.default_rng(0).integers(0, 10, n)]
    got = {
        name: {row.metric: row for row in scores(x, real, n, training, leave_out=("two-sample",))}
        for name, x in images.items()
    }

    def beyond(metric, worse, better="real", sign=1):
        a, b = got[worse][metric], got[better][metric]
        return sign * (a.samples - b.samples) > 0.15 * max(abs(a.samples), abs(b.samples))

    for name in ("noise", "blur", "no lesions", "copies"):
        assert got[name]["FID"].samples > 1.3 * got["real"]["FID"].samples, name
        assert got[name]["KID x 1000"].samples > 1.3 * got["real"]["KID x 1000"].samples, name
    assert beyond("coverage", "copies", sign=-1) and beyond("recall", "copies", sign=-1)
    assert beyond("density", "noise", sign=-1)
    assert got["copies"]["memorisation"].samples > 0.9 > 0.6 > got["real"]["memorisation"].samples
    for name in ("noise", "blur"):
        assert beyond("power spectrum, difference [dB]", name)
    assert beyond("Dice of lesion, 12 pixels or more", "no lesions", sign=-1)
    assert got["no lesions"]["Dice of lesion, 12 pixels or more"].samples < 0.1
    assert (
        got["false lesions"]["false lesion, share of images"].samples
        > 0.5
        > 0.1
        > got["real"]["false lesion, share of images"].samples
    )
    assert got["wrong contrast"]["contrast as asked"].samples < 0.1 < 0.9 < got["real"]["contrast as asked"].samples
    # The contrasts are permuted: the set as a whole is as it was, and no distance between sets can see it. Nor do they
    # see lesions in the few that should have none.
    for name in ("wrong contrast", "false lesions"):
        assert got[name]["FID"].samples < 1.1 * got["real"]["FID"].samples


def test_real_images_obey_their_masks_as_well_as_real_images_do():
    real, judge = rendered("val", 0, 40), load_segmenter()
    c = compare(real.images[:30], real, np.arange(30), np.arange(30, 40), judge=judge)
    rows = {row.metric: row for row in condition_fidelity(c)}
    dice, contrast = rows["Dice of lesion, 12 pixels or more"], rows["contrast as asked"]
    assert dice.samples == dice.real > 0.6 and dice.wrong < 0.2
    assert contrast.samples == contrast.real > 0.9 and contrast.wrong < 0.7


def test_fidelity_of_small_large_and_empty_masks_and_of_the_samples_own_contrast():
    """Found as wanted in the large lesion, not at all in the small one, a false one, and every contrast wrong."""
    masks = np.zeros((3, 64, 64), np.uint8)
    masks[0, 10:15, 10:15], masks[1, 20:22, 20:22] = 1, 1  # 25 and 4 pixels
    kinds = np.array([0, 2, 1])
    asked = Slices(np.zeros((3, 1, 64, 64), np.uint8), masks, {"contrast": kinds + 1}, LESION, np.arange(3))
    c = compare(asked.images, asked, np.arange(3), np.arange(3), judge=load_segmenter())
    found = np.where(masks == 1, 4, 0)
    found[1], found[2, :5, :4] = 0, 4
    c.verdicts = Verdict(found, np.array([1, 1, 0]), np.zeros((3, 1))), Verdict(4 * masks, kinds, np.zeros((3, 1)))
    c.partners = np.array([1, 2, 0])
    large, small, share, area, contrast = condition_fidelity(c)
    assert (large.samples, large.real, large.wrong) == (1, 1, 0) and "12 pixels or more" in large.metric
    assert (small.samples, small.real, small.wrong) == (0, 1, 0) and "under 12 pixels" in small.metric
    assert (share.samples, share.real, share.wrong) == (1, 0, 1) and "false lesion, share" in share.metric
    assert (area.samples, area.real, area.wrong) == (20, 0, 25) and "pixels" in area.metric
    assert (contrast.samples, contrast.real) == (0, 1) and contrast.wrong == pytest.approx(1 / 3)


def test_a_partner_is_another_subjects():
    """And not one and the same, or always the next."""
    whose = np.repeat(np.arange(5), 8)
    real = bare(np.zeros((80, 1, 8, 8), np.uint8), np.concatenate([whose, whose + 5]))
    c, other = (compare(real.images[:40], real, np.arange(40), np.arange(40, 80), seed=seed) for seed in (0, 1))
    assert (whose[c.partners] != whose).all() and not np.array_equal(c.partners, other.partners)
    assert len(np.unique(c.partners)) > 20 and {*whose[c.partners[:8]]} == {1, 2, 3, 4}


def test_each_distance_compares_samples_with_the_reference_and_so_with_the_stand_ins():
    """Three sets that differ in mean and number, so that no two of them can be exchanged unnoticed."""
    rng = np.random.default_rng(0)
    fakes, stand_in, reference = (rng.normal(m, 1, (n, 3)) for m, n in zip((0, 2.2, 0.5), (210, 230, 260), strict=True))
    levels = [rng.integers(0, 60 * (i + 1), (n, 1, 8, 8)).astype(np.uint8) for i, n in enumerate((210, 230, 260))]
    c = Comparison(
        bare(levels[0]), bare(np.concatenate(levels[1:])), *np.split(np.arange(490), [230]), Extractor("", "", pixels)
    )
    c.features = Sides(fakes, stand_in, reference)
    got = {row.metric: row for ask in (questions.fid, questions.kid, questions.manifold) for row in ask(c)}
    sigma = median_distance(reference)
    measures = {
        "FID": frechet_distance_of_features,
        "FID, extrapolated": lambda a, b: fid_infinity(a, b)[0],
        "KID x 1000": lambda a, b: 1000 * kid(a, b, subset_size=210)[0],
        "Gaussian MMD x 1000": cmmd,
        "Gaussian MMD, median bandwidth x 1000": lambda a, b: gaussian_mmd(a, b, sigma),
    }
    expected = {name: (measure(fakes, reference), measure(stand_in, reference)) for name, measure in measures.items()}
    manifolds = [precision_recall_density_coverage(reference, x) for x in (fakes, stand_in)]
    expected |= {name: tuple(getattr(m, name) for m in manifolds) for name in manifolds[0]._fields}
    assert got.keys() == expected.keys()
    for name, row in got.items():
        assert (row.samples, row.real) == pytest.approx(expected[name]), name
        assert row.margin > 0, name  # also of KID, where a subset is all of the samples
    assert (
        c.fid_line.fid_infinity == expected["FID, extrapolated"][0] and "too low" not in got["FID, extrapolated"].note
    )
    c.features = Sides(*(rng.normal(size=(n, 60)) for n in (210, 230, 260)))
    assert "too low, as the line bends where N is not many times the 60 features" in questions.fid(c)[1].note
    c.features = Sides(fakes, stand_in, np.ones((260, 3)))  # without a median distance
    assert [row.metric for row in questions.kid(c)] == ["KID x 1000", "Gaussian MMD x 1000"]
    _, grey, spread = questions.spectrum(c)
    shares = [intensity_histogram(images).mean(0) for images in levels]
    assert grey.samples == pytest.approx(histogram_distance(shares[0], shares[2]))
    assert grey.real == pytest.approx(histogram_distance(shares[1], shares[2]))
    deviations = [100 * (images >= 26).mean((1, 2, 3)).std() for images in levels]
    assert (spread.samples, spread.real) == pytest.approx(
        (deviations[0] - deviations[2], deviations[1] - deviations[2])
    )


def test_the_spread_of_the_foreground_is_of_sizes_whatever_their_grey():
    """Heads that are half as different in size as real ones have half of their deviation."""
    sizes = np.random.default_rng(0).integers(20, 61, 300)
    heads, narrow = (
        100 * (np.arange(64) < s[:, None]).reshape(-1, 1, 8, 8).astype(np.uint8) for s in (sizes, 20 + sizes // 2)
    )
    [*_, row] = questions.spectrum(compare(2 * narrow[:150], bare(heads), np.arange(150), np.arange(150, 300)))
    deviation = 100 / 64 * sizes[150:].std()
    assert row.samples == pytest.approx(-deviation / 2, rel=0.2) and abs(row.real) < 0.2 * deviation
    assert 0 < row.margin < 0.3 * deviation and f"of real images {deviation:.2f}" in row.note


def test_memorisation_judges_samples_as_samples_and_real_images_as_real_ones():
    rng = np.random.default_rng(0)
    train, pool, samples = (rng.integers(0, 256, (n, 1, 4, 4)).astype(np.uint8) for n in (60, 60, 30))
    for copied in ("samples", "stand_in", "neither"):
        pictures = {"samples": samples.copy(), "stand_in": pool.copy()}
        if copied != "neither":
            pictures[copied][:30] = train[:30]
        real = bare(pictures["stand_in"], np.arange(60))
        c = compare(pictures["samples"], real, np.arange(30), np.arange(30, 60), train=bare(train))
        [row] = questions.memorisation(c)
        assert (row.samples == 1) == (copied == "samples") and (row.real == 1) == (copied == "stand_in")


class Phantom:
    class config:
        data = "phantom"


def test_train_on_synthetic_trains_on_samples_and_on_real_images_alike_and_tests_on_other_subjects(monkeypatch):
    real, trained_on, tested_on = rendered("val", 0, 20), [], []
    samples, judge = 255 - real.images[:8], load_segmenter()

    class Watched:
        def judge(self, images):
            tested_on.append(images)
            return judge.judge(images)

    def train_segmenter(images, labels, *rest):
        trained_on.append((images, labels, rest))
        return Watched()

    monkeypatch.setattr(questions, "train_segmenter", train_segmenter)
    c = compare(samples, real, np.arange(8), np.arange(8, 20), model=Phantom())
    [row] = questions.train_on_synthetic(c)
    assert trained_on[0][0] is samples and trained_on[1][0] is c.stand_in.images
    assert all(np.array_equal(labels, real.masks[:8]) for _, labels, _ in trained_on)
    assert str(trained_on[0][2]) == str(trained_on[1][2]) and "8 pairs" in row.note
    large = (real.masks[8:] == 1).sum((1, 2)) >= 12
    assert all(np.array_equal(images, real.images[8:][large]) for images in tested_on) and len(tested_on) == 2


@pytest.mark.parametrize(("where", "told"), [(slice(8, 20), "0 of 12 real images"), (slice(0, 8), "0 of 8 masks")])
def test_train_on_synthetic_without_a_lesion_is_refused_before_it_trains(monkeypatch, where, told):
    real = rendered("val", 0, 20)
    real.masks[where] = 0
    monkeypatch.setattr(questions, "train_segmenter", lambda *any: pytest.fail("trained"))
    with pytest.raises(UserError, match=told):
        questions.train_on_synthetic(compare(real.images[:8], real, np.arange(8), np.arange(8, 20), model=Phantom()))


def test_contrasts_that_the_judge_never_met_are_not_judged():
    real = rendered("val", 0, 20)
    unknown = replace(real, masks=None, vocabulary=Vocabulary((), {"contrast": ("t1", "t1ce", "flair")}))
    c = compare(real.images[:10], unknown, np.arange(10), np.arange(10, 20), judge=load_segmenter())
    assert condition_fidelity(c) == []


def test_the_parts_of_the_inception_score_are_not_runs_of_neighbours():
    """Sorted by subject, each of ten parts would hold one class, and the score would be 1 instead of 10."""
    real = bare(np.zeros((400, 1, 8, 8), np.uint8), np.arange(400))
    c = compare(real.images[:200], real, np.arange(200), np.arange(200, 400))
    one_class_a_part = 100.0 * np.eye(10)[np.repeat(np.arange(10), 20)]
    c.extractor, c.features = Extractor("", "", pixels, np.eye(10)), Sides(*[one_class_a_part] * 3)
    [row] = questions.inception(c)
    assert row.samples > 6 and row.real > 6 and 0 < row.margin < 3


def test_the_nearest_training_image_is_found_in_whichever_block_and_nothing_is_converted_whole(monkeypatch):
    rng, sizes = np.random.default_rng(0), []
    train = rng.integers(0, 256, (5000, 1, 4, 4)).astype(np.uint8)
    pictures = train[np.r_[3, 2047, 2048, 4999, 10:2100]]
    pictures[2, 0, 0, 0] ^= 1
    monkeypatch.setattr(comparison, "BLOCK", 2048 * 16)
    nearest = comparison.nearest
    monkeypatch.setattr(comparison, "nearest", lambda a, b: sizes.append((len(a), len(b))) or nearest(a, b))
    distance, index = nearest_training(pictures, train)
    assert index.tolist() == [3, 2047, 2048, 4999, *range(10, 2100)]
    assert distance[:4] == pytest.approx([0, 0, 1 / 255, 0]) and (distance[4:] == 0).all()
    assert max(max(pair) for pair in sizes) == 2048 and len(sizes) == 6


def test_each_image_is_transformed_once_whatever_the_rounds(monkeypatch):
    seen = []
    power = comparison.radial_power_spectrum
    monkeypatch.setattr(comparison, "radial_power_spectrum", lambda x: seen.append((len(x), x.dtype)) or power(x))
    real = bare(np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8)).astype(np.uint8), np.arange(60))
    questions.spectrum(compare(real.images[:20], real, np.arange(20), np.arange(20, 60)))
    assert seen == [(20, np.uint8), (20, np.uint8), (40, np.uint8)]


# ---------------------------------------------------------------- subjects


def test_no_subject_is_on_both_sides():
    rng = np.random.default_rng(0)
    for seed in range(30):
        subjects = np.repeat(rng.permutation(40)[:10], rng.integers(5, 40, 10))
        data = bare(np.zeros((len(subjects), 1, 1, 1), np.uint8), subjects)
        chosen, others = split_by_subject(data, 30, seed)
        assert len(chosen) == 30 and not np.isin(subjects[chosen], subjects[others]).any()
        assert len(np.unique(subjects[chosen])) >= 4  # not one head alone, though one may have 30
        left = np.setdiff1d(np.unique(subjects), np.r_[subjects[chosen], subjects[others]])
        assert left.size <= 1 or not np.isin(left, subjects[others]).any()


def test_images_that_are_subjects_of_their_own_are_split_as_ever():
    data = bare(np.zeros((500, 1, 1, 1), np.uint8), np.arange(500))
    chosen, others = split_by_subject(data, 100, 3)
    expected = np.sort(comparison.generator(3).permutation(500)[:100])
    assert np.array_equal(chosen, expected) and np.array_equal(others, np.setdiff1d(np.arange(500), expected))
    unknown = split_by_subject(replace(data, subjects=None), 100, 3)
    assert np.array_equal(unknown[0], chosen)


@pytest.mark.parametrize(
    ("subjects", "told"), [(1, "all held-out images are of one subject"), (6, "3 in the place of samples, 3 others")]
)
def test_few_subjects_are_told(subjects, told):
    whose = np.repeat(np.arange(subjects), 120 // subjects)
    real = bare(np.random.default_rng(0).integers(0, 256, (120, 1, 8, 8)).astype(np.uint8), whose)
    chosen, others = split_by_subject(real, 50, 0)
    c = compare(real.images[chosen], real, chosen, others)
    assert told in c.warnings[0]
    assert (questions.fid(c)[0].margin is None) == (subjects == 1)
    if subjects == 1:
        assert c.partners is None
        with pytest.raises(UserError, match="subjects; it needs at least 4"):
            questions.two_sample(c)


def heads(first: int, subjects: int = 10, slices: int = 40) -> Slices:
    """Slices of made-up subjects, 16x16: a face that is the subject's own, a little moved from slice to slice; a bright
    lesion in every other slice."""
    images, masks = [], []
    for subject in range(first, first + subjects):
        rng = np.random.default_rng(subject)
        face = ndimage.gaussian_filter(rng.normal(110, 90, (16, 16)), 1.2)
        for k in range(slices):
            image = np.clip(
                face + 10 * ndimage.gaussian_filter(rng.normal(0, 1, (16, 16)), 1) + rng.normal(0, 2), 0, 250
            )
            mask = np.zeros((16, 16), np.uint8)
            if k % 2:
                v, u = rng.integers(1, 10, 2)
                mask[v : v + 5, u : u + 5] = 1
            images.append(np.where(mask == 1, 255, image).astype(np.uint8))
            masks.append(mask)
    vocabulary, whose = Vocabulary(("background", "lesion")), np.repeat(np.arange(subjects), slices)
    return Slices(np.stack(images)[:, None], np.stack(masks), {}, vocabulary, whose)


def ask(c: Comparison, *names) -> dict[str, Row]:
    return {row.metric: row for name in names for row in QUESTIONS[name].ask(c)}


def test_on_ten_subjects_a_perfect_generator_scores_as_real():
    """It draws heads that nobody has seen. Split by slice, the real images would seem far better than it."""
    real, perfect, train = heads(0), heads(100, 5), heads(200)
    chosen, others = split_by_subject(real, 200, 0)
    c = compare(perfect.images, real, chosen, others, train=train)
    rows = ask(c, "kid", "fid", "manifold", "spectrum", "memorisation", "two-sample")
    assert c.choices["subjects"] == "5 in the place of samples, 5 others to compare with" and not c.warnings[1:]
    for name in ("KID x 1000", "FID", "Gaussian MMD, median bandwidth x 1000", "coverage", "memorisation"):
        assert abs(rows[name].samples - rows[name].real) < rows[name].margin, name
    assert rows["FID"].real > 0.5 * rows["FID"].samples
    assert rows["two-sample test, accuracy"].samples - rows["two-sample test, accuracy"].margin < 0.5
    half = np.split(np.random.default_rng(0).permutation(400), 2)
    by_slice = compare(perfect.images, real, *half, train=train)
    assert ask(by_slice, "fid")["FID"].real < 0.2 * rows["FID"].real


def test_on_ten_subjects_copies_are_found_and_lesions_where_none_were_asked_for():
    real, train = heads(0), heads(200)
    chosen, others = split_by_subject(real, 200, 0)
    copies = compare(train.images[::2], real, chosen, others, train=train)
    assert ask(copies, "memorisation")["memorisation"].samples == 1
    painted = real.images[chosen].copy()
    healthy = ~real.masks[chosen].any((1, 2))
    painted[healthy, :, 2:12, 2:12] = 255
    rows = ask(compare(painted, real, chosen, others), "mask")
    assert rows["Dice of lesion, 12 pixels or more"].samples == rows["Dice of lesion, 12 pixels or more"].real == 1
    share, area = rows["false lesion, share of images"], rows["false lesion, area [pixels]"]
    assert (share.samples, share.real, area.samples, area.real) == (1, 0, 100, 0)


def test_the_margin_of_a_dice_is_that_of_the_subjects():
    """Each subject's samples obey, or do not: five subjects know less than their 200 slices."""
    real = heads(0)
    chosen, others = split_by_subject(real, 200, 0)
    whose = real.subjects[chosen]
    samples = real.images[chosen].copy()
    samples[np.isin(whose, np.unique(whose)[:2])] = 0
    dice = ask(compare(samples, real, chosen, others), "mask")["Dice of lesion, 12 pixels or more"]
    assert dice.samples == pytest.approx(0.6) and dice.margin > 0.4
    alone = compare(samples, replace(real, subjects=None), chosen, others)
    assert ask(alone, "mask")["Dice of lesion, 12 pixels or more"].margin < 0.15


def test_likelihoods_images_are_of_many_subjects(monkeypatch, ckpt):
    seen = []
    model = load_model(ckpt)
    real = replace(rendered("val", 0, 20), subjects=np.repeat(np.arange(5), 4))
    real = replace(
        real, images=real.images[np.repeat(np.arange(20), 10)], masks=real.masks[np.repeat(np.arange(20), 10)]
    )
    real = replace(real, labels={"contrast": np.ones(200, int)}, subjects=np.repeat(np.arange(20), 10))
    batch = Slices.batch
    monkeypatch.setattr(Slices, "batch", lambda data, i: seen.append(data.subjects[i]) or batch(data, i[:2]))
    monkeypatch.setattr(questions, "LIKELIHOOD_TIMES", 3)
    monkeypatch.setattr(questions, "average", lambda c, metric, values, subjects, **rest: subjects)
    questions.likelihood(compare(real.images[:100], real, np.arange(100), np.arange(100, 200), model=model))
    assert len(seen[0]) == 64 and len(np.unique(seen[0])) == 10


def test_two_folders_are_compared_in_equal_numbers(tmp_path):
    """As many samples as real images in their place, both against the same other real images."""
    real, fake = pictures(tmp_path / "real", n=130), pictures(tmp_path / "fake", n=100, seed=1)
    c = comparison.from_folders(real, fake, "", False, None, 0, None, "out")
    assert len(c.samples) == len(c.stand_in) == len(c.reference) == 65
    row = questions.fid(c)[0]
    assert abs(row.samples - row.real) < row.margin
    assert questions.kid(c)[0].note.startswith("all; ")  # one subset of 65, not 100
    c = comparison.from_folders(real, fake, "", False, 40, 0, None, "out")
    assert (len(c.samples), len(c.stand_in), len(c.reference)) == (40, 40, 90)
    assert questions.kid(c)[0].note.startswith("mean of 100 subsets of 40; ")
    with pytest.raises(UserError, match="--n 66: 100 samples and 130 real images, .* give 65"):
        comparison.from_folders(real, fake, "", False, 66, 0, None, "out")


def test_two_folders_with_subjects_in_their_names(tmp_path):
    for name in ("real", "fake"):
        for s in range(12):
            for i in range(10):
                noise = np.random.default_rng([s, i]).integers(0, 256, (16, 16)).astype(np.uint8)
                write(tmp_path / name / f"p{s}_{i}.png", noise)
    flags = [
        "--real",
        str(tmp_path / "real"),
        "--fake",
        str(tmp_path / "fake"),
        "--metrics",
        "spectrum",
        "--out",
        "out",
    ]
    assert evaluate.main([*flags, "--subject-pattern", "^[^_]+"]) == 0
    choices = json.loads(Path("out/report.json").read_text())["choices"]
    assert choices["subjects"] == "6 in the place of samples, 6 others to compare with"
    assert evaluate.main([*flags, "--subject-pattern", "x(.)"]) == 2


def test_a_folder_whose_held_out_images_are_of_one_subject(tmp_path, capsys):
    """Ten subjects leave one for validation and one for the test: what is left to trust is said."""
    data = str(subject_set(tmp_path / "data", subjects=10, n=90))
    flags = ["--preset", "tiny", "--steps", "1", "--precision", "fp32", "--num-classes", "2", "--image-size", "16"]
    assert train.main([*flags, "--data", data, "--out", "run"]) == 0
    metrics = ["spectrum", "mask", "two-sample"]
    assert evaluate.main(["--ckpt", "run", *QUICK, "--metrics", *metrics]) == 0
    printed = capsys.readouterr().out
    assert "warning: all held-out images are of one subject" in printed
    assert "warning: not answered: two-sample: " in printed and "needs at least 4" in printed


# ---------------------------------------------------------------- the report


ROWS = [Row("a <b> & c", 0.51234, 0.01, None, 12.3456, goal="0"), Row("d", 123.4)]


def test_figures_and_the_table():
    assert figure(None) == "" and figure(0.51234, 0.01) == "0.512 ± 0.010" and figure(123.456) == "123.5"
    lines = table(ROWS).splitlines()
    assert len(lines) == 3 and "0.512 ± 0.010" in lines[1] and "12.35" in lines[1] and lines[2].startswith("d")


def test_the_page_escapes_what_it_is_given():
    page = page_of("<script>", ROWS, {"k": "<v>"}, [("p", "AAAA")], NO_PLOTS)
    assert "<script>" not in page and "a &lt;b&gt; &amp; c" in page and "&lt;v&gt;" in page and "matplotlib" in page


def test_without_matplotlib_the_rest_is_written(monkeypatch, tmp_path, capsys):
    import builtins

    real_import = builtins.__import__

    def no_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    real, fake = pictures(tmp_path / "real"), pictures(tmp_path / "fake", seed=1)
    assert evaluate.main(["--real", real, "--fake", fake, "--metrics", "spectrum", "--out", "out"]) == 0
    assert "pip install -r requirements/plots.txt" in capsys.readouterr().out
    assert Path("out/report.html").exists()


def test_the_report_is_written_first_and_a_poor_terminal_costs_nothing(tmp_path, monkeypatch):
    """Its encoding lacks the sign of a margin."""
    real, fake = pictures(tmp_path / "real"), pictures(tmp_path / "fake", seed=1)
    command = ["--real", real, "--fake", fake, "--metrics", "spectrum", "--out", "out"]
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        assert evaluate.main(command) == 0
        terminal.flush()
    assert rb" \xb1 " in terminal.buffer.getvalue() and "margin" in Path("out/report.json").read_text()

    def gone(*any):
        raise OSError(5, "the terminal went away")

    monkeypatch.setattr(evaluate, "table", gone)
    assert evaluate.main([*command[:-1], "again"]) == 2
    assert Path("again/report.json").exists() and Path("again/report.html").exists()


def test_what_is_no_number_is_no_row_and_json_is_strict(tmp_path):
    for wrong in ({"samples": np.nan}, {"samples": 1.0, "margin": np.inf}, {"samples": 1.0, "real": np.nan}):
        with pytest.raises(UserError, match="Dice is not a finite number"):
            Row("Dice", **wrong)
    real = bare(np.zeros((12, 1, 8, 8), np.uint8), np.arange(12))
    row = Row("Dice", 1.0)
    row.samples = np.nan  # by whatever way
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path, "title", [row], compare(real.images[:6], real, np.arange(6), np.arange(6, 12)))
    assert not list(tmp_path.glob("report*"))


def test_a_question_without_an_answer_costs_no_other(tmp_path, monkeypatch, capsys):
    def impossible(c):
        raise UserError("nothing to see")

    monkeypatch.setitem(QUESTIONS, "fid", QUESTIONS["fid"]._replace(ask=impossible))
    command = ["--real", pictures(tmp_path / "a"), "--fake", pictures(tmp_path / "b", seed=1), "--out", "out"]
    assert evaluate.main([*command, "--metrics", "fid", "spectrum"]) == 0
    assert "not answered: fid: nothing to see" in capsys.readouterr().out
    assert "fid: nothing to see" in json.loads(Path("out/report.json").read_text())["choices"]["warnings"]
    assert evaluate.main([*command[:-1], "none", "--metrics", "fid"]) == 2
    assert "nothing to see" in capsys.readouterr().err and not Path("none/report.json").exists()


def test_a_new_question_is_a_function_and_a_line(tmp_path, monkeypatch, capsys):
    def brightness(c):
        return [questions.compared(c, "brightness", lambda a, b: a.mean() - b.mean(), c.features, "0")]

    monkeypatch.setitem(QUESTIONS, "bright", questions.Question(brightness, "is it as bright?"))
    command = ["--real", pictures(tmp_path / "a"), "--fake", pictures(tmp_path / "b", seed=1), "--out", "out"]
    assert evaluate.main([*command, "--metrics", "bright"]) == 0
    assert report("out")["brightness"]["margin"] > 0
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    assert "bright: is it as bright?" in " ".join(capsys.readouterr().out.split())
