"""Each published data set, in small files of exactly its format; volumes, their orientation and their window."""

import re
import sys

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_sets import (
    SIZE,
    brats_set,
    brats_slice_set,
    fastmri_set,
    lgg_set,
    load,
    noise,
    save_nifti,
    split_set,
    subject_set,
    write,
    write_hdf5,
    yes_no_set,
)

import sample
import train
from ddpm import UserError
from ddpm.conditions import Vocabulary
from ddpm.data import Slices, folders, phantom, volumes
from ddpm.data.formats import brats
from ddpm.data.images import to_uint8
from ddpm.model import load_model
from ddpm.runtime.config import Config
from ddpm.training import draw_batch, order


def everything(root, **options):
    """All splits of a set as one: name -> (image, labels, contrast)."""
    found = {}
    for split in ("train", "val", "test"):
        data = load(root, split, **options)
        for i, name in enumerate(data.index["names"]):
            contrast = int(data.labels["contrast"][i]) - 1 if data.labels else None
            found[name, contrast] = data.images[i], None if data.masks is None else data.masks[i]
    return found


# LGG


def test_lgg(tmp_path):
    root, found = lgg_set(tmp_path / "d"), {}
    for split in ("train", "val", "test"):
        data = load(root, split)
        assert data.classes == ("background", "tumour") and not data.vocabulary.labels
        assert "LGG" in data.index["about"] and "FLAIR" in data.index["about"]
        assert len(set(data.index["subjects"])) == {"train": 3, "val": 1, "test": 1}[split]
        assert sum(not any(lesions) for _, *lesions in data.index["class_pixels"]) == len(data) / 2
        found |= dict(zip(data.index["names"], zip(data.images, data.masks, strict=True), strict=True))
    assert len(found) == 10
    for c in range(5):
        for i in (1, 2):
            case = f"TCGA_CS_{4941 + c}_19960909"
            image, labels = found[f"kaggle_3m/{case}/{case}_{i}"]
            assert np.array_equal(image[0], noise(c, i, size=(*SIZE, 3))[..., 1])  # FLAIR is the second
            assert np.array_equal(labels, noise(c, i, 1, top=2) * (i > 1))


def test_lgg_in_three_channels_and_without_masks(tmp_path):
    data = load(lgg_set(tmp_path / "d"), image_channels=3)
    assert data.images.shape[1] == 3 and "post-contrast as channels" in data.index["about"]
    case, number = data.index["names"][0].split("/")[1], int(data.index["names"][0][-1])
    expected = noise(int(case.split("_")[2]) - 4941, number, size=(*SIZE, 3))
    assert np.array_equal(data.images[0], np.moveaxis(expected, -1, 0))
    assert load(tmp_path / "d", labels="none").masks is None


@pytest.mark.parametrize("channels", [1, 3])
def test_tifs_beside_their_masks_that_are_not_lgg(tmp_path, channels):
    """Numbered anew for each patient; in grey, or in colours that are no contrasts."""
    for s in range(4):
        for i in range(2):
            write(tmp_path / f"P{s}" / f"{i:03d}.tif", noise(s, i, size=(*SIZE, 3) if channels == 3 else SIZE))
            write(tmp_path / f"P{s}" / f"{i:03d}_mask.tif", noise(s, i, 9, top=3))
    options = {"num_classes": 3, "image_channels": channels}
    found = everything(tmp_path, **options)
    assert len(found) == 8 and {name.split("/")[0] for name, _ in found} == {f"P{s}" for s in range(4)}
    for s in range(4):
        image, labels = found[f"P{s}/001", None]
        assert np.array_equal(np.moveaxis(image, 0, -1).squeeze(), noise(s, 1, size=(*SIZE, channels)).squeeze())
        assert np.array_equal(labels, noise(s, 1, 9, top=3))
    data = load(tmp_path, **options)
    assert data.index["about"].endswith("pictures NAME.tif beside NAME_mask.tif with masks")
    assert len(set(data.index["subjects"])) * 2 == len(data)
    assert load(tmp_path, **options, labels="none").masks is None


# BraTS


def test_brats_volumes(tmp_path):
    found, skipped = everything(brats_set(tmp_path / "d"), size=(14, 12)), 0
    data = load(tmp_path / "d", size=(14, 12))
    assert data.classes == brats.CLASSES and data.vocabulary.labels["contrast"] == brats.CONTRASTS
    assert set(data.labels["contrast"].tolist()) == {1, 2, 3, 4}
    for split in ("train", "val", "test"):
        skipped += load(tmp_path / "d", split, size=(14, 12)).index["left_out"]["slices with less than 2% brain"]
    assert len(found) == 3 * 4 * 6 and skipped == 3 * 4  # six of ten slices have brain
    for number in (1, 2, 3):
        name = f"BraTS20_Training_{number:03d}"
        ending = ".nii" if number % 2 else ".nii.gz"
        raw = {
            kind: np.asarray(nibabel.load(tmp_path / "d" / name / f"{name}_{kind}{ending}").dataobj)
            for kind in (*brats.CONTRASTS, "seg")
        }
        for kind, contrast in enumerate(brats.CONTRASTS):
            brain = raw[contrast][raw[contrast] > 0]
            white = np.percentile(brain, 99.5)
            for z in range(2, 8):
                image, labels = found[f"{name}/{name} slice {z}", kind]
                # their axes run to the left and to the back, so a transposed slice has anterior up, right on the left
                expected = np.rint(255 * (raw[contrast][:, :, z].T / white).clip(0, 1))
                assert abs(image[0] - expected).max() <= 1
                seg = raw["seg"][:, :, z].T
                assert np.array_equal(labels, np.select([seg == 1, seg == 2, seg == 4], [1, 2, 3], 0))


def test_brats_without_masks_needs_no_seg(tmp_path):
    root = brats_set(tmp_path / "d")
    for path in root.rglob("*_seg*"):
        path.unlink()
    data = load(root, size=(14, 12), labels="none")
    assert data.masks is None and data.vocabulary.labels["contrast"] == brats.CONTRASTS


def test_brats_slices(tmp_path):
    root = brats_slice_set(tmp_path / "d")
    found = everything(root, size=SIZE[::-1])
    assert len(found) == 3 * 2 * 4  # slice 0 is air
    data = load(root, size=SIZE[::-1])
    assert data.vocabulary.labels["contrast"] == ("channel 0", "channel 1", "channel 2", "channel 3")
    assert data.classes == brats.CLASSES and data.index["left_out"] == {"slices with less than 2% brain": 1}
    assert len(set(data.index["subjects"])) == 1  # three volumes, one a split
    for v in (1, 2, 3):
        for z in (1, 2):
            for channel in range(4):
                image, labels = found[f"volume {v} slice {z}", channel]
                assert np.array_equal(labels, noise(v, z, top=4).T)
                raw = np.random.default_rng([v, z]).normal(size=(*SIZE, 4))[..., channel].T
                order = np.argsort(raw[2:-2, 4:-4].ravel())
                assert (np.diff(image[0, 2:-2, 4:-4].ravel()[order].astype(int)) >= 0).all()  # brighter stays brighter
                assert (image[0][:, :2] == 0).all()  # the background, the lowest value, is black


def test_a_slice_keeps_its_number_where_another_is_left_out(tmp_path):
    root = brats_slice_set(tmp_path / "d")
    for v in (1, 2, 3):
        (root / "content" / "data" / f"volume_{v}_slice_1.h5").write_text("damaged")
    found = everything(root, size=SIZE[::-1], skip_bad=True)
    assert {name for name, _ in found} == {f"volume {v} slice 2" for v in (1, 2, 3)}


# fastMRI


def test_fastmri_by_its_own_split(tmp_path):
    root = fastmri_set(tmp_path / "d")
    side = min(SIZE)
    for f, split in enumerate(("train", "val")):
        data = load(root, split, size=(side, side))
        assert len(data) == 6 and data.masks is None and "fastMRI" in data.index["about"]
        for i in range(2):
            rss = np.random.default_rng([f, i]).random((3, *SIZE)).astype(np.float32) * 1e-4
            low = np.percentile(rss, 1)
            high = np.percentile(rss[rss > low], 99.5)
            expected = np.rint(255 * ((rss[:, :, 2:-2] - low) / (high - low)).clip(0, 1))
            assert abs(data.images[3 * i : 3 * i + 3, 0] - expected).max() <= 1


def test_fastmri_in_one_folder_is_split_by_patient(tmp_path):
    root = fastmri_set(tmp_path / "d", folders=[f"batch{i}" for i in range(4)])
    found = {split: load(root, split, size=(16, 16)) for split in ("train", "val", "test")}
    assert {split: len(data) for split, data in found.items()} == {"train": 12, "val": 6, "test": 6}
    subjects = {subject for data in found.values() for subject in data.index["subjects"]}
    assert subjects == {f"patient {n}" for n in range(1, 5)}  # never the patient_id of the file
    assert all(len(set(data.index["subjects"])) * 6 == len(data) for data in found.values())  # both scans of a patient


def test_fastmri_from_k_space_alone(tmp_path):
    """The inverse Fourier transform of the k-space of an image is that image; coils by the sum of squares."""
    images = np.random.default_rng(0).random((2, 20, 24))
    coils = np.array([0.6, 0.8])[:, None, None]  # squares sum to 1
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(images, (1, 2)), norm="ortho"), (1, 2))
    assert np.allclose(volumes.magnitude(kspace), images)
    assert np.allclose(volumes.magnitude(kspace[:, None] * coils), images)
    point = np.zeros((1, 8, 8), complex)
    point[0, 4, 4] = 1  # the centre of k-space is the mean
    assert np.allclose(volumes.magnitude(point), 1 / 8)
    found = []
    for root in (tmp_path / "a", tmp_path / "b"):  # k-space alone, and with the reconstruction
        for split, values in (("train", images), ("val", images[::-1, ::-1])):
            rss = {"reconstruction_rss": values} if root.name == "b" else {}
            spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(values, (1, 2)), norm="ortho"), (1, 2))
            write_hdf5(root / f"knee_singlecoil_{split}" / f"{split}.h5", kspace=spectrum, **rss)
        found.append(load(root, size=(20, 20)).images.astype(int))
    assert found[0].shape == (2, 1, 20, 20) and abs(found[0] - found[1]).max() <= 1


def test_the_centre_is_cropped():
    slices = np.arange(6 * 9).reshape(1, 6, 9)
    assert volumes.centre_crop(slices, 4).tolist() == slices[:, 1:5, 2:6].tolist()
    assert volumes.centre_crop(slices, 320).tolist() == slices[:, :, 1:7].tolist()


# Volumes: orientation and window


def asymmetric():
    """RAS+ (X, Y, Z) in which every direction differs, and its affine."""
    volume = np.random.default_rng(0).integers(0, 100, (5, 6, 7)).astype(np.int16)
    volume[-1, -1, :] = 1000  # the patient's right, anterior
    return volume, np.array([[2.0, 0, 0, -7], [0, 3, 0, 11], [0, 0, 4, 5], [0, 0, 0, 1]])


def stored_otherwise(volume, affine, axes, flips):
    """The same volume in space, its axes in another order and some of them reversed."""
    matrix = affine.copy()
    for axis in flips:
        volume = np.flip(volume, axis)
        matrix[:3, 3] += matrix[:3, axis] * (volume.shape[axis] - 1)
        matrix[:3, axis] *= -1
    return volume.transpose(axes), np.column_stack([matrix[:, list(axes)], matrix[:, 3]])


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_a_volume_is_the_same_however_it_is_stored(tmp_path, axes, flips):
    volume, affine = asymmetric()
    save_nifti(tmp_path / "v.nii.gz", *stored_otherwise(volume, affine, axes, flips))
    read, its_affine = volumes.read_nifti(tmp_path / "v.nii.gz")
    assert np.array_equal(read, volume) and np.allclose(its_affine, affine)
    slices = volumes.along(read, "axial")
    assert slices.shape == (7, 6, 5)
    assert (slices[:, 0, 0] == 1000).all()  # anterior is up, and the patient's right is on the left
    assert np.array_equal(slices[2], volume[::-1, ::-1, 2].T)


def test_axial_slices_lie_as_the_phantom_lies():
    """World x and y along the rows and columns of an axial slice, against the phantom's own geometry."""
    subject = phantom.draw_subject(0, "train", 0)
    u, v, _ = phantom._grid(16, 16)
    world = phantom._world(phantom.replace(subject, tilt=np.eye(3)), u, v)  # (3, H, W) mm
    x, y, z = np.meshgrid(np.arange(16.0), np.arange(16.0), np.arange(2.0), indexing="ij")
    for ours, theirs in ((volumes.along(x, "axial")[0], world[0]), (volumes.along(y, "axial")[0], world[1])):
        assert np.array_equal(np.sign(np.diff(ours, axis=0)), np.sign(np.diff(theirs, axis=0)))
        assert np.array_equal(np.sign(np.diff(ours, axis=1)), np.sign(np.diff(theirs, axis=1)))
    assert (np.diff(volumes.along(z, "axial")[:, 0, 0]) > 0).all()  # feet first


def test_a_volume_may_have_empty_dimensions_after_the_third(tmp_path):
    volume, affine = asymmetric()
    save_nifti(tmp_path / "v.nii", volume[..., None, None], affine)
    assert np.array_equal(volumes.read_nifti(tmp_path / "v.nii")[0], volume)


def test_the_window_does_not_depend_on_how_much_air_there_is():
    head = np.random.default_rng(0).uniform(10, 1000, 5000)
    for air in (200, 5000, 100_000):
        low, high = volumes.window("v", np.concatenate([np.zeros(air), head]))
        assert low == 0 and high == pytest.approx(np.percentile(head, 99.5), rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(0, 2**32 - 1))
def test_the_window_undoes_any_scale_of_intensity(offset, scale, seed):
    """a x + b looks the same as x: scanners agree on no unit."""
    values = np.random.default_rng(seed).integers(0, 1000, 400).astype(np.float64)
    plain, scaled = (volumes.to_grey(v, *volumes.window("v", v)) for v in (values, scale * values + offset))
    assert abs(plain.astype(int) - scaled).max() <= 1 + 2e-4 * abs(offset) / scale  # float32 has 24 bits


def test_grey_levels_are_rounded_and_clipped():
    assert volumes.to_grey(np.array([-5, 0, 1, 2, 4, 9]), 0, 4).tolist() == [0, 0, 64, 128, 255, 255]


def test_a_brain_below_its_background_does_not_make_air_brain():
    """Scaled to mean 0 inside the skull, or with one voxel that a resampling put below 0."""
    slices = np.zeros((6, 20, 20), np.float32)
    slices[2:5, 6:14, 6:14] = np.random.default_rng(0).normal(0, 1, (3, 8, 8))
    assert np.allclose(volumes.foreground_share(slices), [0, 0, 0.16, 0.16, 0.16, 0])
    slices[2:5, 6:14, 6:14] += 100
    slices[3, 8, 8] = -3
    assert np.allclose(volumes.foreground_share(slices), [0, 0, 0.16, 0.16, 0.16, 0])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_the_share_of_foreground_is_counted_against_the_lowest_value(n, size, seed):
    slices = np.random.default_rng(seed).integers(-3, 3, (n, size, size))
    rim = np.concatenate([slices[:, [0, -1]].ravel(), slices[:, :, [0, -1]].ravel()])
    assume(2 * np.unique(rim, return_counts=True)[1].max() <= rim.size)  # else that value is the background
    expected = [np.mean([value != slices.min() for value in one.ravel()]) for one in slices]
    assert np.allclose(volumes.foreground_share(slices), expected)


# Without the libraries


@pytest.mark.parametrize("make, name", [(brats_set, "nibabel"), (brats_slice_set, "h5py"), (fastmri_set, "h5py")])
def test_a_missing_library_is_one_line_with_the_command(tmp_path, monkeypatch, make, name):
    root = make(tmp_path / "d")
    monkeypatch.setitem(sys.modules, name, None)  # so that importing it fails
    for skip_bad in (False, True):
        with pytest.raises(UserError, match=f"{name} is needed.*pip install nibabel h5py pydicom"):
            load(root, skip_bad=skip_bad)


# From the command line


@pytest.mark.parametrize(
    "make, flags, classes, contrasts",
    [
        (subject_set, [], 2, 0),
        (lgg_set, [], 2, 0),
        (brats_set, [], 4, 4),
        (brats_slice_set, [], 4, 4),
        (fastmri_set, [], 0, 0),
        (yes_no_set, [], 0, 0),
        (lgg_set, ["--labels", "none"], 0, 0),
    ],
)
def test_each_layout_trains(tmp_path, capsys, make, flags, classes, contrasts):
    make(tmp_path / "d")
    flags = [*flags, "--preset", "tiny", "--precision", "fp32", "--steps", "2", "--sample-every", "100"]
    assert train.main(["--data", str(tmp_path / "d"), "--out", str(tmp_path / "run"), *flags]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^train +\d+ ", out, re.M) and re.search(r"^val +\d+ ", out, re.M)
    known = load_model(tmp_path / "run" / "checkpoints" / "step_000002.pt").vocabulary
    assert len(known.classes) == classes and len(known.labels.get("contrast", ())) == contrasts


def test_skip_bad_and_the_seed_reach_the_data(tmp_path, capsys):
    root = split_set(tmp_path / "d")
    (root / "train" / "images" / "s1.png").write_bytes(b"")
    flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "1", "--sample-every", "100"]
    assert train.main(["--data", str(root), "--skip-bad", "--out", str(tmp_path / "run"), *flags]) == 0
    assert re.search(r"^skipped 1 bad: .*s1.png: damaged, or not a picture", capsys.readouterr().out, re.M)
    subject_set(tmp_path / "s", subjects=12)
    configs = [Config(data=str(tmp_path / "s"), image_size=[16, 16], seed=seed) for seed in (0, 0, 1)]
    found = [folders.load(config, "train").index["names"] for config in configs]
    assert found[0] == found[1] != found[2]


def test_flips_mirror_image_and_mask_together_and_only_when_asked():
    images = noise(1, size=(64, 1, 8, 8))
    data = Slices(images, images[:, 0] % 2, {}, Vocabulary(("background", "odd")))
    sides = []
    for flip in (False, True):
        config = Config(batch_size=64, mask_drop=0.0, all_drop=0.0, flip=flip)
        torch.manual_seed(0)
        x_0, condition = draw_batch(data, config, 0)
        pixels = to_uint8(x_0)[:, 0]
        assert np.array_equal(pixels % 2, condition.mask[:, 1].numpy())  # still each other's
        known = images[order(64, config.seed, 0), 0]
        plain, mirrored = (
            [np.array_equal(*pair) for pair in zip(pixels, k, strict=True)] for k in (known, known[..., ::-1])
        )
        assert all(a or b for a, b in zip(plain, mirrored, strict=True))
        sides.append(sum(mirrored))
    assert sides[0] == 0 and 16 < sides[1] < 48


def test_three_channels_train_and_are_drawn(tmp_path):
    flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "1", "--out", str(tmp_path / "run")]
    assert train.main(["--data", str(lgg_set(tmp_path / "d")), "--image-channels", "3", *flags]) == 0
    flags = ["--ckpt", str(tmp_path / "run"), "--n", "1", "--sample-steps", "1", "--out", str(tmp_path / "s")]
    assert sample.main(["--mask", *flags]) == 0
    drawn = [path for path in (tmp_path / "s").iterdir() if path.name != "grid.png"]
    assert all(Image.open(path).mode == "RGB" and Image.open(path).size == (32, 32) for path in drawn)
    assert not np.array_equal(*np.asarray(Image.open(drawn[0])).transpose(2, 0, 1)[:2])


def test_jpegs_are_read_as_pillow_reads_them(tmp_path):
    root = yes_no_set(tmp_path / "d")
    for name, (image, labels) in everything(root, size=(32, 32)).items():
        path = next(path for path in root.rglob("*.jp*g") if path.with_suffix("").as_posix().endswith(name[0]))
        raw = Image.open(path)
        expected = np.asarray(raw.resize((32, 32), Image.Resampling.BICUBIC, reducing_gap=3.0))
        assert labels is None and np.array_equal(image[0], expected)
