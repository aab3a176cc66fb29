"""`sample.py --restore SCAN.nii.gz`: slice by slice, on the scan's own grid and in its units."""

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from test_stack import AFFINES, changed, commands, renumbered, save

import sample
from benchmarks import volumes
from ddpm import restoration
from ddpm.data import phantom
from ddpm.data.volumes import along, from_slices, read_nifti

pytestmark = pytest.mark.usefixtures("small_phantom")
SLICES = 6  # of them the first two are air


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(restoration, "STEPS", 4)
    monkeypatch.setattr(restoration, "DRAWS", 2)
    monkeypatch.setattr(restoration, "HEAL_STEPS", 10)


def scan(path="scan.nii.gz", affine=AFFINES["LPS"], noise=0.0, size=(32, 32), black=0) -> np.ndarray:
    """Slices (6, h, w) of the phantom in a scanner's units, `black` to 2000 more, written as int16 in that orientation."""
    images, _, _ = phantom.load("val", size)
    slices = np.zeros((SLICES, *size))
    slices[2:] = images[: SLICES - 2, 0] / 255
    random = np.random.default_rng(0)
    parts = noise * random.standard_normal((2, *slices[2:].shape))
    slices[2:] = np.hypot(slices[2:] + parts[0], parts[1])
    return stored(path, np.rint(2000 * slices + black).astype(np.int16), affine)


def region(path="region.nii.gz", affine=AFFINES["LPS"], value=1, size=(32, 32)) -> np.ndarray:
    """A block in the slices 3 and 4."""
    slices = np.zeros((SLICES, *size), np.uint8)
    slices[3:5, 10:20, 12:22] = value
    return stored(path, slices, affine)


def stored(path, slices, affine) -> np.ndarray:
    ras = from_slices(slices, "axial")
    turn = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), nibabel.io_orientation(affine))
    save(path, np.ascontiguousarray(nibabel.apply_orientation(ras, turn)), affine)
    return slices


def restored(ckpt, mode, *flags, name="restored") -> np.ndarray:
    command = ["--ckpt", ckpt, "--restore", "scan.nii.gz", "--as", mode, *flags, "--out", "o"]
    assert sample.main(command) == 0
    return read(name)


def read(name) -> np.ndarray:
    original, written = nibabel.load("scan.nii.gz"), nibabel.load(f"o/{name}.nii.gz")
    assert written.shape == original.shape and np.array_equal(written.affine, original.affine)
    assert written.get_data_dtype() == np.float32
    return along(read_nifti(f"o/{name}.nii.gz")[0], "axial")


@pytest.fixture
def plain(ckpt) -> str:
    """Of slices that are stretched to 32x32: a scan of that size is seen as it is."""
    return changed(ckpt, data="x")


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_what_is_known_stays_exactly_and_the_region_is_drawn_anew(affine, plain, capsys):
    slices, new = scan(affine=affine), region(affine=affine) == 1
    result = restored(plain, "inpaint", "--region", "region.nii.gz", "--n", "2")
    assert np.array_equal(result[~new], slices[~new])
    assert np.abs(result[new] - slices[new]).mean() > 50
    out = capsys.readouterr().out
    assert "2 of 6 axial slices of 32x32" in out and "deviation.nii.gz" in out
    deviation = read("deviation")
    assert not deviation[~new].any() and deviation[new].mean() > 1


def test_nothing_of_the_region_is_left_in_what_is_drawn(ckpt):
    """Voxels of 2 mm, pixels of 6.5: what was in the region, seen the other way round, changes nothing."""
    affine, size = np.diag([-2.0, -2.0, 6.0, 1]), (104, 104)
    slices, new = scan(affine=affine, size=size), np.zeros((SLICES, *size), np.uint8)
    new[3:5, 44:55, 30:39] = 1
    stored("region.nii.gz", new, affine)
    once = restored(ckpt, "inpaint", "--region", "region.nii.gz")
    other = slices.copy()
    other[3:5, 44:55, 30:39] = slices[3:5, 44:55, 30:39][:, ::-1, ::-1]
    assert np.abs(other - slices).max() > 100
    stored("scan.nii.gz", other, affine)
    again = restored(ckpt, "inpaint", "--region", "region.nii.gz")
    assert np.array_equal(once, again) and np.abs(once - slices)[new == 1].mean() > 50


def test_a_voxel_that_no_pixel_has_for_its_nearest_is_drawn_anew(ckpt):
    """104 voxels to 32 pixels: those take the rows 43 and 47."""
    affine, new = np.diag([-2.0, -2.0, 6.0, 1]), np.zeros((SLICES, 104, 104), np.uint8)
    new[3, 45, 45] = 1
    scan(affine=affine, size=(104, 104)), stored("region.nii.gz", new, affine)
    restored(ckpt, "inpaint", "--region", "region.nii.gz", "--n", "2")
    assert read("deviation")[3, 45, 45] > 1


def test_a_region_beside_what_the_network_sees_is_told(ckpt, capsys):
    """40 columns of 6.5 mm, of which it sees the 32 in the middle."""
    affine, size = np.diag([-6.5, -6.5, 6.0, 1]), (32, 40)
    slices = np.pad(scan(affine=affine), ((0, 0), (0, 0), (4, 4)))
    stored("scan.nii.gz", slices.astype(np.int16), affine)
    new = np.zeros((SLICES, *size), np.uint8)
    new[2, 10, :3] = new[3, 10, :6] = 1
    stored("region.nii.gz", new, affine)
    result = restored(ckpt, "inpaint", "--region", "region.nii.gz")
    out = capsys.readouterr().out
    assert "region.nii.gz: 7 of 9 marked voxels lie beside what the network sees, and stay as they are" in out
    assert "inpaint: 1 of 6 axial slices" in out and np.array_equal(result[:, :, :4], slices[:, :, :4])
    new[3] = 0
    stored("region.nii.gz", new, affine)
    flags = ["--restore", "scan.nii.gz", "--as", "inpaint", "--region", "region.nii.gz", "--out", "p"]
    assert sample.main(["--ckpt", ckpt, *flags]) == 2
    error = capsys.readouterr().err
    assert "3 of 3 marked voxels lie beside" in error and error.count("\n") == 1 and not Path("p").exists()


def test_with_a_mask_another_image_is_drawn(plain):
    scan(), region(), region("lesion.nii.gz", value=255), region("empty.nii.gz", value=0)
    flags = ["--region", "region.nii.gz", "--guidance", "4"]
    without = restored(plain, "inpaint", *flags, "--mask", "empty.nii.gz")
    assert not np.array_equal(without, restored(plain, "inpaint", *flags, "--mask", "lesion.nii.gz"))


def test_a_mask_calls_its_labels_as_those_of_the_training_did(plain, capsys):
    scan(), region(), region("three.nii.gz", value=3), region("one.nii.gz")
    flags = ["--region", "region.nii.gz", "--guidance", "4", "--mask"]
    expected = restored(plain, "inpaint", *flags, "one.nii.gz")
    assert np.array_equal(restored(renumbered(plain), "inpaint", *flags, "three.nii.gz"), expected)


def test_noise_is_found_in_the_air_of_the_scan_and_not_in_what_is_padded(ckpt, capsys):
    """28 columns of 6.5 mm, padded to 32. The noise is Rician, so its strength is a share of full scale from 0 on."""
    affine = np.diag([-6.5, -6.5, 3.0, 1])
    slices = scan(affine=affine, noise=0.1)[:, :, 2:30]
    stored("scan.nii.gz", slices, affine)
    result = restored(ckpt, "denoise")
    told = float(capsys.readouterr().out.split("Rician noise of ")[1].split(" ")[0])
    above = slices[slices > np.percentile(slices, 1)]
    assert told == pytest.approx(0.1 * 2000 / np.percentile(above, 99.5), rel=0.15)
    assert np.array_equal(result[:2], slices[:2])
    assert np.abs(result[2:] - slices[2:]).mean() > 20 and result.max() <= 2000


def test_the_mean_of_one_slice_is_that_of_a_picture(plain):
    """What is drawn of a slice of a volume is what is drawn of the same picture: the volume only adds its units."""
    slices = scan(noise=0.1, black=300)
    result = restored(plain, "denoise", "--noise", "0.1")
    full = np.percentile(
        slices[slices > np.percentile(slices, 1)], 99.5
    )  # and black is 0, as noise is Rician from there
    for n in (2, 5):
        picture = np.rint(255 * (slices[n] / full).clip(0, 1)).astype(np.uint8)
        sample.images.write_png("slice.png", picture[None])
        assert (
            sample.main(["--ckpt", plain, "--restore", "slice.png", "--as", "denoise", "--noise", "0.1", "--out", "p"])
            == 0
        )
        alone = np.load("p/restored.npy")[0].clip(0, 1)
        assert np.abs(result[n] / full - alone).max() < 0.02


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_anomalies_are_the_scan_less_the_healed_one(affine, plain):
    slices = scan(affine=affine, black=300)
    healed = restored(plain, "anomaly", "--batch-size", "3")
    anomaly = read("anomaly")
    assert not anomaly[:2].any() and np.array_equal(healed[:2], slices[:2])
    assert anomaly.min() >= 0 and anomaly[2:].mean() > 5 and healed.min() >= 299
    low, high = np.percentile(slices, 1), np.percentile(slices[slices > 300], 99.5)
    expected = restoration.median_filter(np.abs(slices.clip(low, high) - healed), (1, 5, 5))[2:]
    assert np.abs(anomaly[2:] - expected).max() < 1


def test_a_scan_of_other_pixels_is_resampled_and_back(plain):
    """Twice as fine: the map lies where the lesion is."""
    slices = scan(size=(64, 64))
    healed = restored(plain, "anomaly", "--n", "2")
    assert healed.shape == (SLICES, 64, 64)
    assert np.abs(read("draw_0") - read("draw_1")).max() > 10
    assert np.allclose((read("draw_0") + read("draw_1"))[2:] / 2, healed[2:], atol=1)
    assert np.corrcoef(healed[2:].ravel(), slices[2:].ravel())[0, 1] > 0.5


def test_slices_do_not_depend_on_what_is_worked_on_at_once(plain):
    scan(), region()
    flags = ["--region", "region.nii.gz", "--n", "1"]
    one = restored(plain, "inpaint", *flags, "--batch-size", "1")
    assert np.abs(one - restored(plain, "inpaint", *flags, "--batch-size", "16")).max() < 8  # a grey level
    assert np.abs(one - restored(plain, "inpaint", *flags, "--seed", "1")).max() > 20
    assert np.abs(one - restored(plain, "inpaint", *flags, "--coherence", "0.01")).max() > 20


@pytest.mark.parametrize("flags", commands("uses.md", "Whole scans"), ids=" ".join)
def test_the_commands_of_the_docs(flags, plain):
    scan(noise=0.05), region()
    assert sample.main([*flags, "--ckpt", plain, "--out", "o"]) == 0
    assert Path("o/restored.nii.gz").exists() and Path("o/grid.png").exists()


@pytest.mark.parametrize(
    "mode, flags, says",
    [
        ("inpaint", [], "needs --region: a volume"),
        ("inpaint", ["--region", "region.png"], "--region region.png: --restore takes a volume here"),
        ("inpaint", ["--region", "other.nii.gz"], "other.nii.gz: not on the grid of scan.nii.gz"),
        ("inpaint", ["--region", "empty.nii.gz"], "empty.nii.gz: nothing of it is marked"),
        ("inpaint", ["--region", "seven.nii.gz"], "labels 7 that are not known; known are 0 known, 1 new"),
        ("inpaint", ["--region", "region.nii.gz", "--mask", "m.png"], "--mask m.png: --restore takes a volume here"),
        ("inpaint", ["--region", "region.nii.gz", "--mask", "other.nii.gz"], "other.nii.gz: not on the grid"),
        ("inpaint", ["--region", "region.nii.gz", "--mask", "seven.nii.gz"], "known are 0 background, 1 lesion"),
        ("anomaly", ["--mask", "region.nii.gz"], "leave --mask out"),
        ("denoise", ["--simulate"], "--simulate measures a picture"),
        ("anomaly", ["--simulate"], "not anomaly; leave it out"),
        ("anomaly", ["--contrast", "each"], "what was measured has one contrast"),
        ("anomaly", ["--contrast", "PD"], "knows T1, T2, FLAIR"),
        ("anomaly", ["--restore", "flat.nii.gz"], "every voxel has the value 3"),
        ("anomaly", ["--restore", "speck.nii.gz"], "no slice of it shows a brain"),
        ("anomaly", ["--restore", "nowhere.nii.gz"], "no such file"),
        ("denoise", ["--restore", "stripped.nii.gz"], "no noise found in its corners; give it with --noise"),
        ("denoise", ["--restore", "fine.nii.gz"], "slices of 64x64 would become 32x32"),
        ("denoise", ["--restore", "negative.nii.gz"], "values under 0"),
        (
            "denoise",
            ["--restore", "negative.nii.gz", "--gaussian", "--noise", "0.05"],
            "too far down for noise of 5.0%",
        ),
        ("kspace", [], "a volume is restored as inpaint, denoise, anomaly"),
        ("super-resolution", [], "tools/slices.py"),
        ("denoise", ["--restore", "slice.png", "--coherence", "5"], "--coherence is for volumes"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(mode, flags, says, plain, capsys):
    (
        scan(),
        scan("fine.nii.gz", size=(64, 64)),
        region(),
        region("empty.nii.gz", value=0),
        region("seven.nii.gz", value=7),
    )
    region("other.nii.gz", affine=AFFINES["RAS"])
    stripped = scan("stripped.nii.gz") * 1
    stripped[:, :8] = stripped[:, -8:] = 0
    stored("stripped.nii.gz", stripped, AFFINES["LPS"])
    scan("negative.nii.gz", black=-1000)
    save("flat.nii.gz", np.full((8, 8, 8), 3, np.int16))
    speck = np.zeros((32, 32, 4), np.int16)
    speck[3, 3, 1] = 5
    save("speck.nii.gz", speck)
    assert sample.main(["--ckpt", plain, "--restore", "scan.nii.gz", "--as", mode, *flags, "--out", "o"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1
    assert not Path("o").exists()


def test_a_scan_that_is_restored_is_not_written_over(plain, capsys):
    scan("restored.nii.gz")
    before = Path("restored.nii.gz").read_bytes()
    assert sample.main(["--ckpt", plain, "--restore", "restored.nii.gz", "--as", "anomaly", "--out", "."]) == 2
    assert "restored.nii.gz there is read" in capsys.readouterr().err and Path("restored.nii.gz").read_bytes() == before


def test_gaussian_noise_may_be_under_0_where_a_magnitude_may_not(plain, capsys):
    values = np.random.default_rng(0).normal(0, 10, (2, 32, 32)).astype(np.float32)
    values[:, 8:24, 8:24] += 100
    stored("below.nii.gz", values, AFFINES["LPS"])
    flags = ["--ckpt", plain, "--restore", "below.nii.gz", "--as", "denoise", "--noise", "0.1"]
    assert sample.main([*flags, "--out", "no"]) == 2 and "values under 0" in capsys.readouterr().err
    assert sample.main([*flags, "--gaussian", "--out", "o"]) == 0 and Path("o/restored.nii.gz").exists()


def test_the_benchmark_of_volumes_runs(plain, monkeypatch, capsys):
    for name, value in dict(SIZE=32, FINE=40, HEIGHTS=np.arange(3), APART=(1, 2)).items():
        monkeypatch.setattr(volumes, name, value)
    assert volumes.main(["--ckpt", plain, "--n", "2"]) == 0
    told = capsys.readouterr().out
    assert "| the phantom |" in told and "denoised" in told and "the rest is exactly the scan" in told


def test_the_benchmark_of_volumes_says_first_what_it_cannot_do(ckpt, plain, monkeypatch, capsys):
    monkeypatch.setattr(volumes, "drawn_head", lambda *asked: pytest.fail("it draws"))
    few = changed(ckpt, "few.pt", few_steps=4)
    monkeypatch.setattr(volumes, "SIZE", 32)
    for flags, says in (
        (
            ["--ckpt", "pretrained-masks"],
            "a model of images of 32x32, masks of lesions and the contrasts T1, T2, FLAIR",
        ),
        (["--ckpt", "pretrained"], "a model of images of 32x32"),
        (["--ckpt", few], "asks at every time, but"),
        (["--ckpt", plain, "--n", "0"], "--n is 0; it must be at least 1"),
        (["--ckpt", plain, "--n", "96"], "test subjects have a lesion, and enough of the brain above them"),
        (["--ckpt", plain, "--n", "x"], "invalid int value: 'x'"),
    ):
        assert volumes.main(flags) == 2
        error = capsys.readouterr().err
        assert says in error and error.startswith("error: ") and error.count("\n") == 1
    monkeypatch.setitem(sys.modules, "nibabel", None)
    assert volumes.main(["--ckpt", plain]) == 2
    assert "nibabel is needed to read these files" in capsys.readouterr().err
