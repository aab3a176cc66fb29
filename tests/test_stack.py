"""`sample.py --mask LABELS.nii.gz`: slices that the network knows, and a volume on the file's own grid."""

import re
import shlex
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import center_of_mass

import sample
from ddpm import UserError
from ddpm.data.volumes import along, from_slices, read_nifti, write_nifti
from ddpm.model import Between, load_model, noise_source
from ddpm.runtime.config import AXES
from ddpm.stack import Stack, read_stack

ROOT = Path(sample.__file__).parent
AFFINES = {  # any order and direction of the axes, and anisotropic voxels
    "RAS": np.diag([4.0, 5.0, 6.0, 1]),
    "LPS": np.diag([-4.0, -5.0, 6.0, 1]),
    "SLA": np.array([[0, -4.0, 0, 80], [0, 0, 5.0, -90], [6.0, 0, 0, -20], [0, 0, 0, 1]]),
}


def save(path, volume, affine=AFFINES["RAS"]) -> str:
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)
    return str(path)


def labels(affine=AFFINES["RAS"], path="seg.nii.gz", value=1) -> str:
    """40 x 36 x 6 voxels of RAS+, of 4 x 5 x 6 mm: a lesion in front on the right, in slices 1 to 3; stored as `affine` says."""
    volume = np.zeros((40, 36, 6), np.uint8)
    volume[24:34, 22:32, 1:4] = value
    ras = nibabel.orientations.axcodes2ornt("RAS")
    turn = nibabel.orientations.ornt_transform(ras, nibabel.io_orientation(affine))
    return save(path, np.ascontiguousarray(nibabel.apply_orientation(volume, turn)), affine)


def changed(ckpt, path="changed.pt", **config) -> str:
    raw = torch.load(ckpt, weights_only=True)
    raw["config"].update(config)
    torch.save(raw, path)
    return path


def renumbered(ckpt, path="renumbered.pt") -> str:
    """A checkpoint whose training masks called a lesion 3."""
    raw = torch.load(ckpt, weights_only=True)
    raw["conditions"]["values"] = [0, 3]
    torch.save(raw, path)
    return path


def commands(doc, section) -> list[list[str]]:
    """The arguments of each command to sample.py in a section of a page."""
    text = (ROOT / "docs" / doc).read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    lines = re.findall("```sh\n(.*?)```", text, re.DOTALL)[0].splitlines()
    return [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("python sample.py")]


def drawn(ckpt, *flags, mask="seg.nii.gz"):
    assert sample.main(["--ckpt", ckpt, "--sample-steps", "4", "--mask", mask, *flags]) == 0


@pytest.mark.parametrize("flags", commands("uses.md", "Whole volumes"), ids=" ".join)
def test_the_commands_of_the_docs(flags, ckpt):
    labels(path="lesions.nii.gz")
    assert sample.main([*flags, "--ckpt", ckpt, "--out", "o"]) == 0
    assert list(Path("o").glob("*.nii.gz"))


@pytest.mark.parametrize("shape", [(104, 80), (32, 36), (12, 50)])
def test_a_pixel_any_of_whose_area_is_marked_is_in_the_region(shape):
    """Counted on a grid that is finer than both."""
    region = np.random.default_rng(0).uniform(size=shape) < 0.02
    stack = Stack("x", np.eye(4), "axial", (1, *shape), (32, 40), (30, 44))
    fine = np.kron(region, np.ones((32, 40), bool)).reshape(32, shape[0], 40, shape[1]).any(axis=(1, 3))
    expected = np.pad(fine[1:31], ((0, 0), (2, 2)))
    assert np.array_equal(stack.region_to_network(region), expected) and expected.any() and not expected.all()


@pytest.mark.parametrize("shape, true_size", [((256, 240), (78, 74)), ((40, 36), (64, 64)), ((30, 90), (64, 70))])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_at_the_edge_of_what_the_network_sees_nothing_is_mixed_with_black(shape, true_size, kind):
    stack = Stack("x", np.eye(4), "axial", (1, *shape), true_size, (64, 64))
    written = stack.to_file(np.full((1, 64, 64), 200, kind))
    assert written.dtype == kind and np.array_equal(written > 0, stack.looked_at)
    assert np.abs(written[stack.looked_at] - 200.0).max() < 1e-3
    assert stack.looked_at.mean() == pytest.approx(64 * 64 / true_size[0] / true_size[1], rel=0.03)


@pytest.mark.parametrize("axis", AXES)
def test_slices_become_the_volume_that_they_were_cut_from(axis):
    volume = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    assert np.array_equal(from_slices(along(volume, axis), axis), volume)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_volume_is_written_as_it_was_read(affine, ending):
    stored = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    path = f"a{ending}"
    image = nibabel.Nifti1Image(stored, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 4)  # coordinates of the MNI brain
    nibabel.save(image, path)
    write_nifti(f"b{ending}", read_nifti(path)[0], path)
    written = nibabel.load(f"b{ending}")
    assert np.array_equal(written.dataobj, stored) and written.get_data_dtype() == np.uint8
    assert np.array_equal(written.affine, affine)
    for form in ("get_sform", "get_qform"):
        (ours, code), (theirs, known) = (getattr(image, form)(True) for image in (written, nibabel.load(path)))
        assert code == known and (ours is None) == (theirs is None)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_a_volume_of_labels_gives_volumes_on_its_grid(affine, ckpt, capsys):
    drawn(ckpt, "--n", "2", "--contrast", "T2", "--out", "o", mask=labels(affine))
    names = {f"seg_z{z:03d}_{k}.png" for z in range(6) for k in range(2)}
    assert {path.name for path in Path("o").iterdir()} == names | {"grid.png", "seg_0.nii.gz", "seg_1.nii.gz"}
    assert "6 axial slices of 36x40 drawn as 32x32" in capsys.readouterr().out
    mask = nibabel.load("seg.nii.gz")
    for k in range(2):
        volume = nibabel.load(f"o/seg_{k}.nii.gz")
        assert volume.shape == mask.shape and np.array_equal(volume.affine, mask.affine)
        assert volume.get_data_dtype() == np.uint8 and np.asarray(volume.dataobj).std() > 5
        # 40 x 36 voxels of 4 x 5 mm are 25 x 28 pixels of 6.5 mm, in the middle of 32 x 32
        slices = along(read_nifti(f"o/seg_{k}.nii.gz")[0], "axial")
        for z in range(6):
            picture = Image.open(f"o/seg_z{z:03d}_{k}.png").crop((3, 2, 28, 30))
            expected = np.asarray(picture.resize((40, 36), Image.Resampling.BICUBIC)).astype(int)
            assert np.abs(slices[z] - expected).max() <= 1


def test_a_volume_whose_name_ends_in_capitals_is_one_too(ckpt):
    Path(labels()).rename("SEG.NII.GZ")
    drawn(ckpt, "--out", "o", mask="SEG.NII.GZ")
    assert np.array_equal(nibabel.load("o/SEG_0.nii.gz").affine, AFFINES["RAS"])


@pytest.mark.parametrize(
    "config",
    [
        dict(),
        dict(data="x"),
        dict(data="x", spacing=5.0),
        dict(data="x", spacing=6.0, axis="coronal"),
        dict(data="x", spacing=3.0, axis="sagittal"),
    ],
    ids=["the phantom's pixels", "stretched", "cropped", "coronal", "sagittal"],
)
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_what_is_drawn_in_the_mask_lies_over_the_mask(affine, config, ckpt):
    """If the network drew its mask in white, the volume would be the mask."""
    masks, stack = read_stack(labels(affine), load_model(changed(ckpt, **config)))
    assert {mask.shape for mask in masks.values()} == {(32, 32)} and len(masks) == stack.shape[0]
    stack.write("white.nii.gz", np.stack([stack.to_file(255 * mask[None]) for mask in masks.values()]))
    mask, white = (np.asarray(nibabel.load(path).dataobj).astype(float) for path in ("seg.nii.gz", "white.nii.gz"))
    if config.get("spacing") == 3:  # 36 x 5 mm do not fit into 32 x 3 mm: 42 mm are cut off in front and behind
        assert white.sum() < 0.9 * 255 * mask.sum()
        return
    centres = np.array([center_of_mass(mask), center_of_mass(white)])
    assert np.abs(centres[0] - centres[1]).max() < 0.7
    assert 2 * (mask * (white > 127)).sum() / (mask.sum() + (white > 127).sum()) > 0.85


def test_what_the_network_does_not_look_at_is_black_and_told(ckpt, capsys):
    near = changed(ckpt, data="x", spacing=3.0)
    drawn(near, "--out", "o", mask=labels())
    assert "labelled pixels lie beside these pictures and are not drawn" in capsys.readouterr().out
    slices = along(read_nifti("o/seg_0.nii.gz")[0], "axial")
    assert not slices[:, :7].any() and not slices[:, :, :7].any() and slices.any()


def test_neighbours_agree_and_as_far_as_is_asked_for(ckpt):
    labels()
    difference = {}
    for apart in ("0.01", "20", "10000"):
        drawn(ckpt, "--coherence", apart, "--out", apart)
        slices = along(read_nifti(f"{apart}/seg_0.nii.gz")[0], "axial").astype(int)[:, 2:-2]
        difference[apart] = np.abs(np.diff(slices[4:], axis=0)).mean()  # slices 4 and 5, both without a lesion
    assert difference["10000"] < 0.1 * difference["20"] and difference["20"] < 0.8 * difference["0.01"]


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("axis, step", [("sagittal", 4), ("coronal", 5), ("axial", 6)])
def test_noise_changes_by_the_millimetre(axis, step, affine, ckpt):
    _, stack = read_stack(labels(affine), load_model(changed(ckpt, data="x", axis=axis)))
    for n, name in enumerate(stack.names):
        one, other, share = stack.seed(name, 3, 5, 20.0)
        assert one[:3] == other[:3] and one[0] == 5 and one[2] == 3
        assert one[3] + share == pytest.approx(n * step / 20) and 0 <= share < 1 and other[3] == one[3] + 1


def test_volumes_differ_and_do_not_depend_on_what_is_drawn_at_once(ckpt):
    labels()
    drawn(ckpt, "--n", "2", "--contrast", "T1", "--out", "a")
    drawn(ckpt, "--n", "1", "--contrast", "T1", "--batch-size", "4", "--out", "b")
    drawn(ckpt, "--n", "1", "--contrast", "T1", "--seed", "1", "--out", "c")
    a0, a1, b0, c0 = (read_nifti(path)[0].astype(int) for path in (
        "a/seg_0.nii.gz", "a/seg_1.nii.gz", "b/seg_0.nii.gz", "c/seg_0.nii.gz"
    ))  # fmt: skip
    assert np.abs(a0 - b0).max() <= 1
    assert np.abs(a0 - a1).max() > 10 and np.abs(a0 - c0).max() > 10


def test_noise_between_two_seeds_is_normal_and_ends_in_them():
    shares = [0, 0.1, 0.5, 0.9, 1]
    noise = noise_source([(1,), *(Between((1,), (2,), share) for share in shares), (2,)], (1, 64, 64), "cpu")
    for _ in range(2):  # the first, x_T, and a later one
        one, *between, other = noise()
        assert torch.allclose(between[0], one) and torch.allclose(between[-1], other, atol=1e-6)
        for z in between:
            assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.04
        likeness = [(one * z).mean().item() for z in between]
        assert likeness == sorted(likeness, reverse=True)
    assert between[0].dtype == torch.float32


def test_a_lesion_may_be_255_and_floating(ckpt):
    as_labels, _ = read_stack(labels(), load_model(ckpt))
    as_white, _ = read_stack(labels(value=255), load_model(ckpt))
    volume = np.asarray(nibabel.load("seg.nii.gz").dataobj).astype(np.float32)
    as_floats, _ = read_stack(save("seg.nii", volume), load_model(ckpt))
    header = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.eye(4)).header  # floats are scaled to fit int16
    nibabel.save(nibabel.Nifti1Image(volume / 255, AFFINES["RAS"], header), "seg.nii")
    assert nibabel.load("seg.nii").get_fdata().max() != 1
    as_scaled, _ = read_stack("seg.nii", load_model(ckpt))
    for name, mask in as_labels.items():
        assert all(np.array_equal(mask, other[name]) for other in (as_white, as_floats, as_scaled))
    assert max(mask.max() for mask in as_labels.values()) == 1


def test_labels_are_called_as_in_the_masks_of_the_training(ckpt):
    expected, _ = read_stack(labels(), load_model(ckpt))
    found, _ = read_stack(labels(value=3), load_model(renumbered(ckpt)))
    assert all(np.array_equal(found[name], mask) for name, mask in expected.items())
    with pytest.raises(UserError, match="labels 1 that are not known; known are 0 background, 3 lesion"):
        read_stack(labels(), load_model("renumbered.pt"))


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--mask", "nowhere.nii.gz"], "nowhere.nii.gz: no such file"),
        (["--mask", "text.nii"], "text.nii: damaged, or not a NIfTI volume"),
        (["--mask", "seven.nii"], "seven.nii: the mask has labels 7 that are not known; known are 0 background, 1 lesion"),
        (["--mask", "half.nii"], "half.nii: the mask has labels 0.5 that are not known"),
        (["--mask", "series.nii"], "2 volumes in it"),
        (["--mask", "seg.nii.gz", "--film"], "--film: seg.nii.gz is a volume; leave one of them out"),
        (["--mask", "seg.nii.gz", "--coherence", "0"], "--coherence is 0.0; it must be at least"),
        (["--mask", "seg.nii.gz", "--ckpt", "colour.pt"], "a volume is grey"),
        (["--mask", "coarse.nii"], "mend its header"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(flags, says, ckpt, capsys):
    labels()
    Path("text.nii").write_text("hello")
    save("seven.nii", np.full((4, 4, 4), 7, np.uint8))
    save("half.nii", np.full((4, 4, 4), 0.5, np.float32))
    save("series.nii", np.zeros((4, 4, 4, 2), np.uint8))
    save("coarse.nii", np.zeros((40, 40, 2), np.uint8), np.diag([1000.0, 1000, 1, 1]))
    if "colour.pt" in flags:
        raw = torch.load(ckpt, weights_only=True)
        raw["config"].update(image_channels=3, data="x")
        for weights in (raw["model"], raw["ema"]):
            weights["conv_in.weight"] = weights["conv_in.weight"].repeat(1, 5, 1, 1)[:, :20]
            weights["conv_out.weight"] = weights["conv_out.weight"].repeat(3, 1, 1, 1)
            weights["conv_out.bias"] = weights["conv_out.bias"].repeat(3)
        torch.save(raw, "colour.pt")
    assert sample.main(["--ckpt", ckpt, "--out", "o", *flags]) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1
    assert not Path("o").exists()


def test_without_nibabel_it_says_what_to_install(ckpt, monkeypatch, capsys):
    labels()
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    assert sample.main(["--ckpt", ckpt, "--mask", "seg.nii.gz", "--out", "o"]) == 2
    assert "pip install nibabel" in capsys.readouterr().err and not Path("o").exists()
