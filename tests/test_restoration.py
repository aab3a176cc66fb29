"""`sample.py --restore`: each mode as a command, on a small model; the equations are in test_inverse.py."""

import argparse
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_stack import commands

import sample
from benchmarks import restoration as benchmark
from ddpm import UserError, restoration
from ddpm.data import phantom
from ddpm.inverse import Inpainting, KSpace, SuperResolution, estimated_phase, fourier
from ddpm.metrics.fastmri import fastmri_scores
from ddpm.metrics.paired import psnr, ssim
from ddpm.model import Sampling, load_model

pytestmark = pytest.mark.usefixtures("small_phantom")


@pytest.fixture(scope="module")
def picture(small_phantom, tmp_path_factory):
    images, _, _ = phantom.load("val", (32, 32))
    path = tmp_path_factory.mktemp("picture") / "slice.png"
    Image.fromarray(images[0, 0]).save(path)
    return str(path)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(restoration, "STEPS", 4)
    monkeypatch.setattr(restoration, "DRAWS", 2)
    monkeypatch.setattr(restoration, "HEAL_STEPS", 10)


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def write(path, array):
    Image.fromarray(array).save(path)
    return str(path)


def region(path, size=(32, 32), value=255):
    array = np.zeros(size, np.uint8)
    array[10:20, 12:22] = value
    return write(path, array)


def restored(tiny_run, picture, mode, *flags):
    assert sample.main(["--ckpt", str(tiny_run), "--restore", picture, "--as", mode, *flags, "--out", "o"]) == 0
    return pixels("o/restored.png")


def test_a_prior_of_noisy_images_gives_the_mean_of_several_draws(tiny_run, picture, capsys):
    plain = restored(tiny_run, picture, "denoise", "--noise", "0.05")
    unseen = restored(tiny_run, picture, "denoise", "--noise", "0.05", "--noisy-prior")
    assert not np.array_equal(plain, unseen) and "of full scale" in capsys.readouterr().out


@pytest.mark.parametrize("flags, corrected", [(["--noisy-prior"], False), ([], True), (["--gaussian"], False)])
def test_an_image_is_handed_on_with_the_bias_that_its_prior_knows_and_with_the_strength_of_its_noise(
    flags, corrected, tiny_run, picture, monkeypatch
):
    seen = []
    for name in ("denoise", "denoise_unseen"):
        monkeypatch.setattr(restoration, name, lambda predict, schedule, y, sigma, *more: seen.append((y, sigma)) or y)
    restored(tiny_run, picture, "denoise", "--noise", "0.1", *flags)
    y = torch.from_numpy(pixels(picture)).float()[None, None] / 255
    expected = restoration.without_rician_bias(y, 0.1) if corrected else y
    assert seen and all(torch.allclose(there, expected, atol=1e-6) and sigma == 0.1 for there, sigma in seen)


@pytest.mark.parametrize(
    "mode, flags, says",
    [
        ("denoise", ["--region", "r"], "--region is for --as inpaint, not denoise"),
        ("anomaly", ["--noise", "0.1"], "--noise is for --as inpaint or kspace or super-resolution or denoise, not"),
        ("anomaly", ["--resample", "2"], "--resample is for --as inpaint"),
        ("inpaint", ["--gaussian"], "--gaussian is for --as denoise"),
        ("inpaint", ["--noisy-prior"], "--noisy-prior is for --as denoise"),
        ("inpaint", ["--factor", "4"], "--factor is for --as super-resolution"),
        ("inpaint", ["--real"], "--real is for --as kspace"),
        ("denoise", ["--acceleration", "8"], "--acceleration is for --as kspace"),
        ("denoise", ["--lines", "random"], "--lines is for --as kspace"),
        ("kspace", ["--acceleration", "8"], "--acceleration is for --simulate"),
        ("kspace", ["--lines", "random"], "--lines is for --simulate"),
        (None, ["--noisy-prior"], "--noisy-prior belongs to --restore"),
        (None, ["--factor", "4"], "--factor belongs to --restore"),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(mode, flags, says, capsys):
    for wanted in ("slice.png", "scan.nii.gz") if mode else (None,):
        restore = ["--restore", wanted, "--as", mode] if mode else []
        assert sample.main([*restore, *flags, "--out", "o"]) == 2
        error = capsys.readouterr().err
        assert says in error and "; leave it out" in error and error.count("\n") == 1


def test_known_pixels_are_in_the_result_exactly(tiny_run, picture, capsys):
    result, image = restored(tiny_run, picture, "inpaint", "--region", region("r.png")), pixels(picture)
    new = np.zeros((32, 32), bool)
    new[10:20, 12:22] = True
    assert np.array_equal(result[~new], image[~new]) and not np.array_equal(result[new], image[new])
    out = capsys.readouterr().out
    assert "9.8% of the pixels" in out and "PSNR" not in out


def test_where_a_lesion_shall_be_is_heard(tiny_run, picture, tmp_path):
    """The tiny model's mask is shaken into the first layer's weights, so that it is heard at all."""
    raw = torch.load(tiny_run / "checkpoints" / "step_000040.pt", weights_only=True)
    raw["ema"]["conv_in.weight"] *= 3
    torch.save(raw, "loud.pt")
    drawn = []
    for value in (0, 255):
        flags = ["--region", region("r.png"), "--mask", region(f"m{value}.png", value=value), "--contrast", "T2"]
        drawn.append(restored("loud.pt", picture, "inpaint", *flags))
    assert not np.array_equal(*drawn)


@pytest.mark.parametrize("flags", [[], ["--real"], ["--lines", "random"], ["--noise", "0.02"]])
def test_k_space_of_a_picture(flags, tiny_run, picture, capsys):
    restored(tiny_run, picture, "kspace", "--simulate", *flags)
    out = capsys.readouterr().out
    assert "of 32 lines: accelerated" in out and out.count("SSIM") == 4 and out.count("as fastMRI counts") == 2
    assert ("they count as" in out) == ("--real" in flags)


def test_the_result_has_the_k_space_that_was_measured(tiny_run, tmp_path, picture):
    """Before magnitude and 8 bits, to 1e-5 of the brightest."""
    image = torch.from_numpy(pixels(picture) / 255)
    lines = torch.zeros(32, dtype=torch.bool)
    lines[[3, 9, 14, 15, 16, 17, 24]] = True
    phase = torch.linspace(0, 2, 32)[:, None].expand(32, 32)
    y = (lines * fourier(image * torch.exp(1j * phase))).to(torch.complex64).numpy()
    np.save("scan.npy", y)
    restored(tiny_run, "scan.npy", "kspace")
    result = torch.from_numpy(np.load("o/restored.npy"))
    found = KSpace(lines).apply(result).numpy()[0]
    scale = np.abs(found).max() / np.abs(y).max()  # the scan has no unit
    assert np.abs(found - scale * y).max() < 1e-5 * np.abs(found).max()


@pytest.mark.parametrize("ending", ["h5", "npy"])
def test_a_scan_is_cut_to_what_it_shows(ending, tiny_run, tmp_path, capsys):
    """Of fastMRI's files the middle slice."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(3, 80, 36))
    image[:, :20] = image[:, 60:] = 0  # the readout takes in twice the field of view
    scans = fourier(torch.from_numpy(image)).numpy().astype(np.complex64)
    scans[:, :, 2:16] = scans[:, :, 22:] = 0
    scan = f"scan.{ending}"
    if ending == "npy":
        np.save(scan, scans[1])
    else:
        with h5py.File(scan, "w") as file:
            file["kspace"] = scans
    y = restoration.read_kspace(scan, (32, 32))[0, 0]
    known = (y != 0).any(dim=0)
    expected = fourier(torch.from_numpy(image[1, 20:60]))[4:36, 2:34]
    ratio = (y / expected)[:, known]
    assert known.sum() == 6 and torch.allclose(ratio, ratio[0, 0], rtol=1e-3)
    restored(tiny_run, scan, "kspace")
    out = capsys.readouterr().out
    assert "6 of 32 lines: accelerated 5.33 times" in out
    assert f"note: {scan}: it shows 40x36 pixels, so one of 32x32 is 0.90 times as wide as high" in out
    told = float(re.search(rf"{scan}: times ([\d.e+-]+), so that the brightest pixel is 0.9", out)[1])
    # A unitary transform of 80 rows, and of the 40 that are kept: a factor of sqrt(40 / 80).
    assert ratio[0, 0].abs().item() == pytest.approx(told / 2**0.5, rel=1e-3)


@pytest.mark.parametrize("shape, size", [((96, 64), (96, 64)), ((192, 64), (96, 64)), ((64, 64), (32, 48))])
def test_a_scan_is_cut_in_the_proportions_of_the_networks_image(shape, size):
    y = np.zeros(shape, np.complex64)
    y[:, 28:36] = 1
    np.save("k.npy", y)
    assert restoration.read_kspace("k.npy", size).shape == (1, 1, *size)


@pytest.mark.parametrize("padded, zero, refused", [(40, 0, False), (0, 1, False), (0, 8, True), (300, 0, True)])
def test_only_what_comes_into_the_image_must_be_whole(padded, zero, refused):
    """Of 640 rows of 368 columns, the middle 111 for an image of 64 x 64: a padded readout may end outside of them."""
    y = np.ones((640, 368), np.complex64)
    y[:padded] = y[640 - padded :] = y[:, 100:110] = y[320 : 320 + zero, 5] = 0
    np.save("k.npy", y)
    if refused:
        with pytest.raises(UserError, match="measured in part; whole lines are needed"):
            restoration.read_kspace("k.npy", (64, 64))
    else:
        assert restoration.read_kspace("k.npy", (64, 64)).shape == (1, 1, 64, 64)


@pytest.mark.parametrize("mode", ["anomaly", "super-resolution"])
def test_a_whole_picture_of_another_size_is_resized(mode, tiny_run, capsys):
    """And a measurement is not: there that would be another measurement."""
    large = write("large.png", np.random.default_rng(0).integers(0, 256, (48, 80)).astype(np.uint8))
    simulated = ["--simulate"] if mode == "super-resolution" else []
    assert restored(tiny_run, large, mode, *simulated).shape == (32, 32)
    assert "large.png is 48x80, and resized to 32x32" in capsys.readouterr().out


def test_what_is_white_in_a_finer_region_is_drawn_anew():
    """Any pixel some of whose area is marked; by the nearest neighbour a thin line would be lost."""
    line = np.zeros((64, 48), np.uint8)
    line[21, 10:30] = 255
    region = restoration.read_region(write("line.png", line), (32, 32), of=(128, 96))
    expected = np.zeros((32, 32), bool)
    expected[10, 6:20] = True  # columns of 1.5 pixels each
    assert np.array_equal(region, expected)


@pytest.mark.parametrize(
    "width, kept, size", [(56, 56, (9, 9)), (100, 80, (9, 9)), (36, 40, (9, 9)), (36, 54, (12, 8))]
)
def test_of_a_readout_as_much_is_kept_as_the_scan_is_wide(width, kept, size):
    """So that pixels stay square; at most all of it, and at least the half that is not oversampling."""
    image = np.random.default_rng(0).uniform(size=(80, width))
    y = restoration.within_view(fourier(torch.from_numpy(image)[None])[0].numpy(), size)
    first = 40 - kept // 2
    expected = fourier(torch.from_numpy(image[first : first + kept])[None])[0].numpy()
    ratio = y / expected  # the transform of rows alone has another unit
    assert y.shape == (kept, width) and np.allclose(ratio, ratio[0, 0])


def test_a_small_picture_is_enlarged_and_averages_back(tiny_run, tmp_path, picture):
    small = np.random.default_rng(0).integers(60, 200, (16, 16)).astype(np.uint8)
    result = restored(tiny_run, write("s.png", small), "super-resolution", "--factor", "2")
    exact = np.load("o/restored.npy")[0].reshape(16, 2, 16, 2).mean((1, 3))
    assert result.shape == (32, 32) and np.abs(exact - small / 255).max() < 1e-5
    restored(tiny_run, picture, "super-resolution", "--factor", "4", "--simulate")


@pytest.mark.parametrize("flags", [[], ["--gaussian"], ["--n", "2"]])
def test_noise_is_taken_away(flags, tiny_run, picture, capsys):
    restored(tiny_run, picture, "denoise", "--noise", "0.1", "--simulate", *flags)
    out = capsys.readouterr().out
    assert f"{'Gaussian' if '--gaussian' in flags else 'Rician'} noise of 0.100" in out and out.count("PSNR") == 2


@pytest.mark.parametrize("flags, parts", [(["--gaussian"], 1), ([], 2)])
def test_simulated_noise_is_gaussian_or_that_of_a_magnitude(flags, parts, tiny_run, monkeypatch):
    """In the mean square each part of the noise adds its variance to the image's square."""
    seen = []
    monkeypatch.setattr(restoration, "denoise_unseen", lambda predict, schedule, y, *more: seen.append(y) or y)
    grey = write("grey.png", np.full((32, 32), 102, np.uint8))
    restored(tiny_run, grey, "denoise", "--simulate", "--noise", "0.2", "--noisy-prior", *flags)
    assert seen[0].square().mean().item() == pytest.approx(0.4**2 + parts * 0.2**2, abs=0.015)


@pytest.mark.parametrize("mode, flags", [("inpaint", ["--region", "r.png"]), ("super-resolution", []), ("kspace", [])])
def test_simulated_noise_is_as_strong_as_asked_in_each_part_and_the_walk_is_told_so(
    mode, flags, tiny_run, picture, monkeypatch
):
    seen, image = [], torch.zeros(1, 1, 32, 32)
    monkeypatch.setattr(restoration, "restore", lambda *args, **how: seen.append(args[6:8]) or iter([image]))
    region("r.png")
    for sigma in ("0", "0.1"):
        restored(tiny_run, picture, mode, *flags, "--simulate", "--noise", sigma, "--n", "1")
    (clean, none), (noisy, told) = seen
    noise = (noisy - clean)[noisy != clean]
    parts = torch.view_as_real(noise).T if noise.is_complex() else noise[None]
    assert (none, told, len(parts)) == (0, 0.1, 1 + (mode == "kspace")) and parts.shape[1] > 200
    assert parts.std(dim=1).tolist() == pytest.approx([0.1] * len(parts), rel=0.15)
    assert parts.mean(dim=1).abs().max() < 0.02


@pytest.mark.parametrize("mode, flags, size", [("inpaint", ["--region", "r.png"], 32), ("super-resolution", [], 16)])
def test_noise_that_a_measurement_has_is_not_added_once_more(mode, flags, size, tiny_run, monkeypatch):
    seen, image = [], torch.zeros(1, 1, 32, 32)
    monkeypatch.setattr(restoration, "restore", lambda *args, **how: seen.append(args[6:8]) or iter([image]))
    region("r.png")
    grey = write("grey.png", np.full((size, size), 102, np.uint8))
    restored(tiny_run, grey, mode, *flags, "--noise", "0.1", "--n", "1")
    [(y, sigma)] = seen
    assert sigma == 0.1 and torch.allclose(y[y != 0], torch.tensor(0.4)) and (y != 0).float().mean() > 0.9


@pytest.mark.parametrize("gaussian", [False, True])
def test_noise_is_found_in_the_air(gaussian):
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(1, 1, 64, 64)
    image[..., 16:48, 16:48] = 0.7
    image[..., :8, :8] = 0.5  # one corner with something in it
    first, second = 0.05 * torch.randn(2, 1, 1, 64, 64, generator=generator)
    noisy = (image + first if gaussian else torch.hypot(image + first, second)).clamp(0, 1)  # as a picture is
    assert restoration.noise_in_air(noisy, gaussian) == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("flags", commands("uses.md", "Noise"), ids=" ".join)
def test_the_commands_of_the_docs(flags, tiny_run, picture):
    Path("slice.png").write_bytes(Path(picture).read_bytes())
    image = torch.from_numpy(pixels(picture)).float() / 255
    noisy = restoration.noisy(image, 0.05, False, torch.Generator().manual_seed(0))
    write("noisy.png", (255 * noisy.clamp(0, 1)).byte().numpy())
    assert sample.main([*flags, "--ckpt", str(tiny_run), "--out", "o"]) == 0
    assert Path("o/restored.png").exists()


def test_the_rician_bias_is_taken_away_on_average():
    generator = torch.Generator().manual_seed(0)
    first, second = 0.1 * torch.randn(2, 1, 1, 256, 256, generator=generator)
    for level in (0.3, 0.6):
        corrected = restoration.without_rician_bias(torch.hypot(level + first, second), 0.1)
        assert corrected.square().mean().sqrt().item() == pytest.approx(level, rel=0.02)
    assert restoration.without_rician_bias(torch.hypot(first, second), 0.1).mean() < 0.06  # 0.125 before


def test_an_anomaly_map_and_draws_are_written(tiny_run, picture):
    restored(tiny_run, picture, "kspace", "--simulate")
    restored(tiny_run, picture, "anomaly")
    assert not Path("o/deviation.png").exists()  # means differ less than what fits the measurement does
    assert {path.name for path in Path("o").iterdir()} >= {"anomaly.png", "restored.png", "grid.png"}
    restored(tiny_run, picture, "inpaint", "--region", region("r.png"), "--n", "3")
    assert {f"draw_{k}.png" for k in range(3)} | {"deviation.png"} <= {path.name for path in Path("o").iterdir()}
    draws = np.stack([pixels(f"o/draw_{k}.png") for k in range(3)])
    assert np.abs(draws.mean(axis=0) - pixels("o/restored.png")).max() <= 1
    deviation = restoration.AMPLIFIED * draws.std(axis=0)
    assert deviation.max() > 20 and np.abs(deviation.clip(0, 255) - pixels("o/deviation.png")).max() <= 3


def test_what_is_told_and_shown_of_a_result_is_what_its_picture_says(tiny_run, picture, capsys):
    restored(tiny_run, picture, "kspace", "--simulate")
    out, truth = capsys.readouterr().out, torch.from_numpy(pixels(picture))[None, None] / 255
    for name in ("measured", "restored"):
        pair = torch.from_numpy(pixels(f"o/{name}.png"))[None, None] / 255, truth
        expected = [psnr(*pair, 1.0).item(), ssim(*pair, 1.0).item(), *fastmri_scores(*pair)]
        line = next(line for line in out.splitlines() if line.startswith(f"{name}: PSNR"))
        assert [float(x) for x in re.findall(r"\d+\.\d+", line)] == pytest.approx(expected, rel=0.01)
    error = restoration.AMPLIFIED * np.abs(pixels("o/restored.png") - pixels(picture))
    assert np.abs(error.clip(0, 255) - pixels("o/error.png")).max() <= 3


@pytest.mark.parametrize("flags, shown", [([], 0.5), (["--real"], 0.3)])
def test_of_an_image_whose_phase_was_guessed_the_magnitude_is_shown(flags, shown, tiny_run, picture, monkeypatch):
    """The real part, turned back by the first guess, would be darker where that is wrong."""
    image = torch.full((1, 1, 32, 32), 0.3 + 0.4j)
    monkeypatch.setattr(restoration, "restore", lambda *args, **how: iter([image]))
    result = restored(tiny_run, picture, "kspace", "--simulate", "--n", "1", *flags)
    assert np.abs(result - 255 * shown).max() <= 1


def test_the_same_seed_restores_the_same(tiny_run, picture):
    flags = ["--region", region("r.png")]
    once, again = (restored(tiny_run, picture, "inpaint", *flags) for _ in range(2))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, restored(tiny_run, picture, "inpaint", *flags, "--seed", "1"))


def test_mirroring_completes_the_k_space_of_a_real_image():
    for size in ((8, 8), (6, 9)):
        y = fourier(torch.rand(1, 1, *size))
        lines = torch.zeros(size[1], dtype=torch.bool)
        lines[: size[1] // 2 + 1] = True
        whole, known = restoration.symmetrised(lines * y, lines)
        assert known.all() and torch.allclose(whole, y, atol=1e-5)


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--restore", "p.png"], "go together"),
        (["--as", "denoise"], "go together"),
        (["--restore", "nowhere.png", "--as", "denoise"], "no such file"),
        (["--restore", "p.png", "--as", "inpaint"], "needs --region"),
        (["--restore", "p.png", "--as", "inpaint", "--region", "full.png"], "all of it is white"),
        (["--restore", "p.png", "--as", "inpaint", "--region", "empty.png"], "nothing of it is white"),
        (["--restore", "small.png", "--as", "denoise"], "small.png is 16x16"),
        (["--restore", "p.png", "--as", "super-resolution"], "restores images of 16x16"),
        (["--restore", "p.png", "--as", "super-resolution", "--simulate", "--factor", "3"], "must be a multiple"),
        (["--restore", "small.png", "--as", "super-resolution", "--factor", "4096"], "must be a multiple"),
        (["--restore", "packed.npy", "--as", "kspace"], "complex numbers"),
        (["--restore", "few.npy", "--as", "kspace"], "32x32 or more"),
        (["--restore", "p.png", "--as", "denoise", "--film"], "--film does not go with --restore"),
        (["--restore", "p.png", "--as", "denoise", "--extra-noise", "0.1"], "--extra-noise does not go with --restore"),
        (["--restore", "p.png", "--as", "denoise", "--sampler", "ddim"], "--sampler does not go with --restore"),
        (["--restore", "p.png", "--as", "denoise", "--sample-steps", "9"], "--as denoise has a way of its own"),
        (["--restore", "p.png", "--as", "anomaly", "--sample-steps", "9"], "--as anomaly has a way of its own"),
        (["--region", "p.png"], "--region belongs to --restore"),
        (["--noise", "0.1"], "--noise belongs to --restore"),
        (["--restore", "p.png", "--as", "super-resolution", "--simulate", "--factor", "1"], "2 or more"),
        (["--restore", "p.png", "--as", "kspace"], "a picture holds no k-space"),
        (["--restore", "p.png", "--as", "kspace", "--simulate", "--acceleration", "1"], "more than 1"),
        (["--restore", "p.png", "--as", "kspace", "--simulate", "--acceleration", "16"], "less than 16"),
        (["--restore", "real.npy", "--as", "kspace"], "k-space of one coil is needed"),
        (["--restore", "zero.npy", "--as", "kspace"], "nothing was measured"),
        (["--restore", "full.npy", "--as", "kspace"], "an undersampled scan"),
        (
            ["--restore", "echo.npy", "--as", "kspace"],
            "9 of its lines (columns) were measured in part; whole lines",
        ),
        (["--restore", "p.png", "--as", "inpaint", "--region", "wide.png"], "wide.png: 16x32, but the image is 32x32"),
        (["--restore", "p.npy", "--as", "kspace"], "no such file"),
        (["--restore", "broken.npy", "--as", "kspace"], "an array of NumPy"),
        (["--restore", "black.png", "--as", "denoise"], "no noise found"),
        (["--restore", "p.png", "--as", "denoise", "--simulate"], "needs --noise"),
        (["--restore", "p.png", "--as", "denoise", "--noise", "2"], "at most 1"),
        (["--restore", "p.png", "--as", "denoise", "--noise", "0"], "--noise 0: there is none to take away"),
        (["--restore", "p.png", "--as", "anomaly", "--mask", "p.png"], "leave --mask out"),
        (["--restore", "p.png", "--as", "denoise", "--mask"], "is no file"),
        (["--restore", "p.png", "--as", "denoise", "--contrast", "PD"], "knows T1, T2, FLAIR"),
        (["--restore", "p.png", "--as", "denoise", "--guidance", "2"], "needs --mask"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(flags, says, tiny_run, picture, tmp_path, capsys):
    Path("p.png").write_bytes(Path(picture).read_bytes())
    write("full.png", np.full((32, 32), 255, np.uint8))
    for name, size in (("empty.png", 32), ("black.png", 32), ("small.png", 16)):
        write(name, np.zeros((size, size), np.uint8))
    np.save("real.npy", np.ones((32, 32)))
    np.save("few.npy", np.ones((16, 16), np.complex64))
    np.savez("packed", y=np.ones((32, 32), np.complex64))
    Path("packed.npz").rename("packed.npy")
    np.save("zero.npy", np.zeros((32, 32), np.complex64))
    np.save("full.npy", np.ones((32, 32), np.complex64))
    echo = np.ones((32, 32), np.complex64)
    echo[:8, :9] = echo[:, 9:12] = 0  # an echo that was not read from its start is no line of zeros
    np.save("echo.npy", echo)
    region("wide.png", (16, 32))
    Path("broken.npy").write_bytes(b"nothing")
    assert sample.main(["--ckpt", str(tiny_run), *flags, "--out", "o"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.glob("o/*"))


def test_what_is_restored_is_not_written_over(tiny_run, picture, capsys):
    for name in ("restored.png", "region.png"):
        Path(name).write_bytes(Path(picture).read_bytes())
    region("grid.png")
    flags = ["--ckpt", str(tiny_run), "--out", ".", "--restore"]
    for more in (["restored.png", "--as", "denoise"], ["region.png", "--as", "inpaint", "--region", "grid.png"]):
        assert sample.main([*flags, *more]) == 2
        assert "there is read, and would be overwritten; name another folder" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["grid.png", "region.png", "restored.png"]


def test_a_model_without_masks_says_so(tiny_run, picture, tmp_path, capsys):
    raw = torch.load(tiny_run / "checkpoints" / "step_000040.pt", weights_only=True)
    raw["conditions"]["mask"] = []
    for weights in (raw["model"], raw["ema"]):
        weights["conv_in.weight"] = weights["conv_in.weight"][:, :4]
    torch.save(raw, "maskless.pt")
    for flags, says in (
        (["--as", "anomaly"], "needs a model of masks that are empty where all is healthy"),
        (["--as", "denoise", "--mask", picture], "without masks"),
    ):
        assert sample.main(["--ckpt", "maskless.pt", "--restore", picture, *flags, "--out", "o"]) == 2
        assert says in capsys.readouterr().err


def test_of_tissues_an_empty_mask_is_air_and_nothing_healthy(tiny_run, picture, capsys):
    raw = torch.load(tiny_run / "checkpoints" / "step_000040.pt", weights_only=True)
    raw["config"]["labels"] = "tissue"
    torch.save(raw, "tissue.pt")
    assert sample.main(["--ckpt", "tissue.pt", "--restore", picture, "--as", "anomaly", "--out", "o"]) == 2
    assert "needs a model of masks that are empty where all is healthy" in capsys.readouterr().err


def test_a_map_is_guided_by_the_mask_alone_and_needs_no_guidance(tiny_run, picture, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        restoration, "predictor", lambda model, condition, how: seen.append(how) or (lambda x_t, t: x_t)
    )
    restored(tiny_run, picture, "anomaly", "--contrast", "T1")
    assert (seen[-1].guided, seen[-1].guidance) == (("mask",), restoration.HEAL_GUIDANCE)
    raw = torch.load(tiny_run / "checkpoints" / "step_000040.pt", weights_only=True)
    raw["config"].update(mask_drop=0.0, label_drop=0.0, all_drop=0.0)
    torch.save(raw, "always.pt")
    restored("always.pt", picture, "anomaly", "--contrast", "T1")
    assert seen[-1].guidance == 1


def test_what_training_never_withheld_is_asked_for(tiny_run, picture, tmp_path, capsys):
    raw = torch.load(tiny_run / "checkpoints" / "step_000040.pt", weights_only=True)
    raw["config"].update(mask_drop=0.0, label_drop=0.0, all_drop=0.0)
    torch.save(raw, "always.pt")
    command = ["--ckpt", "always.pt", "--restore", picture, "--as", "denoise", "--noise", "0.1", "--out", "o"]
    for flags, says in (([], "it needs --mask"), (["--mask", region("m.png")], "it needs --contrast")):
        assert sample.main([*command, *flags]) == 2
        assert says in capsys.readouterr().err
    assert sample.main([*command, "--mask", region("m.png"), "--contrast", "T2"]) == 0


def test_each_stretch_can_be_walked_again(tiny_run, picture, monkeypatch):
    walks = []
    monkeypatch.setattr(
        restoration, "restore", lambda *args, **how: iter([walks.append(args[3]) or torch.zeros(1, 1, 32, 32)])
    )
    restored(tiny_run, picture, "inpaint", "--region", region("r.png"), "--resample", "2", "--sample-steps", "7")
    assert sum(b > a for a, b in zip(walks[0], walks[0][1:], strict=False)) == 1 and walks[0][-1] == 0


def test_operators_go_where_the_network_is():
    for operator in (Inpainting(torch.ones(2, 2)), KSpace(torch.ones(2), torch.ones(2, 2)), SuperResolution(2)):
        there = operator.to("meta")
        assert all(x.device.type == "meta" for x in vars(there).values() if isinstance(x, torch.Tensor))
        assert all(x.device.type == "cpu" for x in vars(operator).values() if isinstance(x, torch.Tensor))
        assert there.gain == operator.gain


def test_estimates_are_means_and_what_n_asks_for_are_draws(tiny_run, picture, monkeypatch):
    asked = []
    monkeypatch.setattr(
        restoration, "restore", lambda *args, **how: iter([asked.append(how) or torch.zeros(1, 1, 32, 32)])
    )
    for flags in ([], ["--n", "1"], ["--n", "1", "--noise", "0.1"]):
        restored(tiny_run, picture, "inpaint", "--region", region("r.png"), *flags)
    assert [how["draws"] for how in asked] == [False] * restoration.DRAWS + [True, True]
    kept, drawn = restoration.PRIOR_VARIANCE, restoration.DRAWN_VARIANCE
    assert [how["prior_variance"] for how in asked] == [kept] * restoration.DRAWS + [drawn, kept] and drawn < kept


@pytest.mark.parametrize("real", [False, True])
def test_the_phase_of_a_scan_is_refined_unless_it_is_real(real):
    y = restoration.simulated_kspace(torch.rand(1, 1, 32, 32), 4, "equispaced", real, 0.0, torch.Generator())
    assert restoration.of_kspace(y, None, real, 0.0, "scan.npy").operator.estimated is not real


def test_the_phase_of_a_scan_is_guessed_from_the_lines_side_by_side_in_its_middle():
    """What is missing between the others would come into the image as folds."""
    lines, centre = torch.zeros(2, 32, dtype=torch.bool)
    lines[[3, 9, 14, 15, 16, 17, 24]] = centre[14:18] = True
    y = lines * fourier(torch.rand(1, 1, 32, 32) * torch.exp(1j * torch.linspace(0, 2, 32)))
    found, wrong = (KSpace(lines, estimated_phase(y[0, 0], seen)).turn for seen in (centre, lines))
    assert torch.allclose(restoration.of_kspace(y, None, False, 0.0, "scan.npy").operator.turn, found, atol=1e-3)
    assert (found - wrong).abs().max() > 0.05


def test_a_map_heals_from_the_middle_of_the_walk(tiny_run, picture, monkeypatch):
    walks = []
    monkeypatch.setattr(restoration, "heal", lambda *args: walks.append(args[3]) or torch.zeros(1, 1, 32, 32))
    restored(tiny_run, picture, "anomaly")
    assert walks == [[500, 400, 300, 200, 100, 0]] * restoration.DRAWS


@pytest.fixture(scope="module")
def in_the_box():
    return load_model("pretrained")


@pytest.mark.parametrize(
    "changes, source, says",
    [
        (dict(few_steps=4, few_times=[1000, 750, 500, 250, 0]), (), "asks at every time, but it knows 4 steps alone"),
        (dict(segment=True), (), "takes a model of images, and it draws masks"),
        (dict(source_drop=0.0, all_drop=0.0), ("noisy",), "it never learnt to do without one"),
    ],
)
def test_a_model_that_cannot_restore_says_so(changes, source, says, in_the_box):
    config, vocabulary = replace(in_the_box.config, **changes), replace(in_the_box.vocabulary, source=source)
    model = replace(in_the_box, config=config, vocabulary=vocabulary, name="it")
    with pytest.raises(UserError, match=says):
        restoration.completed(argparse.Namespace(mode="denoise"), model, Sampling(), ())


# The benchmark


@pytest.mark.parametrize(
    "changes, source, says",
    [
        (dict(few_steps=4, few_times=[1000, 750, 500, 250, 0]), (), "asks at every time, but it knows 4 steps alone"),
        (dict(segment=True), (), "it draws masks"),
        (dict(source="noisy"), ("noisy",), "it was trained with a source"),
        (dict(mask_drop=0.0, all_drop=0.0), (), "it never learnt to do without --mask"),
        (dict(label_drop=0.0, all_drop=0.0), (), "it never learnt to do without --contrast"),
        (dict(labels="tissue"), (), "a model of the embedded data is needed"),
    ],
)
def test_the_benchmark_refuses_what_cannot_restore(changes, source, says, in_the_box):
    config, vocabulary = replace(in_the_box.config, **changes), replace(in_the_box.vocabulary, source=source)
    benchmark.check_restores(in_the_box)
    with pytest.raises(UserError, match=says):
        benchmark.check_restores(replace(in_the_box, config=config, vocabulary=vocabulary, name="it"))


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--n", "0"], "--n is 0; it must be at least 2"),
        (["--n", "97"], "--n is 97; it must be at most 96"),
        (["--steps", "1001"], "--steps is 1001; it must be at most 1,000"),
        (["--draws", "0"], "--draws is 0; it must be at least 1"),
        (["--ckpt", "pretrained-fast"], "knows 4 steps alone"),
        (["--tasks", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_the_benchmark_says_what_is_wrong_in_one_line(flags, says, small_phantom, monkeypatch, capsys):
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: "is installed")
    assert benchmark.main(["--ckpt", "pretrained", "--tasks", "denoise", *flags]) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1
