"""The evaluation as a program: every score against what it must be for images whose quality is known."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_sets import split_set

import ddpm.runtime.run
import evaluate
import train
from benchmarks.damage import damaged, scores
from ddpm.data import Slices, phantom
from ddpm.evaluation import questions as evaluation
from ddpm.evaluation.questions import Row, Sets, memorisation_rows, nearest_training, obedience_rows, with_margin
from ddpm.evaluation.report import NO_PLOTS, figure, page_of, table
from ddpm.metrics import segmenter
from ddpm.metrics.fid import fid_infinity, frechet_distance_of_features
from ddpm.metrics.kid import cmmd, kid
from ddpm.metrics.manifold import precision_recall_density_coverage
from ddpm.metrics.segmenter import Verdict, load_segmenter
from ddpm.metrics.spectrum import histogram_distance, intensity_histogram
from ddpm.runtime import checkpoint
from ddpm.runtime.config import Config
from ddpm.schedule import make_schedule


@pytest.fixture(scope="session")
def ckpt(tiny_run):
    return str(tiny_run / "checkpoints" / "step_000040.pt")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Trainings inside the evaluation take a few steps."""
    monkeypatch.setattr(evaluation, "USEFUL_STEPS", 2)
    monkeypatch.setattr(evaluate, "JUDGE_STEPS", 2)


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
    contrasts = np.array([s.contrast for s in subjects])
    labels = phantom.to_label_set(tissue, "lesion")
    return Slices(images[:, None], labels, contrasts, phantom.CLASSES["lesion"], phantom.CONTRASTS)


def report(out) -> dict:
    return {row["metric"]: row for row in json.loads((Path(out) / "report.json").read_text())["rows"]}


# ---------------------------------------------------------------- a checkpoint


QUICK = ("--n", "40", "--sample-steps", "2", "--out", "out")


def test_a_checkpoint_gives_a_table_and_a_report(ckpt, capsys):
    metrics = ("kid", "fid", "manifold", "spectrum", "memorisation", "mask", "useful", "likelihood")
    assert evaluate.main(["--ckpt", ckpt, *QUICK, "--metrics", *metrics]) == 0
    printed = capsys.readouterr().out
    assert "sampling will take about" in printed.split("KID")[0]  # before it starts, not after
    assert "FID wants 2,048 images or more, here are 40" in printed
    rows = report("out")
    for name in ("KID x 1000", "FID", "precision", "coverage", "memorisation", "contrast as asked"):
        assert name in rows and name in printed
        assert np.isfinite(rows[name]["samples"])
    assert list(rows)[0] == "KID x 1000"  # below 2,048 images KID leads
    assert 0 < rows["bits per dimension, at most"]["samples"] < 20
    choices = json.loads(Path("out/report.json").read_text())["choices"]
    assert load_segmenter().fingerprint() in choices["features"] and "step 40" in choices["model"]
    page = Path("out/report.html").read_text()
    assert "data:image/png;base64," in page and "://" not in page  # nothing to load from elsewhere


def test_the_same_seed_gives_the_same_scores(ckpt):
    for out in ("a", "b"):
        assert evaluate.main(["--ckpt", ckpt, *QUICK[:-1], out, "--metrics", "kid", "mask"]) == 0
    assert report("a") == report("b")
    assert evaluate.main(["--ckpt", ckpt, *QUICK[:-1], "c", "--metrics", "kid", "mask", "--seed", "1"]) == 0
    assert report("a") != report("c")


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
    assert evaluate.main(command) == 0
    assert "training a judge" not in capsys.readouterr().out


def test_the_judge_of_ones_own_data_is_trained_again_when_its_code_changes(tmp_path, capsys, monkeypatch, own_cache):
    config = Config(data=str(split_set(tmp_path / "data")), image_size=[16, 16])
    pairs = train.load_data(config, "train")
    judges = []
    for code in ("", "", "edited"):
        if code:
            monkeypatch.setattr(segmenter, "CODE", code)
        judges.append(evaluate.make_judge(config, pairs)[0])
        assert ("training a judge" in capsys.readouterr().out) == (len(judges) != 2)
    assert len({judge.fingerprint() for judge in judges}) == 1 and not any(judge.training for judge in judges)
    [*_, path] = own_cache.glob("segmenter-*.pt")
    path.write_bytes(path.read_bytes()[:-10])
    assert evaluate.make_judge(config, pairs)[0].fingerprint() == judges[0].fingerprint()


def test_a_sample_is_its_masks_own_whatever_is_drawn_beside_it(ckpt):
    loaded = checkpoint.load(ckpt)
    config, unet = loaded["config"], checkpoint.load_unet(loaded, "ema", ckpt)
    schedule, held_out = make_schedule(config.schedule, config.timesteps), train.load_data(config, "val")
    how = SimpleNamespace(sampler="ancestral", sample_steps=3, guidance=1.5, precision="fp32")
    rest = (how, 0, torch.device("cpu"), 2)
    three = evaluation.draw(unet, schedule, config, held_out, np.array([2, 5, 9]), *rest).astype(int)
    one = evaluation.draw(unet, schedule, config, held_out, np.array([5]), *rest).astype(int)
    assert np.abs(three[1] - one[0]).max() <= 1 < np.abs(three[0] - one[0]).max()


def test_training_can_evaluate_itself(small_phantom, tiny_run, monkeypatch):
    flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "4", "--sample-every", "4", "--out", "run"]
    compared = []

    def watched(fakes, reals, **how):
        compared.append((len(fakes), len(reals)))
        return kid(fakes, reals, **how)

    monkeypatch.setattr(ddpm.runtime.run, "kid", watched)
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
    raw["config"]["mask_drop"] = 0.0
    torch.save(raw, "never.pt")
    command = ["--ckpt", "never.pt", *QUICK, "--metrics", "spectrum"]
    assert evaluate.main([*command, "--guidance", "2"]) == 2
    assert "--mask-drop 0" in capsys.readouterr().err
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
        (pictures, ["--features", "inception"], "--features inception needs --weights"),
        (pictures, ["--features", "inception", "--weights", "no.pth"], "no.pth: no such weights file"),
        (pictures, ["--weights", "no.pth"], "--weights belongs to --features inception"),
        (pictures, ["--metrics", "mask"], "--metrics mask needs --ckpt"),
        (pictures, ["--ckpt", "x.pt"], "not both"),
        (pictures, ["--n", "3"], "--n is 3"),
        (pictures, ["--n", "many"], "invalid int value"),
        (pictures, ["--out", "taken/below"], "cannot write there"),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path, capsys, make_fake, flags, expected):
    real = pictures(tmp_path / "real")
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
        (["--n", "70"], "--n 70: give 40 to 56"),
        (["--ckpt", "no.pt"], "no.pt: no such checkpoint"),
        (["--sample-steps", "2000"], "--sample-steps 2000 is more than the 1000 steps"),
    ],
)
def test_bad_input_with_a_checkpoint(ckpt, capsys, flags, expected):
    command = flags if "--real" in flags or "--ckpt" in flags else ["--ckpt", ckpt, *flags]
    assert evaluate.main(command) == 2
    assert expected in capsys.readouterr().err


# ---------------------------------------------------------------- what the scores mean


def test_a_margin_of_a_mean_is_the_textbooks():
    values = np.random.default_rng(0).normal(3, 2, 400)
    value, margin = with_margin(np.mean, values, rounds=2000)
    assert value == values.mean()
    assert margin == pytest.approx(1.96 * values.std(ddof=1) / 20, rel=0.05)


def test_real_images_obey_their_masks_as_well_as_real_images_do():
    pairs, judge = rendered("val", 0, 40), load_segmenter()
    verdict = judge.judge(pairs.images)
    [dice, *_, contrast] = obedience_rows(verdict, verdict, judge, pairs)
    assert dice.metric == "Dice of lesion, 12 pixels or more"
    assert dice.samples == dice.real > 0.6 and dice.wrong < 0.2
    assert contrast.samples == contrast.real > 0.9 and contrast.wrong < 0.6


def test_each_score_sees_the_damage_it_is_there_for():
    """The ordering that docs/evaluation.md tabulates, on few images."""
    n = 150
    pairs, others, training = rendered("test", 0, n), rendered("test", n, 3 * n), rendered("train", 0, 2 * n).images
    images = damaged(pairs, training, "test", np.arange(n))
    images["copies"] = training[np.random.default_rng(0).integers(0, 10, n)]
    judge = load_segmenter()
    real = judge.judge(pairs.images), judge.judge(others.images)
    got = {
        name: {row.metric: row for row in scores(x, judge, pairs, others, training, real, two_sample=False)}
        for name, x in images.items()
    }

    def beyond(metric, worse, better="real", sign=1):
        a, b = got[worse][metric], got[better][metric]
        return sign * (a.samples - b.samples) > (a.margin or 0) / 2 + (b.margin or 0) / 2

    for name in ("noise", "blur", "no lesions", "copies"):
        assert beyond("FID", name) and beyond("KID x 1000", name), name
    assert beyond("coverage", "copies", sign=-1) and beyond("recall", "copies", sign=-1)
    assert beyond("precision", "noise", sign=-1)
    assert got["copies"]["memorisation"].samples > 0.9 > 0.6 > got["real"]["memorisation"].samples
    for name in ("noise", "blur"):
        assert beyond("power spectrum, difference [dB]", name)
    assert beyond("Dice of lesion, 12 pixels or more", "no lesions", sign=-1)
    assert got["no lesions"]["Dice of lesion, 12 pixels or more"].samples < 0.1
    assert got["wrong contrast"]["contrast as asked"].samples < 0.1 < 0.9 < got["real"]["contrast as asked"].samples
    # The contrasts are permuted: the set as a whole is as it was, and no distance between sets can see it.
    assert not beyond("FID", "wrong contrast", better="noise")


def test_obedience_of_small_and_large_and_of_the_samples_own_contrast():
    """Found as wanted in the large lesion, not at all in the small one, and every contrast wrong in the samples."""
    judge = load_segmenter()
    labels = np.zeros((2, 64, 64), np.uint8)
    labels[0, 10:15, 10:15], labels[1, 20:22, 20:22] = 1, 1  # 25 and 4 pixels
    kinds = np.array([0, 2])
    asked = Slices(np.zeros((2, 1, 64, 64), np.uint8), labels, kinds, phantom.CLASSES["lesion"], phantom.CONTRASTS)
    found = np.where(labels == 1, 4, 0)
    found[1] = 0
    sample = Verdict(found, np.array([1, 1]), np.zeros((2, 1)))
    real = Verdict(np.where(labels == 1, 4, 0), kinds, np.zeros((2, 1)))
    large, small, contrast = obedience_rows(sample, real, judge, asked)
    assert (large.samples, large.real, large.wrong) == (1, 1, 0) and "12 pixels or more" in large.metric
    assert (small.samples, small.real, small.wrong) == (0, 1, 0) and "under 12 pixels" in small.metric
    assert (contrast.samples, contrast.real) == (0, 1)


def test_each_distance_compares_samples_with_the_reference_and_stand_ins_with_theirs():
    """Four sets that differ in mean and number, so that no two of them can be exchanged unnoticed."""
    rng = np.random.default_rng(0)
    means, numbers = (0.0, 0.5, 1.2, 2.2), (210, 260, 220, 240)
    fakes, reference, stand_in, beside = (rng.normal(m, 1, (n, 3)) for m, n in zip(means, numbers, strict=True))
    levels = [rng.integers(0, 60 * (i + 1), (n, 1, 8, 8)).astype(np.uint8) for i, n in enumerate(numbers)]
    places = np.split(np.arange(720), [260, 480])
    sets, reals = Sets(levels[0], np.concatenate(levels[1:]), *places), np.concatenate([reference, stand_in, beside])
    frechet, line = evaluation.frechet_rows(fakes, reals, sets, 0)
    rows = frechet + evaluation.kernel_rows(fakes, reals, sets, 0) + evaluation.manifold_rows(fakes, reals, sets, 0)
    of_samples = precision_recall_density_coverage(reference, fakes)
    of_real = precision_recall_density_coverage(beside, stand_in)
    expected = {
        "FID": (frechet_distance_of_features(fakes, reference), frechet_distance_of_features(stand_in, beside)),
        "FID, extrapolated": (fid_infinity(fakes, reference)[0], fid_infinity(stand_in, beside)[0]),
        "KID x 1000": tuple(1000 * kid(a, b, subset_size=210)[0] for a, b in ((fakes, reference), (stand_in, beside))),
        "Gaussian MMD x 1000": (cmmd(fakes, reference), cmmd(stand_in, beside)),
        **{name: (getattr(of_samples, name), getattr(of_real, name)) for name in of_real._fields},
    }
    assert sorted(row.metric for row in rows) == sorted(expected)
    for row in rows:
        assert (row.samples, row.real) == pytest.approx(expected[row.metric]), row.metric
    assert line.fid_infinity == expected["FID, extrapolated"][0]
    grey = evaluation.spectrum_rows(sets, 0)[1]
    shares = [intensity_histogram(images) for images in levels]
    assert grey.samples == histogram_distance(shares[0], shares[1])
    assert grey.real == histogram_distance(shares[2], shares[3])


def test_memorisation_judges_samples_as_samples_and_real_images_as_real_ones():
    rng = np.random.default_rng(0)
    train, pool, samples = (rng.integers(0, 256, (n, 1, 4, 4)).astype(np.uint8) for n in (60, 60, 30))
    for copied in ("samples", "stand_in", "neither"):
        pictures = {"samples": samples.copy(), "stand_in": pool.copy()}
        if copied != "neither":
            pictures[copied][:30] = train[:30]
        first, rest = np.arange(30), np.arange(30, 60)
        sets = Sets(pictures["samples"], pictures["stand_in"], rest, first, rest, train)
        [row] = memorisation_rows(sets, 0)
        assert (row.samples == 1) == (copied == "samples") and (row.real == 1) == (copied == "stand_in")


def test_usefulness_trains_on_samples_and_on_real_images_alike(monkeypatch):
    pairs, others = rendered("val", 0, 8), rendered("val", 8, 20)
    samples, trained_on = 255 - pairs.images, []

    def train_segmenter(images, labels, *rest):
        trained_on.append((images, labels, rest))
        return load_segmenter()

    monkeypatch.setattr(evaluation, "train_segmenter", train_segmenter)
    sets = Sets(samples, others.images, *[np.arange(8)] * 3, asked=pairs, others=others)
    [row] = evaluation.usefulness_rows(sets, 0)
    assert trained_on[0][0] is samples and trained_on[1][0] is pairs.images
    assert all(np.array_equal(labels, pairs.labels) for _, labels, _ in trained_on)
    assert str(trained_on[0][2]) == str(trained_on[1][2]) and "8 pairs" in row.note


def test_contrasts_that_the_judge_never_met_are_not_judged():
    pairs, judge = rendered("val", 0, 20), load_segmenter()
    verdict = judge.judge(pairs.images)
    unknown = Slices(pairs.images, None, pairs.contrasts, (), ("t1", "t1ce", "flair"))
    assert obedience_rows(verdict, verdict, judge, unknown) == []


def test_the_nearest_training_image_is_found_in_whichever_block():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (5000, 1, 4, 4)).astype(np.uint8)
    images = train[[3, 2047, 2048, 4999]]
    images[2, 0, 0, 0] ^= 1
    distance, index = nearest_training(images, train)
    assert index.tolist() == [3, 2047, 2048, 4999]
    assert distance == pytest.approx([0, 0, 1 / 255, 0])


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
