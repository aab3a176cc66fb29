"""DICOM series: the volume that their headers say, whose they are, and that nothing of a header gets out."""

import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import pixels, uid
from small_dicom import (
    MARKS,
    PIXEL_MM,
    PLANES,
    STEP_MM,
    compressed_as,
    dicom_set,
    enhanced_of,
    images_of,
    save,
    save_series,
)
from small_sets import SLICE_SIZE, brain, load

import train
from ddpm import UserError
from ddpm.data import dicom, folders
from ddpm.runtime import cache

load = partial(load, size=SLICE_SIZE)


def read(paths):
    return dicom.volume_of([frame for path in paths for frame in dicom.read_frames(str(path))])


# The volume


@pytest.mark.parametrize("plane", PLANES)
def test_a_series_is_a_volume_however_it_was_acquired_and_its_files_are_named(tmp_path, plane):
    volume = brain(1)
    found, affine = read(save_series(images_of(volume, plane=plane), tmp_path))
    assert np.array_equal(found, volume)
    row, column = PIXEL_MM  # from a row to the next, from a column to the next
    expected = {"axial": (column, row, STEP_MM), "sagittal": (STEP_MM, column, row), "coronal": (column, STEP_MM, row)}[
        plane
    ]
    assert np.allclose(affine[:3, :3], np.diag(expected), atol=1e-6)


def test_the_affine_is_that_of_the_headers(tmp_path):
    """The voxel at the origin of each slice lies where ImagePositionPatient says, right and front being negative there."""
    images = images_of(brain(1))
    found, affine = read(save_series(images, tmp_path))
    for z, image in enumerate(images):
        x, y, z_mm = image.ImagePositionPatient  # of the pixel at the patient's right and front: the last of x and y
        assert np.allclose(affine @ [found.shape[0] - 1, found.shape[1] - 1, z, 1], [-x, -y, z_mm, 1])


def test_an_oblique_series_keeps_its_slices(tmp_path):
    """Turned by 20 degrees about the axis from left to right: its own axes are followed, nothing is interpolated."""
    images, angle = images_of(brain(1)), np.radians(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    for image in images:
        cosines = np.array(image.ImageOrientationPatient, float).reshape(2, 3) @ turn.T
        image.ImageOrientationPatient = cosines.ravel().round(8).tolist()
        image.ImagePositionPatient = (turn @ np.array(image.ImagePositionPatient, float)).round(8).tolist()
    found, affine = read(save_series(images, tmp_path))
    assert np.array_equal(found, brain(1))
    assert np.allclose(np.linalg.norm(affine[:3, :3], axis=0), (*PIXEL_MM[::-1], STEP_MM), atol=1e-5)


def test_values_are_rescaled_slice_by_slice(tmp_path):
    images = images_of(brain(1))
    for n, image in enumerate(images):
        image.RescaleSlope, image.RescaleIntercept = 1 + n / 4, -n
    found, _ = read(save_series(images, tmp_path))
    n = np.arange(10)
    assert np.allclose(found, brain(1) * (1 + n / 4) - n)


def test_where_low_is_white_values_are_turned(tmp_path):
    images = images_of(brain(1))
    for image in images:
        image.PhotometricInterpretation = "MONOCHROME1"
    assert np.array_equal(read(save_series(images, tmp_path))[0], -brain(1))


def test_an_enhanced_image_is_the_same_volume(tmp_path):
    found, affine = read([save(enhanced_of(brain(1)), tmp_path / "e.dcm")])
    n = np.arange(10)[::-1]  # its frames are stored from the head down
    assert np.allclose(found, brain(1) * (1 + n % 2) - n)
    _, classic = read(save_series(images_of(brain(1)), tmp_path / "c"))
    assert np.allclose(affine, classic)


def test_what_pydicom_decodes_by_itself_is_decoded(tmp_path):
    images = images_of(brain(1))
    for image in images:
        image.compress(uid.RLELossless)
    assert np.array_equal(read(save_series(images, tmp_path))[0], brain(1))


@pytest.mark.parametrize(
    "syntax, packages",
    [
        (uid.JPEGBaseline8Bit, "JPEG; install what decodes it: pip install pylibjpeg pylibjpeg-libjpeg;"),
        (uid.JPEGLSLossless, "JPEG-LS; install what decodes it: pip install pyjpegls;"),
        (uid.JPEG2000Lossless, "JPEG 2000; install what decodes it: pip install pylibjpeg pylibjpeg-openjpeg;"),
        (uid.HTJ2KLossless, "JPEG 2000; install what decodes it: pip install pylibjpeg pylibjpeg-openjpeg;"),
    ],
)
def test_packages_are_named_for_what_it_does_not(tmp_path, monkeypatch, syntax, packages):
    path = save(compressed_as(images_of(brain(1))[0], syntax), tmp_path / "a.dcm")
    monkeypatch.setattr(type(pixels.get_decoder(syntax)), "is_available", False)  # whatever is installed here
    with pytest.raises(UserError, match=f"a.dcm: compressed as {packages}"):
        dicom.read_frames(str(path))


# The set


def test_series_and_patients(tmp_path):
    root, found, splits = dicom_set(tmp_path / "d"), {}, {}
    for split in ("train", "val", "test"):
        data = load(root, split)
        assert data.masks is None and data.labels == {}
        for name, subject, image in zip(data.index["names"], data.index["subjects"], data.images[:, 0], strict=True):
            found[name] = image
            splits.setdefault(subject, set()).add(split)
    assert len(found) == 5 * 2 * 6
    assert sorted(splits) == [f"patient {n}" for n in range(1, 6)] and all(len(one) == 1 for one in splits.values())
    for p in range(1, 6):
        for s in (1, 2):
            volume = brain(p, s)
            high = np.percentile(volume[volume > 0], 99.5)
            for z in range(2, 8):
                expected = np.rint(255 * (volume[::-1, ::-1, z].T / high).clip(0, 1))
                assert abs(found[f"p{p}/s{s}/series {2 * p - 2 + s} slice {z}"] - expected).max() <= 1
    assert data.index["set_left_out"] == {
        "directories (DICOMDIR)": 1,
        "localisers": 1,
        "files of other modalities than MR": 2,
        "MR files without an image in grey": 1,
        "series of fewer than 3 slices": 1,
    }


def test_one_folder_of_all_files_gives_the_same_series(tmp_path):
    """Grouped by their headers: the folders were for people."""
    root = dicom_set(tmp_path / "d")
    flat = tmp_path / "flat"
    flat.mkdir()
    for n, path in enumerate(sorted(root.rglob("IM*.dcm"), key=lambda path: path.read_bytes()[-50:])):
        shutil.copy(path, flat / f"1.2.3.{n}")  # and named as some archives name them
    (flat / "README").write_text("no image")
    both = [[load(place, split).images for split in ("train", "val", "test")] for place in (root, flat)]
    for one, other in zip(*both, strict=True):
        assert sorted(map(bytes, one)) == sorted(map(bytes, other))


def test_slices_along_another_axis_and_at_a_spacing(tmp_path):
    root = dicom_set(tmp_path / "d")
    data = load(root, axis="coronal", spacing=1.0, size=(32, 9))
    assert len(data) == 3 * 2 * 10  # of a volume's 14 slices four are air
    for name, image in zip(data.index["names"], data.images[:, 0], strict=True):
        p, s, n = map(int, re.fullmatch(r"p(\d)/s(\d)/series \d+ slice (\d+)", name).groups())
        volume = brain(p, s)
        grey = 255 * (volume[::-1, n, ::-1].T / np.percentile(volume[volume > 0], 99.5)).clip(0, 1)
        true_size = 10, 32  # 12 pixels of 0.84 mm and 10 slices of 3.17 mm, of which one column is cut off
        expected = Image.fromarray(grey.round().astype(np.uint8)).resize(true_size, Image.Resampling.BICUBIC)
        assert abs(np.asarray(expected, int)[:, :9] - image).max() <= 2


def test_what_a_message_says_of_series_without_a_patient_works(tmp_path):
    """Told by a pattern which folder is whose, or by folders of splits."""
    for p in range(1, 6):
        images = images_of(brain(p), p)
        for image in images:
            image.PatientID = ""
        split = {4: "val", 5: "test"}.get(p, "train")
        for root in (tmp_path / "drawn", tmp_path / "given" / split):
            save_series(images, root / f"p{p}")
    data = load(tmp_path / "drawn", subject_pattern="^[^/]+")
    assert len(set(data.index["subjects"])) == 3 and set(data.index["subjects"]) < {f"p{p}" for p in range(1, 6)}
    for split, patients in (("train", (1, 2, 3)), ("val", (4,)), ("test", (5,))):
        data = load(tmp_path / "given", split)
        assert {name.split("/")[1] for name in data.index["names"]} == {f"p{p}" for p in patients}
        assert data.subjects is None


def test_a_patient_stays_in_its_split_when_others_come(tmp_path):
    """Though the numbers change. (A pattern of the folders' names may name patients too.)"""
    places = []
    for name, patients in (("few", range(3, 13)), ("many", range(1, 16))):
        for p in patients:
            save_series(images_of(brain(p), p), tmp_path / name / f"p{p:02d}")
        where = {}
        for split in ("train", "val", "test"):
            where |= dict.fromkeys({one.split("/")[0] for one in load(tmp_path / name, split).index["names"]}, split)
        places.append(where)
    held_out = [name for name in places[0] if places[0][name] != "train"]
    assert held_out and all(places[1][name] == split for name, split in places[0].items())
    named = folders.split_by_subject([folders.Item(f"p{p:02d}", (), subject=f"p{p:02d}") for p in range(3, 13)], 0, "d")
    data = load(tmp_path / "few", subject_pattern=r"p\d+")
    assert set(data.index["subjects"]) == {item.subject for item in named if item.split == "train"}


# Nothing of a header gets out


def everything_in(folder):
    return b"".join(path.read_bytes() for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.usefixtures("own_cache")
def test_no_value_of_a_header_is_written_or_told(tmp_path, capsys, caplog):
    root = dicom_set(tmp_path / "d")
    assert all(mark.encode() in everything_in(root) for mark in MARKS)
    flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "2", "--out", str(tmp_path / "run")]
    assert train.main(["--data", str(root), "--skip-bad", *flags]) == 0
    told = capsys.readouterr()
    written = everything_in(tmp_path / "run") + everything_in(cache.CACHE)
    assert b"patient 2" in written and "DICOM series" in told.out
    for mark in MARKS:
        assert mark.encode() not in written and mark not in told.out + told.err + caplog.text
    names = [path.name for path in [*cache.CACHE.rglob("*"), *(tmp_path / "run").rglob("*")]]
    assert not any(mark in name for name in names for mark in MARKS)


def test_what_reads_headers_does_not_show_them():
    """Not even in a traceback."""
    header = dicom.Header("", "Q7ZX series", "Q7ZX patient")
    item = folders.Item("a", ("a.dcm",), drawn_by="Q7ZX")
    assert "Q7ZX" not in repr(header) + repr(item) + repr([item])


def test_damage_of_any_kind_is_told_without_a_word_of_the_header(tmp_path):
    """Bytes changed anywhere in the header: it is read, or refused in one line, and the line quotes nothing."""
    image = images_of(brain(1))[0]
    image.RescaleSlope = "7777777"
    content = save(image, tmp_path / "a.dcm").read_bytes()
    start = content.index(b"\xe0\x7f\x10\x00")
    rng, refused = np.random.default_rng(0), 0
    for _ in range(400):
        damaged = bytearray(content)
        for position in rng.integers(128, start + 12, rng.integers(1, 6)):
            damaged[position] = rng.integers(256)
        path = tmp_path / "b.dcm"
        path.write_bytes(damaged[: len(damaged) if rng.random() < 0.8 else rng.integers(140, len(damaged))])
        try:
            dicom.read_header(str(path))
            dicom.read_frames(str(path))
        except UserError as error:
            refused += 1
            told = str(error).replace(str(path), "")
            assert str(path) in str(error) and not any(mark in told for mark in MARKS)
    assert refused > 100
