"""The tools around the data: volumes into slices, masks for pictures that have none, fetching."""

import json
import sys
import types
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from small_sets import noise, save_nifti, write, yes_no_set

import train
from ddpm.data import folders
from ddpm.data.images import grid, write_png
from ddpm.runtime.config import Config
from ddpm.runtime.run import GRID_SAMPLES
from tools import fetch, figures, make_masks, slices


def pixels(path):
    return np.asarray(Image.open(path))


def refused(main, flags, says, capsys):
    assert main([str(flag) for flag in flags]) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1


# slices.py


def head(shape=(20, 24, 10)):
    """A volume (RAS+) with a head in slices 2 to 7, brighter to the patient's right and to the front."""
    x, y, _ = np.indices(shape)
    volume = (20 + 3 * x + 2 * y).astype(np.int16)
    volume[:, :, :2] = volume[:, :, 8:] = 0
    volume[:2] = volume[-2:] = 0
    return volume


def test_slices_are_windowed_shown_and_written_down(tmp_path, capsys):
    save_nifti(tmp_path / "sub-01_T1w.nii.gz", head(), np.diag([1.0, 1, 3, 1]))
    assert slices.main([str(tmp_path / "sub-01_T1w.nii.gz"), "--out", str(tmp_path / "d")]) == 0
    name = "sub-01_T1w"
    about = json.loads((tmp_path / "d" / f"{name}.json").read_text())
    values = head().astype(float)
    high = np.percentile(values[values > 0], 99.5)
    assert about["window"] == [0, high] and about["percentiles"] == [1, 99.5]
    assert about["slices"] == [2, 3, 4, 5, 6, 7] and about["left_out"] == 4
    assert about["voxel_mm"] == [1, 1, 3] and about["pixel_mm"] == 1
    files = sorted((tmp_path / "d" / "images" / name).iterdir())
    assert [file.name for file in files] == [f"{name}_z{z:03d}.png" for z in range(2, 8)]
    for file in files:
        image = pixels(file)
        assert image.shape == (24, 24) and (image[:, :2] == 0).all() and (image[:, -2:] == 0).all()  # padded
        expected = np.rint(255 * (values[::-1, ::-1, 4].T / high).clip(0, 1))
        assert abs(image[:, 2:-2] - expected).max() <= 1
        assert image[2, 5] > image[-3, 5] and image[5, 5] > image[5, -6]  # the front is up, the right on the left
    assert "6 slices" in capsys.readouterr().out


def test_pixels_become_square(tmp_path):
    """Voxels twice as long from front to back give pictures twice as high; labels keep their values."""
    affine = np.diag([1.0, 2, 1, 1])
    labels = (head() > 60).astype(np.uint8) * 4
    save_nifti(tmp_path / "v.nii", head(), affine)
    save_nifti(tmp_path / "seg.nii", labels, affine)
    flags = [tmp_path / "v.nii", "--masks", tmp_path / "seg.nii", "--out", tmp_path / "d"]
    assert slices.main(list(map(str, flags))) == 0
    image, mask = (pixels(tmp_path / "d" / kind / "v" / "v_z004.png") for kind in ("images", "masks"))
    assert image.shape == mask.shape == (48, 48)
    assert (image[:, :14] == 0).all() and image[:, 16:32].any()
    assert np.array_equal(mask[::2, 14:34], labels[::-1, ::-1, 4].T) and set(np.unique(mask)) == {0, 4}


def test_cut_volumes_train(tmp_path, capsys):
    """Volumes -> slices -> a split by subject -> steps."""
    for i in range(4):
        volume = head() + (head() > 0) * noise(i, size=(20, 24, 10))
        save_nifti(tmp_path / f"s{i}.nii.gz", volume.astype(np.int16))
        save_nifti(tmp_path / f"seg{i}.nii.gz", (volume > 100).astype(np.uint8))
    volumes, masks = ([str(tmp_path / f"{kind}{i}.nii.gz") for i in range(4)] for kind in ("s", "seg"))
    assert slices.main([*volumes, "--masks", *masks, "--out", str(tmp_path / "d")]) == 0
    flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "2", "--out", str(tmp_path / "run")]
    assert train.main(["--data", str(tmp_path / "d"), *flags]) == 0
    assert "pictures in images/ with masks" in capsys.readouterr().out


def test_slices_refuse_what_they_cannot_cut(tmp_path, capsys):
    good, out = save_nifti(tmp_path / "v.nii", head()), tmp_path / "d"
    other = save_nifti(tmp_path / "other.nii", head()[:-1].astype(np.uint8))
    half = save_nifti(tmp_path / "half.nii", head().astype(np.float32) / 7)
    flat = save_nifti(tmp_path / "flat.nii", head(), np.diag([1, 1e-5, 1, 1]))
    twin = save_nifti(tmp_path / "b" / "v.nii.gz", head())
    for flags, says in (
        ([tmp_path / "none.nii", "--out", out], "none.nii"),
        ([good, "--out", out, "--percentiles", "99", "1"], "two numbers that rise"),
        ([good, "--out", out, "--masks", other, half], "2 for 1 volume"),
        ([good, "--out", out, "--masks", other], "other.nii: not on the grid"),
        ([good, "--out", out, "--masks", half], "half.nii: holds more than the labels"),
        ([flat, "--out", out], "flat.nii: voxels of 1 x 1e-05 mm"),
        ([good, twin, "--out", out], "two volumes of the name v"),
        ([good, "--out", "/proc/x"], "cannot write there"),
        ([], "required"),
    ):
        refused(slices.main, flags, says, capsys)
    assert not out.exists() or not list(out.iterdir())
    assert slices.main([str(good), "--out", str(out)]) == 0
    refused(slices.main, [twin, "--out", out], "holds a volume v already", capsys)  # of a loop over subjects' folders


def test_a_damaged_volume_leaves_no_half_set_and_mended_the_command_works(tmp_path, capsys):
    first, second, out = save_nifti(tmp_path / "a.nii", head()), tmp_path / "b.nii", tmp_path / "d"
    second.write_bytes(b"no volume")
    refused(slices.main, [first, second, "--out", out], "b.nii: damaged", capsys)
    assert not out.exists()
    save_nifti(second, head())
    assert slices.main([str(first), str(second), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.json", "b.json", "images"]
    assert len(list(out.glob("images/*/*.png"))) == 12


def test_a_volume_without_a_slice_to_show_is_no_success(tmp_path, capsys):
    speck = np.zeros((20, 24, 10), np.int16)
    speck[5, 5, 5] = 9
    flags = [save_nifti(tmp_path / "speck.nii", speck), "--out", tmp_path / "d"]
    refused(slices.main, flags, "speck.nii: no slice shows a head (more than 2% that is not background)", capsys)
    assert not (tmp_path / "d").exists()


# make_masks.py


def test_otsu_finds_the_threshold_that_splits_best():
    """Against the definition: the variance between the classes, tried at every level."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        dark, bright = rng.normal(rng.uniform(20, 90), 12, 700), rng.normal(rng.uniform(120, 220), 20, 300)
        image = np.concatenate([dark, bright]).clip(0, 255).astype(np.uint8).reshape(20, 50)

        def between(t, image=image):
            low, high = image[image <= t], image[image > t]
            return low.size * high.size * (low.mean() - high.mean()) ** 2 if low.size and high.size else -1

        assert make_masks.otsu_threshold(image) == max(range(255), key=between)
    two = np.array([[10, 10, 200]], np.uint8)
    assert 10 <= make_masks.otsu_threshold(two) < 200


def test_the_foreground_has_no_holes(tmp_path):
    image = np.full((20, 20), 12, np.uint8)
    image[4:16, 5:15] = 180
    image[8:10, 8:10] = 10  # a ventricle
    expected = np.zeros((20, 20), bool)
    expected[4:16, 5:15] = True
    assert np.array_equal(make_masks.otsu_foreground(image, "p"), expected)


def test_ellipses_are_one_body_of_the_stated_size_and_place():
    image, areas = np.zeros((80, 60), np.uint8), []
    for i in range(60):
        mask = make_masks.ellipse(image, 0, f"name {i}")
        assert ndimage.label(mask)[1] == 1
        y, x = (where.mean() + 0.5 for where in np.nonzero(mask))
        assert 19 <= y <= 61 and 14 <= x <= 46  # the middle half of each axis
        areas.append(mask.sum() / np.pi / 60**2)
    assert 0.04**2 < min(areas) and max(areas) < 0.205**2 and max(areas) > 3 * min(areas)
    assert np.array_equal(make_masks.ellipse(image, 1, "a"), make_masks.ellipse(image, 1, "a"))
    assert not np.array_equal(make_masks.ellipse(image, 1, "a"), make_masks.ellipse(image, 2, "a"))
    assert not np.array_equal(make_masks.ellipse(image, 1, "a"), make_masks.ellipse(image, 1, "b"))


@pytest.mark.parametrize("rule", ["ellipses", "otsu"])
def test_pictures_without_masks_train_with_made_ones(tmp_path, capsys, rule):
    root = yes_no_set(tmp_path / "d")
    write(root / "brain_tumor_dataset" / "no" / "deep.png", noise(1, size=(30, 26), top=5000, dtype=np.uint16))
    assert make_masks.main([str(root), str(tmp_path / "m"), "--rule", rule]) == 0
    assert "13 masks" in capsys.readouterr().out
    assert {path.relative_to(tmp_path / "m").with_suffix("") for path in (tmp_path / "m").rglob("*.png")} == {
        path.relative_to(root).with_suffix("") for path in root.rglob("*.*")
    }
    assert set(np.unique(pixels(tmp_path / "m" / "brain_tumor_dataset" / "yes" / "Y0.png"))) == {0, 255}
    data = folders.load(Config(data=str(root), masks=str(tmp_path / "m"), image_size=[32, 32]), "train")
    assert data.masks.any() and data.classes == ("background", "class 1")


def test_make_masks_refuses(tmp_path, capsys):
    root = yes_no_set(tmp_path / "d")
    (tmp_path / "empty").mkdir()
    flat, drawn = (write(tmp_path / name / "a.png", np.full((9, 9), 5, np.uint8)).parent for name in ("flat", "drawn"))
    for name in ("a.jpg", "a.png"):
        twins = write(tmp_path / "twins" / name, noise(1)).parent
    for flags, says in (
        ([tmp_path / "nowhere", tmp_path / "m"], "no such folder"),
        ([tmp_path / "empty", tmp_path / "m"], "no pictures here"),
        ([root, root], "would overwrite"),
        ([root, root / "masks"], "would be taken for pictures"),
        ([root, tmp_path / "m", "--seed", "-1"], "must not be negative"),
        ([flat, tmp_path / "m", "--rule", "otsu"], "a.png: a single grey level"),
        ([root, tmp_path / "m", "--rule", "best"], "invalid choice"),
        ([twins, tmp_path / "m"], "a.png: is the mask of a.jpg too"),
        ([flat, drawn], "a.png: exists already"),
    ):
        refused(make_masks.main, flags, says, capsys)
    assert not (tmp_path / "m").exists()


def test_a_damaged_picture_leaves_no_half_set_and_mended_the_command_works(tmp_path, capsys):
    root, masks = write(tmp_path / "d" / "a.png", noise(1)).parent, write(tmp_path / "m" / "other.png", noise(2)).parent
    (root / "b.png").write_bytes(b"no picture")
    refused(make_masks.main, [root, masks], "b.png: damaged", capsys)
    assert [path.name for path in masks.iterdir()] == ["other.png"]
    write(root / "b.png", noise(3))
    assert make_masks.main([str(root), str(masks)]) == 0
    assert sorted(path.name for path in masks.iterdir()) == ["a.png", "b.png", "other.png"]


def test_make_masks_offers_no_flag_that_it_lacks(tmp_path, capsys):
    (write(tmp_path / "d" / "a.png", noise(1)).parent / "loop").symlink_to(tmp_path / "d")
    assert make_masks.main([str(tmp_path / "d"), str(tmp_path / "m")]) == 2
    error = capsys.readouterr().err
    assert "a link to a folder that it lies in; remove the link\n" in error and "--skip-bad" not in error


# fetch.py


class Response:
    def __init__(self, status_code):
        self.status_code = status_code


def failing(error):
    def dataset_download(name):
        raise error

    return types.SimpleNamespace(dataset_download=dataset_download)


def with_status(status):
    error = RuntimeError("a page of text\nin two lines")
    error.response = Response(status)
    return error


class UnauthenticatedError(Exception):  # of that name, as kagglehub's
    pass


@pytest.mark.parametrize(
    "error, says",
    [
        (with_status(401), "put a token where kagglehub looks"),
        (with_status(403), "accept the set's terms"),
        (with_status(404), "knows no data set of this name"),
        (UnauthenticatedError("who?"), "put a token"),
        (ConnectionError("no route"), "check the network"),
        (with_status(500), "could not be fetched (a page of text in two lines)"),
        (ValueError(), "could not be fetched (ValueError)"),
    ],
)
def test_what_fails_in_fetching_is_one_line(monkeypatch, capsys, error, says):
    monkeypatch.setitem(sys.modules, "kagglehub", failing(error))
    refused(fetch.main, ["owner/name"], says, capsys)


def test_fetching_names_the_folder_and_the_next_command(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=lambda name: f"/data/{name}"))
    assert fetch.main(["owner/some-set.2"]) == 0
    assert "train.py --data /data/owner/some-set.2" in capsys.readouterr().out


def test_fetching_needs_a_name_and_kagglehub(monkeypatch, capsys):
    for name in ([], [""], ["mri"], ["a/b/c"], ["a b/c"]):
        refused(fetch.main, name, "name a data set as owner/name", capsys)
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    refused(fetch.main, ["owner/name"], "pip install -r requirements/kaggle.txt", capsys)


# figures.py


def test_figures_of_a_run_without_grids_or_log_are_refused(tmp_path, capsys):
    (tmp_path / "run" / "samples").mkdir(parents=True)
    refused(figures.main, ["--run", tmp_path / "run"], "log.jsonl", capsys)
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    refused(figures.main, ["--run", tmp_path / "run"], "no sample grid", capsys)
    write(tmp_path / "run" / "samples" / "step_000001.png", noise(1))
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 1, "lo')
    refused(figures.main, ["--run", tmp_path / "run"], "no log yet", capsys)
    refused(figures.main, ["--run", ""], "an empty name", capsys)


def test_figures_of_progress_are_a_row_of_masks_then_one_a_step_then_the_real_images(tmp_path, capsys):
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    (run / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (run / "config.json").write_text('{"image_size": [64, 64]}')
    cells = np.random.default_rng(0).integers(0, 255, (2, 3, 2 + GRID_SAMPLES, 3, 64, 64), dtype=np.uint8)
    for step, cell in zip((100, 500), cells, strict=True):
        write_png(run / "samples" / f"step_{step:06d}.png", grid(cell))
    refused(figures.main, ["--run", run, "--progress", 100, 900], "step_000900.png: no such grid", capsys)
    assert figures.main(["--run", str(run), "--progress", "100", "500", "--out", str(tmp_path / "figures")]) == 0
    expected = grid(np.stack([cells[0][:, 0], cells[0][:, 2], cells[1][:, 2], cells[0][:, 1]]))
    assert np.array_equal(pixels(tmp_path / "figures" / "progress.png"), expected)


@pytest.mark.parametrize("masks, size", [(0, (64, 64)), (1, (96, 64)), (0, (32, 64))])
def test_figures_of_progress_without_masks_and_of_images_that_are_not_square(masks, size, tmp_path):
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    (run / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (run / "config.json").write_text(json.dumps({"image_size": size}))
    cells = np.random.default_rng(0).integers(0, 255, (3, masks + 1 + GRID_SAMPLES, 3, *size), dtype=np.uint8)
    write_png(run / "samples" / "step_000100.png", grid(cells))
    assert figures.main(["--run", str(run), "--progress", "100"]) == 0
    expected = grid(np.stack([cells[:, i] for i in [*range(masks), masks + 1, masks]]))
    assert np.array_equal(pixels(run / "progress.png"), expected)


def test_figures_leave_out_a_line_that_was_cut_off(tmp_path, monkeypatch):
    write(tmp_path / "run" / "samples" / "step_000001.png", noise(1))
    (tmp_path / "run" / "log.jsonl").write_text(
        '{"step": 1, "loss": 0.5}\n{"step": 1, "val_loss": 0.6}\n{"step": 2, "lo'
    )
    figure, plt, left, right = mock.MagicMock(), mock.MagicMock(), mock.MagicMock(), mock.MagicMock()
    plt.subplots.return_value = figure, (left, right)
    monkeypatch.setitem(sys.modules, "matplotlib", mock.MagicMock(pyplot=plt))
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", plt)
    assert figures.main(["--run", str(tmp_path / "run")]) == 0
    assert [call.args[:2] for call in left.plot.call_args_list] == [([1], [0.5]), ([1], [0.6])]
    assert figure.savefig.call_args.args == (tmp_path / "run" / "loss.png",)
