"""Algorithm 2 as a program, and what it promises of its files."""

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_stack import renumbered

import sample
import train
from benchmarks import samplers
from ddpm.asked import read_masks
from ddpm.data.images import read_mask
from ddpm.model import Sampling, load_model
from ddpm.restoration import asked_for
from ddpm.reverse import SAMPLERS
from ddpm.runtime import checkpoint, command_line
from ddpm.runtime.command_line import quicker_precision  # conftest.py replaces it there

ROOT = Path(sample.__file__).parent


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def write_mask(path, size=(32, 32), value=255):
    labels = np.zeros(size, np.uint8)
    labels[10:20, 10:20] = value
    Image.fromarray(labels).save(path)
    return str(path)


def draw(ckpt, *flags):
    assert sample.main(["--ckpt", ckpt, "--sample-steps", "4", *flags]) == 0


def test_mask_alone_takes_the_newest_checkpoint_and_the_example_masks(tiny_run, tmp_path, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "run").symlink_to(tiny_run)
    assert sample.main(["--mask", "--n", "2", "--out", "drawn"]) == 0
    first = next(line for line in capsys.readouterr().out.splitlines() if "step 40" in line)
    for part in (
        "results/run/checkpoints/step_000040.pt",
        "step 40",
        "ema weights",
        "10 dpm-solver steps in ",
        "guidance 1.25 by mask and contrast for t / T in 0.05 to 0.9, extra noise 0.08",
        "drawn",
    ):
        assert part in first
    masks = sorted(path.stem for path in (ROOT / "examples" / "masks" / "lesion").iterdir())
    expected = sorted([f"{mask}_{k}.png" for mask in masks for k in range(2)] + ["grid.png"])
    assert sorted(path.name for path in Path("drawn").iterdir()) == expected
    assert Image.open(f"drawn/{masks[0]}_0.png").mode == "L" and pixels(f"drawn/{masks[0]}_0.png").shape == (32, 32)
    assert pixels("drawn/grid.png").shape == (len(masks) * 130, 3 * 130, 3)


def test_default_output_is_in_results(ckpt, capsys):
    draw(ckpt, "--n", "1")
    (folder,) = Path("results").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["grid.png", "unconditional_0.png"]


def test_the_steps_that_are_told_are_those_that_are_walked(ckpt, capsys):
    assert sample.main(["--ckpt", ckpt, "--n", "1", "--sample-steps", "60", "--out", "o"]) == 0
    assert "58 dpm-solver steps" in capsys.readouterr().out  # two times met another's


def test_what_lies_in_the_folder_already_is_told(ckpt, capsys):
    for flags, told in ((["--n", "2"], False), (["--n", "1"], True)):
        draw(ckpt, *flags, "--out", "o")
        assert ("note: o holds images already; those of other names stay" in capsys.readouterr().out) == told
    assert Path("o/unconditional_1.png").exists()


def test_a_folder_of_folders_names_them(ckpt, capsys):
    assert sample.main(["--ckpt", ckpt, "--mask", str(ROOT / "examples" / "masks"), "--out", "o"]) == 2
    assert "no pictures here" in (error := capsys.readouterr().err) and "its folders (lesion, tissue, ...)" in error


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_k_is_the_same_whatever_is_drawn_beside_it(sampler, ckpt, tmp_path):
    """To one grey level in float32, for another --n, another --batch-size, and alone or in a folder of masks."""
    (tmp_path / "masks").mkdir()
    mask = write_mask(tmp_path / "masks" / "b.png")
    write_mask(tmp_path / "masks" / "a.png", value=0)
    flags = ["--sampler", sampler, "--contrast", "T2", "--precision", "fp32"]
    draw(ckpt, "--mask", mask, "--n", "3", *flags, "--out", "alone")
    draw(ckpt, "--mask", str(tmp_path / "masks"), "--n", "4", "--batch-size", "3", *flags, "--out", "together")
    for k in range(3):
        assert np.abs(pixels(f"alone/b_{k}.png") - pixels(f"together/b_{k}.png")).max() <= 1
    assert np.abs(pixels("alone/b_0.png") - pixels("alone/b_1.png")).max() > 10


def test_seed_contrast_mask_weights_and_guidance_each_change_the_image(ckpt, tmp_path):
    mask, other = write_mask(tmp_path / "m.png"), write_mask(tmp_path / "o.png", value=0)
    folder = tmp_path / "renamed"
    folder.mkdir()
    same_name = folder / "m.png"
    same_name.write_bytes(Path(other).read_bytes())
    draw(ckpt, "--mask", mask, "--n", "1", "--contrast", "T1", "--out", "base")
    variants = {
        "seed": ["--mask", mask, "--contrast", "T1", "--seed", "1"],
        "contrast": ["--mask", mask, "--contrast", "T2"],
        "mask": ["--mask", str(same_name), "--contrast", "T1"],
        "weights": ["--mask", mask, "--contrast", "T1", "--weights", "raw"],
        "guidance": ["--mask", mask, "--contrast", "T1", "--guidance", "4"],
        "sampler": ["--mask", mask, "--contrast", "T1", "--sampler", "ancestral"],
    }
    for name, flags in variants.items():
        draw(ckpt, "--n", "1", *flags, "--out", name)
        assert not np.array_equal(pixels("base/m_0.png"), pixels(f"{name}/m_0.png")), name
    draw(ckpt, "--mask", mask, "--n", "1", "--contrast", "T1", "--guidance", "1.25", "--out", "again")
    assert np.array_equal(pixels("base/m_0.png"), pixels("again/m_0.png"))


def test_every_flag_of_sampling_is_heard():
    flags = "--sampler ddim --sample-steps 7 --guidance 2 --guided mask contrast --guidance-interval 0.1 0.9 --eta 0.3"
    args = sample.make_parser().parse_args([*flags.split(), "--precision", "bf16", "--extra-noise", "0.1"])
    how = Sampling("ddim", 7, 2.0, ("mask", "contrast"), (0.1, 0.9), 0.3, "bf16", extra_noise=0.1)
    assert command_line.sampling_of(args) == how
    plain = sample.make_parser().parse_args(["--precision", "fp32"])
    assert command_line.sampling_of(plain) == Sampling()


def test_contrasts_come_in_turn(ckpt, tmp_path):
    mask = write_mask(tmp_path / "m.png")
    draw(ckpt, "--mask", mask, "--n", "4", "--out", "each")
    draw(ckpt, "--mask", mask, "--n", "4", "--contrast", "FLAIR", "--out", "flair")
    close = [np.abs(pixels(f"each/m_{k}.png") - pixels(f"flair/m_{k}.png")).max() <= 1 for k in range(4)]
    assert close == [False, False, True, False]


def test_film(ckpt, tmp_path):
    draw(ckpt, "--mask", write_mask(tmp_path / "m.png"), "--n", "2", "--film", "--out", "o")
    film = Image.open("o/film.gif")
    assert film.n_frames == 5  # x_T and four steps
    assert film.size == (3 * 130, 130)


def test_the_overview_shows_as_many_as_a_picture_can_hold(ckpt, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sample, "OVERVIEW", 3)
    (tmp_path / "masks").mkdir()
    for k in range(4):
        write_mask(tmp_path / "masks" / f"{k}.png")
    draw(ckpt, "--mask", str(tmp_path / "masks"), "--n", "4", "--out", "o")
    assert (
        Image.open("o/grid.png").size == ((1 + 3) * 130, 3 * 130)
        and "grid.png (the first 3) in o" in capsys.readouterr().out
    )
    assert len(list(Path("o").glob("?_?.png"))) == 16


def test_a_mask_of_another_size_is_resized_with_a_notice(ckpt, tmp_path, capsys):
    draw(ckpt, "--mask", write_mask(tmp_path / "m.png", size=(64, 48)), "--n", "1", "--out", "o")
    assert "mask of 64x48 resized by nearest neighbour to 32x32" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_whatever_a_mask_is_called_it_is_drawn_for_and_told(ckpt, tmp_path, monkeypatch, encoding):
    """No UTF-8, letters that the terminal lacks, a newline: the file is written, and a name is printed in one line."""
    names = [os.fsdecode(b"\xff\xfe"), "größe 切片", "a\nb"]
    for name in names:
        write_mask(tmp_path / f"{name}.png", size=(48, 48))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    draw(ckpt, "--mask", str(tmp_path), "--n", "1", "--out", "o")
    sys.stdout.flush()
    told = sys.stdout.buffer.getvalue().decode(encoding)
    assert r"\udcff\udcfe.png: mask of 48x48" in told and r"a\nb.png: mask of 48x48" in told
    assert ("größe 切片.png: mask" if encoding == "utf-8" else r"\u5207\u7247.png: mask") in told
    assert {path.name for path in Path("o").iterdir()} == {*(f"{name}_0.png" for name in names), "grid.png"}


def test_palette_and_label_masks_are_read_as_labels(ckpt, tmp_path):
    write_mask(tmp_path / "m.png")
    palette = Image.fromarray(pixels(tmp_path / "m.png").astype(np.uint8) // 255).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0])
    (tmp_path / "p").mkdir()
    palette.save(tmp_path / "p" / "m.png")
    draw(ckpt, "--mask", str(tmp_path / "m.png"), "--n", "1", "--out", "a")
    draw(ckpt, "--mask", str(tmp_path / "p" / "m.png"), "--n", "1", "--out", "b")
    assert np.array_equal(pixels("a/m_0.png"), pixels("b/m_0.png"))


def test_labels_are_called_as_in_the_masks_of_the_training(ckpt, tmp_path, capsys):
    for number in (1, 2, 3, 255):
        write_mask(tmp_path / f"{number}.png", value=number)
    model, expected = load_model(ckpt), read_mask(tmp_path / "1.png", ("background", "lesion"))
    other = load_model(renumbered(ckpt))
    for number in (3, 255):
        read, _ = read_masks(str(tmp_path / f"{number}.png"), other)
        assert np.array_equal(read[str(number)], expected)
        args = SimpleNamespace(mode="denoise", mask=str(tmp_path / f"{number}.png"), contrast=None, prompt=None)
        args.text_embeddings = None
        condition, _ = asked_for(args, other)
        assert torch.equal(condition.mask, model.vocabulary.condition(expected[None]).mask)
    assert sample.main(["--ckpt", "renumbered.pt", "--mask", str(tmp_path / "2.png"), "--out", "o"]) == 2
    assert "labels 2 that are not known; known are 0 background, 3 lesion" in capsys.readouterr().err


def test_masks_are_not_written_over(ckpt, tmp_path, capsys):
    (tmp_path / "m").mkdir()
    for name in ("x", "x_0"):
        write_mask(tmp_path / "m" / f"{name}.png")
    assert sample.main(["--ckpt", ckpt, "--mask", "m", "--out", "m"]) == 2
    assert "--out m: x_0.png there is read, and would be overwritten" in capsys.readouterr().err
    assert sorted(os.listdir("m")) == ["x.png", "x_0.png"] and pixels("m/x_0.png").max() == 255
    draw(ckpt, "--mask", "m/x.png", "--n", "1", "--out", "m/..")


def damaged(tmp_path, ckpt, how):
    path = tmp_path / f"{how}.pt"
    whole = Path(ckpt).read_bytes()
    raw = torch.load(ckpt, weights_only=True)
    match how:
        case "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("not a checkpoint")
        case "foreign":
            torch.save({"state_dict": {}}, path)
        case "likeness":  # it says version 1, and has nothing of it
            torch.save({"version": 1, "config": {}, "model": {}}, path)
        case "newer":
            torch.save({**raw, "version": 99, "new key": 0}, path)
        case "hostile":
            torch.save({**raw, "step": Evil()}, path)  # a whole archive, so that only the loader can refuse it
        case "altered":
            raw["ema"].pop("conv_in.weight")
            torch.save(raw, path)
        case "other config":
            raw["config"]["colour"] = 1
            torch.save(raw, path)
    return str(path)


class Evil:
    def __reduce__(self):
        return (Path("executed").touch, ())


@pytest.mark.parametrize(
    "how, says",
    [
        ("truncated", "damaged"),
        ("empty", "damaged"),
        ("text", "damaged"),
        ("foreign", "some other program"),
        ("likeness", "not a checkpoint of this program"),
        ("newer", "version 99"),
        ("hostile", "damaged"),
        ("altered", "do not fit"),
        ("other config", "configuration"),
    ],
)
def test_checkpoints_that_cannot_be_used_are_refused(how, says, ckpt, tmp_path, capsys):
    assert sample.main(["--ckpt", damaged(tmp_path, ckpt, how), "--n", "1", "--out", "o"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not Path("executed").exists() and not list(Path().glob("o/*.png"))


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--mask", "nowhere.png"], "nowhere.png: no such file"),
        (["--mask", "seven.png"], "labels 7 that are not known; known are 0 background, 1 lesion"),
        (["--mask", "rgb.png"], "mode RGB"),
        (["--mask", "text.png"], "not a picture"),
        (["--mask", "empty"], "no pictures"),
        (["--n", "0"], "at least 1"),
        (["--sample-steps", "2000"], "more than the 1000 steps"),
        (["--contrast", "PD"], "knows T1, T2, FLAIR"),
        (["--guidance", "2", "--contrast", "none"], "needs --mask"),
        (["--guidance", "2", "--guided", "mask"], "needs --mask"),
        (["--guided", "mask"], "--guidance 1.25 needs --mask"),
        (["--guidance-interval", "0.5", "0.2"], "0 <= LOW <= HIGH <= 1"),
        (["--eta", "1"], "belongs to --sampler ddim"),
        (["--extra-noise", "-1"], "at least 0"),
        (["--sampler", "euler"], "invalid choice"),
        (["--seed", "-1"], "at least 0"),
        (["--ckpt", "nowhere.pt"], "no such checkpoint"),
        (["--ckpt", "no\nwhere.pt"], r"no\nwhere.pt: no such checkpoint"),
        (["--mask", "no\nwhere.png"], r"no\nwhere.png: no such file"),
        (["--mask", os.fsdecode(b"\xff.png")], r"\udcff.png: no such file"),
        (["--out", "/proc/o"], "cannot write there"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(flags, says, ckpt, tmp_path, capsys):
    write_mask(tmp_path / "seven.png", value=7)
    Image.new("RGB", (32, 32)).save("rgb.png")
    Path("text.png").write_text("hello")
    Path("empty").mkdir()
    assert sample.main(["--ckpt", ckpt, "--out", "o", *flags]) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(Path().glob("o/*.png"))


def test_without_any_checkpoint_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path / "pretrained.pt")  # a checkout without the model in the box
    assert sample.main(["--mask"]) == 2
    assert "no such checkpoint; `make pretrained` makes one" in capsys.readouterr().err
    assert sample.main(["--mask", "--ckpt", "nowhere.pt"]) == 2
    assert "no such checkpoint; `make train` makes one" in capsys.readouterr().err


def test_a_network_without_masks_refuses_them(small_phantom, tmp_path, capsys):
    flags = ["--preset", "tiny", "--labels", "none", "--steps", "2", "--precision", "fp32", "--out", "run"]
    assert train.main(flags) == 0
    newest = str(checkpoint.newest("run"))
    assert sample.main(["--ckpt", newest, "--mask", write_mask(tmp_path / "m.png")]) == 2
    assert "without masks" in capsys.readouterr().err
    draw(newest, "--n", "2", "--out", "o")
    capsys.readouterr()
    assert samplers.main(["--ckpt", newest, "--n", "50"]) == 2
    error = capsys.readouterr().err
    assert "give a checkpoint of the phantom with masks" in error and error.count("\n") == 1


def test_the_benchmark_of_samplers_says_first_what_it_cannot_do(ckpt, monkeypatch, capsys):
    monkeypatch.setattr(samplers, "draw_for", lambda *asked, **how: pytest.fail("it draws"))
    raw = torch.load(ckpt, weights_only=True)
    raw["config"].update(mask_drop=0.0, label_drop=0.0, all_drop=0.0)
    torch.save(raw, "always.pt")
    for flags, says in (
        (["--ckpt", "pretrained-fast"], "trained for 4 steps alone; name it by --few"),
        (["--ckpt", ckpt, "--few", ckpt], "trained for any number of steps; name it by --ckpt"),
        (["--ckpt", ckpt, "--few", "pretrained-fast"], "--few pretrained-fast: draws other images"),
        (["--ckpt", "always.pt", "--only", "guidance"], "never learnt to do without --mask"),
        (["--ckpt", ckpt, "--n", "57"], "--n is 57; it must be at most 56"),
        (["--ckpt", ckpt, "--n", "39"], "--n is 39; it must be at least 40"),
        (["--ckpt", ckpt, "--n-long", "1"], "--n-long is 1; it must be at least 40"),
        (["--ckpt", ckpt, "--n", "50", "--out", "/proc/x"], "--out /proc/x: cannot write there"),
        (["--ckpt", ckpt, "--only", "magic"], "invalid choice: 'magic'"),
    ):
        assert samplers.main(flags) == 2
        error = capsys.readouterr().err
        assert says in error and error.startswith("error: ") and error.count("\n") == 1


def test_letters_that_the_terminal_lacks_cost_nothing(small_phantom, tmp_path, monkeypatch):
    flags = ["--preset", "tiny", "--labels", "none", "--steps", "1", "--precision", "fp32", "--out", "прогон"]
    for main, argv in ((train.main, flags), (sample.main, ["--ckpt", "прогон", "--n", "1", "--out", "образцы"])):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            assert main(argv) == 0
            terminal.flush()
        assert rb"\u043f\u0440\u043e\u0433\u043e\u043d" in terminal.buffer.getvalue()
    assert Path("образцы/grid.png").exists()


def test_tissue_labels_choose_the_tissue_examples(small_phantom, tmp_path):
    flags = ["--preset", "tiny", "--labels", "tissue", "--steps", "2", "--precision", "fp32", "--out", "run"]
    assert train.main(flags) == 0
    draw(str(checkpoint.newest("run")), "--mask", "--n", "1", "--out", "o")
    masks = [path.stem for path in (ROOT / "examples" / "masks" / "tissue").iterdir()]
    assert len(list(Path("o").glob("*_0.png"))) == len(masks)


def test_what_training_never_withheld_cannot_be_left_out(ckpt, tmp_path, capsys):
    raw = torch.load(ckpt, weights_only=True)
    raw["config"].update(mask_drop=0.0, label_drop=0.0, all_drop=0.0)
    torch.save(raw, tmp_path / "always.pt")
    mask = ["--mask", write_mask(tmp_path / "m.png")]
    for flags, says in (
        ([], "was trained with --mask-drop 0 and --all-drop 0: it needs --mask"),
        ([*mask, "--guidance", "2"], "never learnt to do without --mask"),
        ([*mask, "--contrast", "none"], "was trained with --label-drop 0 and --all-drop 0: it needs --contrast"),
    ):
        assert sample.main(["--ckpt", str(tmp_path / "always.pt"), *flags]) == 2
        assert says in capsys.readouterr().err
    draw(str(tmp_path / "always.pt"), *mask, "--n", "1", "--out", "o")


def test_bf16_draws_nearly_the_same_image(ckpt, tmp_path):
    mask = write_mask(tmp_path / "m.png")
    for precision in ("fp32", "bf16"):
        draw(ckpt, "--mask", mask, "--n", "1", "--precision", precision, "--out", precision)
    difference = np.abs(pixels("fp32/m_0.png") - pixels("bf16/m_0.png"))
    assert 0 < difference.max() and difference.mean() < 5


def test_as_a_real_process(ckpt, tmp_path):
    """The script from another folder: exit status, one line of error, no traceback."""
    command = [sys.executable, str(ROOT / "sample.py"), "--ckpt"]
    bad = subprocess.run([*command, "nowhere.pt"], capture_output=True, text=True, cwd=tmp_path)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "Traceback" not in bad.stderr
    good = subprocess.run([*command, ckpt, "--n", "1", "--sample-steps", "2"], capture_output=True, cwd=tmp_path)
    assert good.returncode == 0


def test_two_masks_that_look_alike_have_noise_of_their_own(ckpt, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "twins").mkdir(exist_ok=True)
        write_mask(tmp_path / "twins" / f"{name}.png")
    draw(ckpt, "--mask", str(tmp_path / "twins"), "--n", "1", "--out", "o")
    assert not np.array_equal(pixels("o/a_0.png"), pixels("o/b_0.png"))


@pytest.mark.parametrize("slow, chosen", [(torch.bfloat16, "fp32"), (torch.float32, "bf16"), (None, "fp32")])
def test_the_precision_is_the_one_that_is_clearly_quicker_here(slow, chosen, monkeypatch):
    now = [0.0]

    def conv2d(x, weight, padding):
        now[0] += 1.0 if x.dtype == slow else 0.5
        return x

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    monkeypatch.setattr(command_line.time, "perf_counter", lambda: now[0])  # a clock that only the convolution moves
    assert quicker_precision(torch.device("cpu")) == chosen
    assert quicker_precision(torch.device("mps")) == "fp32"


@pytest.mark.parametrize("flags, used", [([], "bf16"), (["--precision", "fp32"], "fp32")])
def test_the_quicker_precision_is_drawn_in_unless_one_is_named(flags, used, ckpt, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "quicker_precision", lambda device: "bf16")
    assert sample.main(["--ckpt", ckpt, "--n", "1", "--sample-steps", "2", "--out", "o", *flags]) == 0
    assert f"2 dpm-solver steps in {used}, " in capsys.readouterr().out
