"""A source image as a condition: what it is, how it enters, and that what is drawn follows it."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_sets import noise, write

import evaluate
import sample
import train
from benchmarks import translation
from ddpm import UserError
from ddpm.conditions import Condition, Vocabulary
from ddpm.data import Slices, phantom
from ddpm.data.images import to_float
from ddpm.data.sources import COARSE, NOISE, coarse, load_data, noisy, turned_round
from ddpm.evaluation.comparison import Comparison
from ddpm.evaluation.questions import paired_truth
from ddpm.forward import training_target
from ddpm.model import Sampling, draw, load_model
from ddpm.runtime import checkpoint
from ddpm.runtime.config import Config
from ddpm.seeds import generator
from ddpm.training import draw_batch
from ddpm.unet import UNet

SIZE = [32, 32]


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def shaken(path, out):
    """A checkpoint of few steps, its weights moved: layers that start at zero hardly learn to listen."""
    raw, generator = torch.load(path, weights_only=True), torch.Generator().manual_seed(0)
    for weight in (*raw["model"].values(), *raw["ema"].values()):
        weight += 0.1 * torch.randn(weight.shape, generator=generator)
    torch.save(raw, out)
    return str(out)


@pytest.fixture(scope="module")
def trained(small_phantom, tmp_path_factory):
    """trained(flags): a tiny checkpoint of these flags."""
    made = {}

    def of(*flags):
        if flags not in made:
            folder = tmp_path_factory.mktemp("source")
            few = ["--preset", "tiny", "--steps", "4", "--sample-every", "4", "--precision", "fp32"]
            assert train.main([*few, *flags, "--out", str(folder / "run")]) == 0
            made[flags] = shaken(checkpoint.newest(folder / "run"), folder / "shaken.pt")
        return made[flags]

    return of


# What a source is


def phantom_of(split="val", **settings):
    return load_data(Config(image_size=SIZE, **settings), split)


def test_a_source_is_the_same_subject_in_another_contrast(small_phantom):
    data = phantom_of(source="T1", contrast="FLAIR")
    assert len(data) == phantom.SPLITS["val"] and data.vocabulary.source == ("T1",)
    for i in (0, 7):
        subject = phantom.draw_subject(0, "val", int(data.subjects[i]))
        flair, labels = phantom.render(subject, 32, "FLAIR")
        assert np.array_equal(data.images[i, 0], flair) and np.array_equal(data.masks[i], labels == 4)
        assert np.array_equal(data.source[i, 0], phantom.render(subject, 32, "T1")[0])


def test_what_the_source_shows_already_is_not_asked_for(small_phantom):
    data = phantom_of(source="T2")
    assert data.vocabulary.labels == {"contrast": ("T1", "FLAIR")} and 0 < len(data) < phantom.SPLITS["val"]
    for i in range(5):
        subject = phantom.draw_subject(0, "val", int(data.subjects[i]))
        name = data.vocabulary.labels["contrast"][data.labels["contrast"][i] - 1]
        assert name == phantom.CONTRASTS[subject.contrast] != "T2"
        assert np.array_equal(data.images[i, 0], phantom.render(subject, 32)[0])
        assert np.array_equal(data.source[i, 0], phantom.render(subject, 32, "T2")[0])


def test_noise_is_rician_of_a_strength_of_each_images_own():
    """Where there is no signal, a magnitude's mean square is 2 sigma^2; and sigma is uniform in NOISE."""
    spoilt = noisy(np.zeros((200, 1, 64, 64), np.uint8), "train") / 255
    sigma = np.sqrt((spoilt**2).mean((1, 2, 3)) / 2)
    assert NOISE[0] * 0.97 < sigma.min() < 0.03 and 0.14 < sigma.max() < NOISE[1] * 1.03
    assert sigma.mean() == pytest.approx(sum(NOISE) / 2, abs=0.008)
    assert np.array_equal(
        noisy(np.full((2, 1, 8, 8), 90, np.uint8), "val"), noisy(np.full((2, 1, 8, 8), 90, np.uint8), "val")
    )
    assert not np.array_equal(spoilt[0], noisy(np.zeros((1, 1, 64, 64), np.uint8), "val")[0] / 255)


def test_each_split_has_its_own_noise_and_is_coarse_in_its_own_pixels(small_phantom):
    for split in ("train", "val"):
        data = phantom_of(split, source="noisy")
        assert np.array_equal(data.source, noisy(data.images, split)) and data.vocabulary.source == ("noisy",)
    assert np.array_equal(phantom_of(source="coarse").source, coarse(data.images))


def test_a_coarse_pixel_is_the_mean_of_those_it_covers():
    image = noise(0, size=(3, 1, 8, 16))
    found = coarse(image)
    assert found.shape == image.shape
    for y in range(8):
        for x in range(16):
            top, left = y // COARSE * COARSE, x // COARSE * COARSE
            block = image[:, :, top : top + COARSE, left : left + COARSE].mean((2, 3))
            assert np.abs(found[:, :, y, x] - block).max() <= 0.5
    with pytest.raises(UserError, match="--image-size 6 8 must be multiples of 4"):
        coarse(image[:, :, :6, :8])


def test_turned_round_the_mask_is_drawn_and_the_image_is_the_source(small_phantom):
    data = phantom_of()
    turned = turned_round(data, sees=True)
    assert turned.images.shape == data.images.shape and set(np.unique(turned.images)) == {0, 255}
    assert np.array_equal(turned.images[:, 0] == 255, data.masks == 1) and turned.source is data.images
    assert turned.masks is None and turned.vocabulary.given == ("source", "contrast")
    x_0, condition = turned.batch([0, 3])
    assert torch.equal(condition.source, to_float(data.images[[0, 3]])) and set(x_0.unique().tolist()) == {-1.0, 1.0}


def test_mirroring_turns_image_mask_and_source_together(small_phantom):
    data = phantom_of(source="T1", contrast="T2")
    data = replace(data, source=data.images)
    config = Config(batch_size=24, flip=True, mask_drop=0, source_drop=0, all_drop=0)
    x_0, condition = draw_batch(data, config, 0)
    assert torch.equal(condition.source, x_0)
    plain, _ = draw_batch(data, replace(config, flip=False), 0)
    assert 0 < sum(not torch.equal(*pair) for pair in zip(x_0, plain, strict=True)) < 24


# Pairs of folders


def paired_set(root, n=4, splits=("train", "val"), size=SIZE, masks=True, top=256, dtype=np.uint8):
    for s, split in enumerate(splits):
        for i in range(n):
            for k, kind in enumerate(("images", "source", *["masks"] * masks)):
                picture = noise(
                    s, i, k, size=size, top=2 if kind == "masks" else top, dtype=np.uint8 if kind == "masks" else dtype
                )
                write(root / split / kind / f"s{i}.png", picture)
    return root


@pytest.mark.parametrize("splits", [("train", "val"), None])
def test_pairs_are_found_by_their_names(tmp_path, splits):
    if splits:
        root = paired_set(tmp_path / "d")
        config = Config(data=str(root), image_size=SIZE, source="pairs")
        data, names = load_data(config, "val"), [f"s{i}" for i in range(4)]
        expected = [noise(1, i, 1, size=SIZE) for i in range(4)]
    else:
        root = tmp_path / "d"
        for i in range(12):
            for k, kind in enumerate(("images", "source")):
                write(root / kind / f"p{i}" / "a.png", noise(i, k, size=SIZE))
        data = load_data(Config(data=str(root), image_size=SIZE, source="pairs"), "train")
        names = data.index["names"]
        expected = [noise(int(name.split("/")[0][1:]), 1, size=SIZE) for name in names]
    assert data.index["names"] == names and data.vocabulary.source == ("source",)
    assert np.array_equal(data.source[:, 0], expected)


def test_sources_of_16_bits_have_a_window_of_their_own(tmp_path):
    root = paired_set(tmp_path / "d", masks=False, top=4000, dtype=np.uint16)
    for file in root.glob("*/source/*.png"):
        write(file, (pixels(file) // 8 + 9).astype(np.uint16))
    data = load_data(Config(data=str(root), image_size=SIZE, source="pairs"), "train")
    assert data.images.max() == data.source.max() == 255 and data.images.min() == data.source.min() == 0


def test_the_same_folder_with_and_without_sources_is_two_stores(tmp_path):
    root = paired_set(tmp_path / "d")
    with_sources = load_data(Config(data=str(root), image_size=SIZE, source="pairs"), "train")
    without = load_data(Config(data=str(root), image_size=SIZE), "train")
    assert without.source is None and np.array_equal(without.images, with_sources.images)
    assert (
        load_data(Config(data=str(root), image_size=SIZE, source="noisy"), "train").source.shape == without.images.shape
    )


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda d: (d / "train/source/s1.png").unlink(), "images/s1.png: no source of that name in"),
        (lambda d: (d / "train/images/s2.png").unlink(), "s2.png: no image of that name in"),
        (
            lambda d: write(d / "train/source/s0.png", noise(1, size=(9, 9))),
            "source/s0.png: 9x9, but its image is 32x32",
        ),
        (lambda d: (d / "train/source/s0.png").write_bytes(b"no picture"), "source/s0.png: damaged"),
        (lambda d: write(d / "train/source/s0.png", noise(1, size=SIZE, dtype=np.uint16, top=999)), "more than 8 bits"),
        (lambda d: [file.unlink() for file in (d / "train/source").iterdir()], "no pictures here"),
    ],
)
def test_pairs_that_do_not_match_are_named(tmp_path, capsys, spoil, says):
    root = paired_set(tmp_path / "d", masks=False)
    spoil(root)
    assert train.main(["--preset", "tiny", "--data", str(root), "--source", "pairs", "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not Path("run").exists()


def test_a_layout_without_pairs_says_so(tmp_path, capsys):
    for i in range(4):
        write(tmp_path / "d" / f"{i}.png", noise(i, size=SIZE))
    flags = ["--data", str(tmp_path / "d"), "--subject-pattern", ".+", "--source", "pairs"]
    assert train.main(["--preset", "tiny", *flags]) == 2
    assert "put DIR/source beside DIR/images" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--source", "T1", "--contrast", "T1"], "name another"),
        (["--source", "pairs"], "--data phantom has T1, T2"),
        (["--source", "T2", "--data", "d"], "--data d has noisy"),
        (["--segment", "--source", "T1"], "the image is the source"),
        (["--segment", "--labels", "tissue"], "two classes"),
        (["--segment", "--data", "d", "--num-classes", "3"], "two classes"),
        (["--segment", "--data", "d", "--image-channels", "3"], "colour"),
        (["--source", "coarse", "--image-size", "18", "--patch", "1"], "multiples of 4"),
    ],
)
def test_sources_that_are_not_there_are_refused(flags, says, capsys):
    assert train.main(["--preset", "tiny", *flags]) == 2
    assert says in capsys.readouterr().err and not Path("results").exists()


# The network


def test_a_source_enters_beside_the_image_and_black_is_not_null():
    unet = UNet(1, Vocabulary(source=("a", "b")), channels=16, mults=(1, 2), blocks=1, attention=())
    for weight in unet.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    x, t, source = torch.zeros(2, 1, 8, 8), torch.tensor([3, 5]), torch.rand(2, 2, 8, 8) - 1
    answers = [
        unet(x, t, Condition(source=s))
        for s in (None, 0 * source, source, source.flip(1), source.flip(-1), 0 * source - 1)
    ]
    assert torch.equal(answers[0], answers[1])
    for i in range(1, len(answers)):
        assert all((answers[i] - other).abs().max() > 1e-4 for other in answers[i + 1 :])
    assert unet.conv_in.weight.shape[1] == 3
    for wrong in (source[:1], source[:, :1], source[..., :4]):
        with pytest.raises(ValueError, match="source is"):
            unet(x, t, Condition(source=wrong))


def test_what_starts_from_a_checkpoint_without_source_begins_as_it_where_nothing_is_said(tiny_run, small_phantom):
    flags = ["--preset", "tiny", "--init", str(tiny_run), "--source", "T1", "--words", "--precision", "fp32"]
    assert train.main([*flags, "--steps", "1", "--lr", "1e-30", "--muon-lr", "1e-30", "--out", "run"]) == 0
    ours, theirs = load_model("run"), load_model(tiny_run)
    data = load_data(ours.config, "val")
    _, condition = data.batch(np.arange(4))
    x_t, t = torch.randn(4, 1, 32, 32), torch.tensor([1, 50, 400, 1000])
    # T1 is what the source shows, so the labels are T2 and FLAIR, 1 and 2; there they were 2 and 3.
    known = Condition(condition.mask, {"contrast": condition.labels["contrast"] + 1})
    as_before = theirs.unet(x_t, t, known)
    assert torch.allclose(ours.unet(x_t, t, replace(condition, words=None)), as_before, atol=1e-6)
    # New words differ from the start, as the values of a label do.
    assert not torch.allclose(ours.unet(x_t, t, condition), as_before, atol=1e-2)


# Drawing


def write_source(path, seed=0, size=SIZE):
    write(Path(path), noise(seed, size=size))
    return str(path)


def test_a_source_changes_the_image_and_its_draws_are_summed_up(trained, tmp_path, capsys):
    ckpt = trained("--source", "T1")
    for name in ("a", "b"):
        write_source(tmp_path / "in" / f"{name}.png", ord(name))
    flags = ["--ckpt", ckpt, "--sample-steps", "3", "--n", "2", "--contrast", "T2"]
    assert sample.main([*flags, "--source", "in", "--out", "o"]) == 0
    assert "guidance 1 " in capsys.readouterr().out  # unless asked for: the spread of the draws shall be right
    # Apart from the draws, so that who compares a folder of samples (evaluate.py --fake) finds nothing else in it.
    expected = {f"{name}_{k}.png" for name in "ab" for k in range(2)} | {"grid.png", "summary"}
    assert {path.name for path in Path("o").iterdir()} == expected
    draws = np.stack([pixels(f"o/a_{k}.png") for k in range(2)])
    assert np.abs(pixels("o/summary/a_mean.png") - draws.mean(0)).max() <= 0.5
    assert np.abs(pixels("o/summary/a_deviation.png") - (5 * draws.std(0)).clip(0, 255)).max() <= 0.5
    assert pixels("o/grid.png").shape == (2 * 130, 3 * 130, 3)
    assert sample.main([*flags, "--n", "5", "--contrast", "each", "--source", "in/a.png", "--out", "turns"]) == 0
    draws = np.stack([pixels(f"turns/a_{k}.png") for k in range(5)])  # T2 and FLAIR in turn: no mean of both
    kept = {f"a_{contrast}_{what}.png" for contrast in ("T2", "FLAIR") for what in ("mean", "deviation")}
    assert {path.name for path in Path("turns/summary").iterdir()} == kept
    assert np.abs(pixels("turns/summary/a_FLAIR_mean.png") - draws[1::2].mean(0)).max() <= 0.5
    assert sample.main([*flags, "--source", "in/b.png", "--out", "other"]) == 0
    assert np.abs(pixels("other/b_0.png") - pixels("o/b_0.png")).max() <= 1
    write_source(tmp_path / "b.png", 9)
    assert sample.main([*flags, "--source", "b.png", "--out", "another"]) == 0
    assert np.abs(pixels("another/b_0.png") - pixels("o/b_0.png")).max() > 2


def test_masks_and_sources_go_together_by_name_or_one_with_all(trained, tmp_path, capsys):
    ckpt = trained("--source", "T1")
    for name in ("a", "b"):
        write_source(tmp_path / "in" / f"{name}.png", ord(name))
        write(tmp_path / "m" / f"{name}.png", 255 * (noise(ord(name), 1, size=SIZE) > 200).astype(np.uint8))
    flags = ["--ckpt", ckpt, "--sample-steps", "2", "--n", "1"]
    for source, mask, names in (("in", "m", "ab"), ("in", "m/a.png", "ab"), ("in/a.png", "m", "ab")):
        assert sample.main([*flags, "--source", source, "--mask", mask, "--out", f"o{source}{mask}"]) == 0
        assert all(Path(f"o{source}{mask}/{name}_0.png").exists() for name in names)
    assert pixels("oinm/grid.png").shape == (2 * 130, 3 * 130, 3)  # source, mask, image
    assert np.abs(pixels("oin/a.pngm/a_0.png") - pixels("oinm/a_0.png")).max() <= 1
    assert np.abs(pixels("oin/a.pngm/b_0.png") - pixels("oinm/b_0.png")).max() > 1
    (tmp_path / "m" / "b.png").rename(tmp_path / "m" / "c.png")
    assert sample.main([*flags, "--source", "in", "--mask", "m", "--out", "no"]) == 2
    assert "b: a source without a mask of that name" in capsys.readouterr().err and not Path("no").exists()


def test_a_source_of_another_size_is_resized_and_a_small_one_is_taken_as_coarse(trained, tmp_path, capsys):
    flags = ["--sample-steps", "2", "--n", "1", "--source"]
    write_source("large.png", size=(64, 64))
    assert sample.main(["--ckpt", trained("--source", "T1"), *flags, "large.png", "--out", "a"]) == 0
    assert "large.png: source of 64x64 resized to 32x32" in capsys.readouterr().out
    small = noise(5, size=(8, 8))
    write(Path("c.png"), small)
    for name, picture in (("c", small), ("whole/c", small.repeat(4, 0).repeat(4, 1))):
        write(Path(f"{name}.png"), picture)
        out = f"o-{Path(name).parent}"
        assert sample.main(["--ckpt", trained("--source", "coarse"), *flags, f"{name}.png", "--out", out]) == 0
    assert np.array_equal(pixels("o-./c_0.png"), pixels("o-whole/c_0.png"))
    assert "resized" not in capsys.readouterr().out


def test_masks_without_a_source_are_drawn_by_themselves(small_phantom):
    sees, alone = (phantom_of(segment=True, words=True, source_drop=drop) for drop in (0.05, 1.0))
    assert sees.vocabulary.given == ("source", "words", "contrast") and alone.vocabulary.given == ("words", "contrast")
    assert alone.source is None and np.array_equal(alone.images, sees.images)


def test_most_of_the_draws_is_a_vote_not_a_mean(tmp_path):
    """One that is sure does not outweigh two that are not: 255, 100, 100."""
    drawn = np.array([255, 100, 100], np.uint8)[:, None, None, None].repeat(4, 2).repeat(4, 3)
    sample.write_summary(tmp_path, "a", drawn, segment=True)
    assert not pixels("a_mask.png").any() and pixels("a_mean.png").max() == 152


def test_a_labels_value_with_a_slash_names_a_file(tmp_path):
    sample.write_summary(tmp_path, "a_T2/FLAIR", np.zeros((2, 1, 4, 4), np.uint8), segment=False)
    assert {path.name for path in tmp_path.glob("a_*")} == {"a_T2-FLAIR_mean.png", "a_T2-FLAIR_deviation.png"}


def test_masks_of_more_classes_are_not_drawn_as_one():
    data = Slices(np.zeros((1, 1, 8, 8), np.uint8), np.zeros((1, 8, 8), np.uint8), {}, Vocabulary(("air", "a", "b")))
    with pytest.raises(UserError, match="of two classes, and these have air, a, b"):
        turned_round(data, True)


def test_noise_and_words_are_drawn_from_numbers_of_their_own(small_phantom):
    """Or the contrast would be named where the noise is weak, and only there."""
    clean = np.full((60, 1, 32, 32), 128, np.uint8)
    strength = noisy(clean, "train").astype(float).std((1, 2, 3))
    named = [generator(0, i).random() < 0.85 for i in range(60)]
    assert strength[np.array(named)].max() > strength[~np.array(named)].min() and not all(named)


def test_segmentation_draws_masks_and_says_what_most_of_them_say(trained, capsys):
    write_source("brain.png")
    flags = ["--ckpt", trained("--segment"), "--sample-steps", "2", "--source", "brain.png", "--n", "3", "--out", "o"]
    assert sample.main(flags) == 0
    votes = np.mean([pixels(f"o/brain_{k}.png") >= 128 for k in range(3)], axis=0)
    mask = pixels("o/summary/brain_mask.png")
    assert set(np.unique(mask)) <= {0, 255} and np.array_equal(mask == 255, votes >= 0.5)


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--mask", "m.png", "--source", "m.png"], "was trained without a source"),
        (["--source", "none.png"], "was trained without a source"),
        (["--guided", "source", "--guidance", "2"], "needs --source"),
        (["--restore", "m.png", "--as", "denoise", "--source", "m.png"], "does not go with --restore"),
    ],
)
def test_a_model_without_source_says_so(ckpt, flags, says, capsys):
    write(Path("m.png"), np.zeros(SIZE, np.uint8))
    assert sample.main(["--ckpt", ckpt, *flags, "--out", "o"]) == 2
    assert says in capsys.readouterr().err and not Path("o").exists()


def test_a_source_that_cannot_be_read_is_named(trained, capsys):
    ckpt = trained("--source", "T1")
    Path("text.png").write_text("no picture")
    write(Path("deep.png"), noise(0, size=SIZE, dtype=np.uint16, top=999))
    wrong = {"gone.png": "gone.png: no such", "text.png": "damaged", "v.nii.gz": "a volume; cut it into pictures"}
    wrong["deep.png"] = "more than 8 bits a pixel; save all sources of its subject"
    for source, says in wrong.items():
        assert sample.main(["--ckpt", ckpt, "--source", source, "--out", "o"]) == 2
        assert says in capsys.readouterr().err and not Path("o").exists()


def test_a_model_that_never_did_without_its_source_needs_it(trained, capsys):
    ckpt = trained("--source", "T1", "--source-drop", "0", "--all-drop", "0")
    assert sample.main(["--ckpt", ckpt, "--out", "o"]) == 2
    assert "--source-drop 0 and --all-drop 0: it needs --source" in capsys.readouterr().err


# One step: a regression


def test_of_one_step_the_target_is_the_image_and_the_draw_is_the_answer(trained):
    """At T nothing of x_0 is left in x_T: the loss asks for -x_0 whatever the noise, which is least at -E[x_0 | source], and
    one step draws what was answered."""
    model = load_model(trained("--source", "T1", "--few-steps", "1"))
    x_0, t = torch.rand(2, 1, 32, 32) - 0.5, torch.tensor([1000, 1000])
    assert torch.allclose(training_target(model.schedule, "v", x_0, t, torch.randn(x_0.shape)), -x_0, atol=5e-4)
    source = torch.rand(2, 1, 32, 32)
    seen = list(draw(model, Condition(source=source), [0, 1], Sampling("ddim")))
    assert [t for t, _ in seen] == [1000, 0]
    answer = -model.unet(seen[0][1], t, Condition(source=source)).clamp(-1, 1)
    assert torch.allclose(seen[1][1], answer, atol=1e-3)


# How close to the truth


def compared_to(truth, drawn, **settings):
    """A comparison of samples (N, C, H, W) with the paired truth, as evaluate.py makes it."""
    data = Slices(truth, None, {}, Vocabulary(source=("T1",)), source=truth)
    both = np.arange(len(truth))
    model = SimpleNamespace(config=Config(**settings))
    return Comparison(replace(data, images=drawn), data, both, both, None, model=model)


def test_closeness_is_to_the_very_image_of_the_source():
    """A difference of d everywhere has a PSNR of 20 log10(255 / d); another subject's image is further away."""
    truth = noise(0, size=(50, 1, 16, 16), top=200)
    rows = {row.metric: row for row in paired_truth(compared_to(truth, truth + np.uint8(10)))}
    psnr = rows["PSNR to the paired truth [dB]"]
    assert psnr.samples == pytest.approx(20 * np.log10(255 / 10)) and psnr.wrong < 15
    assert rows["SSIM to the paired truth"].samples > 0.95 > rows["SSIM to the paired truth"].wrong


def test_of_drawn_masks_the_overlap_is_asked():
    truth = np.zeros((50, 1, 16, 16), np.uint8)
    truth[:40, :, 4:8, 4:8] = 255  # the others are empty, and do not count
    drawn = np.zeros_like(truth)
    drawn[:, :, 4:8, 6:10] = 128  # half of it, and as much beside it
    (row,) = paired_truth(compared_to(truth, drawn, segment=True))
    assert row.samples == pytest.approx(0.5) and "40 images" in row.note


def test_evaluate_asks_a_translation_for_closeness_and_a_segmentation_for_nothing_else(trained, capsys):
    flags = ["--n", "40", "--sample-steps", "2"]
    kinds = ["--metrics", "paired", "spectrum"]
    assert evaluate.main(["--ckpt", trained("--source", "coarse"), *flags, *kinds, "--out", "a"]) == 0
    metrics = [row["metric"] for row in json.loads(Path("a/report.json").read_text())["rows"]]
    assert metrics[:4] == [
        "power spectrum, difference [dB]",
        "grey levels, distance [of 255]",
        "spread of the foreground, difference [% of an image]",
        "PSNR to the paired truth [dB]",
    ]
    assert evaluate.main(["--ckpt", trained("--segment"), *flags, "--out", "b"]) == 0
    metrics = [row["metric"] for row in json.loads(Path("b/report.json").read_text())["rows"]]
    assert metrics == ["Dice of the mask that is drawn"] and "draws masks" in capsys.readouterr().out
    alone = trained("--segment", "--words", "--source-drop", "1")
    assert evaluate.main(["--ckpt", alone, *flags, "--out", "c"]) == 2
    assert "no one truth" in capsys.readouterr().err and not Path("c").exists()  # said before anything is drawn


# The benchmark


def test_the_benchmark_of_translation_runs(trained, capsys):
    few = ["--n", "6", "--draws", "2", "--picture", "p.png"]
    regression = trained("--source", "T1", "--few-steps", "1")
    assert translation.main(["--ckpt", trained("--source", "T1"), "--regression", regression, *few]) == 0
    told = capsys.readouterr().out
    for line in ("| one draw |", "| regression |", "(right: 33.3%)", "FLAIR: one draw"):
        assert line in told
    assert pixels("p.png").shape[1] == 7 * 130
    assert translation.main(["--ckpt", trained("--segment"), *few]) == 0
    assert "| most of 2 draws |" in capsys.readouterr().out


def test_the_benchmark_of_translation_wants_a_source(ckpt, trained, capsys):
    assert translation.main(["--ckpt", trained("--segment"), "--n", "5001"]) == 2
    assert "--n 5001: give 2 to " in capsys.readouterr().err
    assert translation.main(["--ckpt", ckpt]) == 2
    assert "without a source" in capsys.readouterr().err
    assert translation.main(["--ckpt", trained("--segment"), "--draws", "1", "--picture", "p.png"]) == 2
    assert "--draws 1 are too few" in capsys.readouterr().err


@pytest.mark.parametrize(
    "regression, says",
    [
        (("--source", "T1"), "not trained for one step; give a run with --few-steps 1"),
        (("--source", "noisy", "--few-steps", "1"), "trained with --source noisy, and "),
        (("--source", "T1", "--labels", "none", "--few-steps", "1"), "trained with --labels none, and "),
    ],
)
def test_what_is_no_regression_of_the_same_task_is_refused_before_a_draw(regression, says, trained, capsys):
    flags = ["--ckpt", trained("--source", "T1"), "--regression", trained(*regression), "--n", "6", "--draws", "2"]
    capsys.readouterr()
    assert translation.main(flags) == 2
    told = capsys.readouterr()
    assert says in told.err and told.err.count("\n") == 1 and "test slices" not in told.out


def test_what_cannot_be_written_or_asked_is_said_before_a_draw(trained, capsys):
    always = trained("--source", "T1", "--mask-drop", "0", "--all-drop", "0")
    few = ["--ckpt", trained("--source", "T1"), "--n", "6", "--draws", "2"]
    Path("folder").mkdir()
    capsys.readouterr()
    for flags, says in (
        ([*few, "--picture", "/proc/x/p.png"], "--picture /proc/x: cannot write there"),
        ([*few, "--picture", "folder"], "--picture folder: a folder; name a file in it"),
        ([*few, "--draws", "0"], "--draws is 0; it must be at least 1"),
        ([*few, "--n", "1"], "--n 1: give 2 to"),
        ([*few, "--ckpt", always], "--mask-drop 0 and --all-drop 0: it needs --mask"),
        ([*few, "--draws", "x"], "invalid int value: 'x'"),
    ):
        assert translation.main(flags) == 2
        told = capsys.readouterr()
        assert says in told.err and told.err.count("\n") == 1 and "test slices" not in told.out


@pytest.mark.parametrize("k", [2, 8])
def test_draws_that_are_right_hold_the_truth_as_often_as_is_right(k):
    """Also where they differ by less than a grey level, or are cut off at 255: as in 8 bits."""
    random = np.random.default_rng(0)
    for spread in (0.3, 1, 10):
        mean = random.uniform(100, 255, (40, 1, 32, 32))
        values = mean + spread * random.standard_normal((1 + k, 40, 1, 32, 32))
        truth, *drawn = np.rint(values.clip(0, 255)).astype(np.uint8)
        assert translation.inside(truth, np.stack(drawn)).mean() == pytest.approx((k - 1) / (k + 1), abs=0.01)
    apart = np.array([[10], [20], [30]], np.uint8)[..., None, None, None]  # draws of one pixel
    truths = np.array([5, 10, 15, 30, 35], np.uint8)
    found = [translation.inside(truth[None, None, None, None], apart).item() for truth in truths]
    assert found == [0, 0.5, 1, 0.5, 0]
