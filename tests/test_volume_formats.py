"""Sets of volumes, in small files of exactly their format: which slices, labels, subjects and contrasts come of them, and
how volumes are cut along each axis and at each spacing."""

import json
import re
from functools import partial

import nibabel
import numpy as np
import pytest
from small_sets import (
    SLICE_SIZE,
    bids_set,
    brain,
    brats_2023_set,
    brats_set,
    decathlon_set,
    label_volume,
    load,
    nifti_set,
    nnunet_set,
    noise,
    save_nifti,
    series_set,
    write,
)

from ddpm import UserError
from ddpm.data import folders, volumes
from ddpm.data.formats import nifti
from ddpm.data.images import crop_or_pad

SHAPE = (12, 14, 10)  # of the small volumes: stored with x to the left and y to the back
load = partial(load, size=SLICE_SIZE)


def everything(root, **options):
    """All splits of a set as one: (name, contrast) -> (image (H, W), labels (H, W) or None, subject, split)."""
    found = {}
    for split in ("train", "val", "test"):
        data = load(root, split, **options)
        for i, name in enumerate(data.index["names"]):
            assert (name, data.index["contrasts"][i]) not in found
            labels = None if data.masks is None else data.masks[i]
            found[name, data.index["contrasts"][i]] = data.images[i, 0], labels, data.index["subjects"][i], split
    return found


def shown(volume, z):
    """Slice z of a volume that is stored with x to the left and y to the back, in its window of 0 to 255."""
    low = np.percentile(volume, 1)
    high = np.percentile(volume[volume > low], 99.5)
    return np.rint(255 * ((volume[:, :, z].T - low) / (high - low)).clip(0, 1))


def check(found, name, contrast, volume, labels):
    """Six slices of ten have brain, and each is that of the file."""
    for z in range(2, 8):
        image, its_labels, _, _ = found[f"{name} slice {z}", contrast]
        assert abs(image - shown(volume, z)).max() <= 1
        assert its_labels is None if labels is None else np.array_equal(its_labels, labels[:, :, z].T)


# BraTS since 2023


def test_brats_since_2023(tmp_path):
    root = brats_2023_set(tmp_path / "d")
    found = everything(root)
    assert len(found) == 3 * 2 * 4 * 6
    for number in range(3):
        for time in range(2):
            case = f"BraTS-GLI-{number:05d}-{time:03d}"
            for kind in range(4):
                inside = brain(0) > 0
                values = (1 + noise(number, time, kind, size=SHAPE, top=900, dtype=np.int16)) * inside
                check(found, f"{case}/{case}", kind, values, noise(number, time, 9, size=SHAPE, top=4) * inside)
    data = load(root)
    assert data.vocabulary.labels["contrast"] == ("t1", "t1ce", "t2", "flair")
    assert data.classes[1:] == ("necrotic core", "oedema", "enhancing tumour")


def test_the_time_points_of_a_patient_are_one_subject(tmp_path):
    splits = {}
    for (name, _), (_, _, subject, split) in everything(brats_2023_set(tmp_path / "d")).items():
        assert name.startswith(f"{subject}-00") and subject.count("-") == 2
        splits.setdefault(subject, set()).add(split)
    assert len(splits) == 3 and all(len(one) == 1 for one in splits.values())


def test_an_old_name_that_ends_in_a_number_has_no_time_point(tmp_path):
    for s in range(1, 5):
        for kind in ("t1", "t1ce", "t2", "flair", "seg"):
            values = label_volume(s) if kind == "seg" else brain(s, len(kind))
            save_nifti(tmp_path / "d" / f"sub-{s:03d}" / f"sub-{s:03d}_{kind}.nii.gz", values)
    subjects = {subject for _, _, subject, _ in everything(tmp_path / "d").values()}
    assert subjects == {f"sub-{s:03d}" for s in range(1, 5)}


def test_volumes_of_one_contrast_are_no_brats_set(tmp_path):
    for s in range(4):
        save_nifti(tmp_path / "d" / f"a{s}_flair.nii.gz", brain(s))
        save_nifti(tmp_path / "d" / f"a{s}_flair_seg.nii.gz", label_volume(s, 9))
    found = everything(tmp_path / "d")
    assert len(found) == 4 * 6
    check(found, "a2_flair", 0, brain(2), label_volume(2, 9))


@pytest.mark.parametrize("kinds", [("t1", "flair"), ("t1ce",)])
def test_one_or_two_contrasts_of_a_subject_are_no_brats_set_either(tmp_path, kinds):
    for s in range(4):
        for kind in kinds:
            save_nifti(tmp_path / "d" / f"p{s}" / f"p{s}_{kind}.nii.gz", brain(s, len(kind)))
    assert len(everything(tmp_path / "d")) == 4 * len(kinds) * 6


@pytest.mark.parametrize("name", ["lesionMask", "T1_LesionSmooth_stx", "gt"])
def test_a_map_of_labels_is_no_image_whatever_its_name(tmp_path, name):
    for s in range(4):
        save_nifti(tmp_path / "d" / f"p{s}" / "t1.nii.gz", brain(s))
        save_nifti(tmp_path / "d" / f"p{s}" / f"{name}.nii.gz", label_volume(s, top=8))
    with pytest.raises(
        UserError, match=rf"{name}.nii.gz: 8 different values, as a map of labels has; call it NAME_mask"
    ):
        load(tmp_path / "d")
    found = [load(tmp_path / "d", split, skip_bad=True) for split in ("train", "val", "test")]
    assert sum(map(len, found)) == 4 * 6


@pytest.mark.parametrize("name", ["aseg", "aparc+aseg", "aparc.a2009s+aseg", "t1_label_tissue"])
def test_a_map_of_many_labels_is_no_image_by_its_name(tmp_path, name):
    for s in range(4):
        save_nifti(tmp_path / "d" / f"p{s}" / "t1.nii.gz", brain(s))
        save_nifti(tmp_path / "d" / f"p{s}" / f"{name}.nii.gz", label_volume(s, top=40))
    with pytest.raises(UserError, match=re.escape(f"{name}.nii.gz: an image that is named as masks are")):
        load(tmp_path / "d")


def test_a_first_slice_of_two_values_makes_no_map_of_labels(tmp_path):
    for s in range(3):
        volume = noise(s, size=(340, 310, 6), top=900, dtype=np.int16)
        volume[..., 0] = volume[..., 0] > 450
        save_nifti(tmp_path / "d" / f"v{s}.nii.gz", volume)
    assert len(load(tmp_path / "d")) > 3


def test_several_volumes_of_a_subject_in_one_folder_are_asked_about(tmp_path):
    for s in range(4):
        for kind in ("Guys-T1", "Guys-T2")[: 1 + s % 2]:
            save_nifti(tmp_path / "d" / f"IXI{s:03d}-{kind}.nii.gz", brain(s, len(kind)))
    with pytest.raises(
        UserError, match=r"2 volumes IXI001\*, is 'IXI001' a subject. Whose is each. say it by .*'\^\[\^_-\]\+'"
    ):
        load(tmp_path / "d")
    subjects = {subject for _, _, subject, _ in everything(tmp_path / "d", subject_pattern="^[^_-]+").values()}
    assert subjects == {f"IXI{s:03d}" for s in range(4)}  # as the message says
    for path in [*(tmp_path / "d").glob("*T2*")]:
        path.unlink()
    assert len(everything(tmp_path / "d")) == 4 * 6  # one each, whatever their names share
    for group in ("control", "patient"):
        for s in range(3):
            save_nifti(tmp_path / "e" / f"{group}_{s:02d}.nii.gz", brain(s, group == "control"))
    assert len(everything(tmp_path / "e")) == 6 * 6  # two groups of three, and not three volumes each of two subjects


def test_sessions_of_a_patient_in_one_folder_are_asked_about(tmp_path):
    for s in range(3):
        for session in ("A", "B"):
            save_nifti(tmp_path / "d" / f"P_{s}_{session}_T1.nii.gz", brain(s, session == "A"))
    pattern = "^[^_-]+[_-]+[^_-]+"
    with pytest.raises(UserError, match="2 volumes P_0[*], is 'P_0' a subject.*" + re.escape(f"'{pattern}'")):
        load(tmp_path / "d")
    subjects = {subject for _, _, subject, _ in everything(tmp_path / "d", subject_pattern=pattern).values()}
    assert subjects == {"P_0", "P_1", "P_2"}
    assert "own" not in load(tmp_path / "d", subject_pattern=pattern).index["about"]


# BIDS


def test_bids(tmp_path):
    root = bids_set(tmp_path / "d")
    found, splits = everything(root), {}
    assert len(found) == (4 * 2 * 2 + 1) * 6
    for s in range(1, 5):
        for session in (1, 2):
            for contrast, suffix in enumerate(("T1w", "FLAIR")):
                name = f"sub-{s:02d}/ses-{session}/anat/sub-{s:02d}_ses-{session}_{suffix}"
                check(found, name, contrast, brain(s, 1, session, contrast), label_volume(s, session, 9))
    check(found, "sub-05/anat/sub-05_T1w", 0, brain(5, 0, 0, 0), label_volume(5, 0, 9))
    for (name, _), (_, _, subject, split) in found.items():
        assert name.startswith(f"{subject}/")
        splits.setdefault(subject, set()).add(split)
    assert sorted(splits) == [f"sub-0{s}" for s in range(1, 6)] and all(len(one) == 1 for one in splits.values())
    data = load(root)
    assert data.classes == ("background", "lesion") and data.vocabulary.labels["contrast"] == ("T1w", "FLAIR")
    assert data.index["set_left_out"] == {
        "participants without images": 1,
        "masks of the brain": 9,
        "masks in another space": 9,
    }
    told = folders.table(load(root), load(root, "val"))
    assert "left out: 9 masks of the brain" in told and "left out: 1 participants without images" in told


def test_the_index_has_the_window_of_each_scan(tmp_path):
    """Of each session and contrast, though the subject is one."""
    windows = {}
    for split in ("train", "val", "test"):
        windows |= load(bids_set(tmp_path / "d"), split).index["windows"]
    assert len(windows) == 4 * 2 * 2 + 1
    for session in (1, 2):
        for contrast, suffix in enumerate(("T1w", "FLAIR")):
            volume = brain(3, 1, session, contrast)
            low, high = windows[f"sub-03/ses-{session}/anat/sub-03_ses-{session}_{suffix} {suffix}"]
            assert low == 0 and high == np.percentile(volume[volume > 0], 99.5)


def test_bids_without_masks(tmp_path):
    data = load(bids_set(tmp_path / "d", masks=False))
    assert data.masks is None and data.classes == () and "without masks" in data.index["about"]
    assert load(bids_set(tmp_path / "e"), labels="none").masks is None


def test_a_bids_mask_is_of_the_images_on_its_grid(tmp_path):
    """A FLAIR of another grid, on which no mask lies, is left out and counted; one with a mask of its own is not."""
    root = bids_set(tmp_path / "d")
    for s in range(1, 5):
        for session in (1, 2):
            name = f"sub-{s:02d}_ses-{session}"
            save_nifti(
                root / f"sub-{s:02d}" / f"ses-{session}" / "anat" / f"{name}_FLAIR.nii", brain(s, shape=(14, 12, 8))
            )
    found = {split: load(root, split) for split in ("train", "val", "test")}
    reason = "images on another grid than the masks of their session"
    assert sum(data.index["left_out"].get(reason, 0) for data in found.values()) == 8
    assert {contrast for data in found.values() for contrast in data.index["contrasts"]} == {0}
    folder = root / "derivatives" / "lesions" / "sub-01" / "ses-1" / "anat"
    save_nifti(folder / "sub-01_ses-1_space-FLAIR_label-lesion_mask.nii.gz", label_volume(1, shape=(14, 12, 8)))
    both = everything(root)
    name = "sub-01/ses-1/anat/sub-01_ses-1"
    check(both, f"{name}_T1w", 0, brain(1, 1, 1, 0), label_volume(1, 1, 9))
    assert (f"{name}_FLAIR slice 4", 1) in both


def test_bids_masks_of_several_classes_and_runs(tmp_path):
    """label-X names the class; what else of a mask's name its image must have."""
    whole = label_volume(1, top=4)
    for s in range(1, 4):
        for run in (1, 2):
            name = f"sub-{s}_run-{run}"
            save_nifti(tmp_path / "d" / f"sub-{s}" / "anat" / f"{name}_T2w.nii.gz", brain(s, run))
            for label, value in (("oedema", 1), ("core", 2)):
                mask = (np.roll(whole, run, 0) == value) * np.uint8(255)
                save_nifti(tmp_path / "d" / "derivatives" / "x" / f"{name}_label-{label}_mask.nii.gz", mask)
    found = everything(tmp_path / "d")
    assert load(tmp_path / "d").classes == ("background", "core", "oedema")
    for run in (1, 2):
        moved = np.roll(whole, run, 0)
        expected = np.select([moved == 2, moved == 1], [1, 2], 0)
        check(found, f"sub-2/anat/sub-2_run-{run}_T2w", 0, brain(2, run), expected)


def test_bids_label_maps_and_the_table_of_their_names(tmp_path):
    root = bids_set(tmp_path / "d", masks=False)
    for path in [*root.glob("sub-*/**/*_T1w.nii.gz")]:
        name = path.name.replace("_T1w.nii.gz", "_dseg.nii.gz")
        save_nifti(tmp_path / "m" / name, label_volume(len(name), top=3) * np.uint8(7))
    table = tmp_path / "m" / "dseg.tsv"
    table.write_text("index\tname\tabbreviation\n7\tWhite matter\tWM\n14\tGrey matter\tGM\n")
    data = load(root, masks=str(tmp_path / "m"))
    assert data.classes == ("background", "White matter", "Grey matter") and data.vocabulary.values == (0, 7, 14)
    name = "sub-02_ses-1_dseg.nii.gz"
    found = everything(root, masks=str(tmp_path / "m"))
    check(found, "sub-02/ses-1/anat/sub-02_ses-1_T1w", 0, brain(2, 1, 1, 0), label_volume(len(name), top=3))
    masks = []
    for numbers in ((5, 7, 14), (7, 14, 20)):  # the same names of other numbers
        table.write_text("index\tname\n" + "".join(f"{n}\t{name}\n" for n, name in zip(numbers, "abc", strict=True)))
        masks.append(load(root, masks=str(tmp_path / "m")).masks)
    assert np.array_equal(masks[0] > 0, masks[1] > 0) and np.array_equal(
        masks[0][masks[0] > 0] - 1, masks[1][masks[1] > 0]
    )
    table.unlink()
    assert load(root, masks=str(tmp_path / "m"), num_classes=15).classes[14] == "class 14"


def test_derivatives_are_no_images_and_may_be_read_for_themselves(tmp_path):
    root = bids_set(tmp_path / "d")
    for s in range(1, 4):
        place = root / "derivatives" / "prep" / f"sub-{s:02d}" / "anat"
        save_nifti(place / f"sub-{s:02d}_space-MNI_desc-preproc_T1w.nii.gz", brain(s, 77))
        save_nifti(place / f"sub-{s:02d}_space-MNI_label-L_mask.nii.gz", label_volume(s, 78))
        save_nifti(root / f"sub-{s:02d}" / "ses-1" / "anat" / f"sub-{s:02d}_ses-1_part-phase_T1w.nii.gz", brain(s, 79))
    assert len(everything(root)) == (4 * 2 * 2 + 1) * 6
    found = everything(root / "derivatives" / "prep")
    assert len(found) == 3 * 6
    check(found, "sub-02/anat/sub-02_space-MNI_desc-preproc_T1w", 0, brain(2, 77), label_volume(2, 78))


# Decathlon, nnU-Net


def test_decathlon(tmp_path):
    root = decathlon_set(tmp_path / "d")
    found = everything(root)
    assert len(found) == 4 * 4 * 6
    for c in range(4):
        for modality in range(4):
            name = f"Task01_BrainTumour/imagesTr/BRATS_{c + 1:03d}"
            check(found, name, modality, brain(c, modality), label_volume(c, 9, top=4))
    data = load(root)
    assert data.vocabulary.labels["contrast"] == ("FLAIR", "T1w", "t1gd", "T2w")
    assert data.classes == ("background", "edema", "non-enhancing tumor", "enhancing tumour")
    assert data.index["unused"] == {".gz": 1}  # the image to test on, which has no labels
    assert load(root, labels="none").masks is None


def test_decathlon_of_one_modality_has_no_contrasts_and_labels_may_skip_numbers(tmp_path):
    task = decathlon_set(tmp_path / "d") / "Task01_BrainTumour"
    for c, path in enumerate(sorted((task / "imagesTr").glob("B*"))):
        save_nifti(path, brain(c))
        save_nifti(task / "labelsTr" / path.name, label_volume(c, 9) * np.uint8(5))
    about = json.loads((task / "dataset.json").read_text())
    about |= {"modality": {"0": "MRI"}, "labels": {"5": "hippocampus", "0": "background"}}
    (task / "dataset.json").write_text(json.dumps(about))
    data = load(tmp_path / "d")
    assert data.labels == {} and data.classes == ("background", "hippocampus")
    name = "Task01_BrainTumour/imagesTr/BRATS_002"
    check(everything(tmp_path / "d"), name, 0, brain(1), label_volume(1, 9))


@pytest.mark.parametrize("make", [nnunet_set, decathlon_set])
def test_what_dataset_json_says_is_never_stale(tmp_path, make):
    """The same names of other numbers are other labels."""
    root = make(tmp_path / "d")
    for path in root.rglob("labelsTr/*"):
        save_nifti(path, label_volume(len(path.name)) * np.uint8(2))
    (path,) = root.rglob("dataset.json")
    found = []
    for labels in ({"0": "background", "1": "PZ", "2": "TZ"}, {"0": "background", "2": "PZ", "3": "TZ"}):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": labels}))
        found.append(load(root))
    assert found[0].classes == found[1].classes == ("background", "PZ", "TZ")
    assert [data.vocabulary.values for data in found] == [(), (0, 2, 3)]
    assert np.array_equal(found[0].masks, 2 * found[1].masks) and found[0].masks.any()


def test_nnunet(tmp_path):
    root = nnunet_set(tmp_path / "d")
    found = everything(root)
    assert len(found) == 4 * 2 * 6
    for c in range(4):
        for channel in range(2):
            name = f"Dataset042_Name/case_{c:02d}"
            check(found, name, channel, brain(c, channel), label_volume(c, 9, top=3))
    data = load(root)
    assert data.vocabulary.labels["contrast"] == ("T2", "ADC") and data.classes == ("background", "PZ", "TZ")


@pytest.mark.parametrize("make, values", [(brats_set, (0, 1, 2, 4)), (brats_2023_set, ()), (decathlon_set, ())])
def test_what_the_classes_are_called_in_files_is_known(tmp_path, make, values):
    assert load(make(tmp_path / "d")).vocabulary.values == values
    assert load(tmp_path / "d", labels="none").vocabulary.values == ()


def test_nnunet_as_it_once_was(tmp_path):
    """Version 1 of the format: "modality" for "channel_names", and labels by their numbers."""
    path = nnunet_set(tmp_path / "d") / "Dataset042_Name" / "dataset.json"
    about = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "PZ", "2": "TZ"}}
    cases = [{"image": f"./imagesTr/case_0{c}.nii.gz", "label": f"./labelsTr/case_0{c}.nii.gz"} for c in range(4)]
    path.write_text(json.dumps(about | {"training": cases}))
    data = load(tmp_path / "d")
    assert "nnU-Net" in data.index["about"] and data.vocabulary.labels["contrast"] == ("T2", "ADC")
    assert data.classes == ("background", "PZ", "TZ")


# Any folder of volumes


def test_volumes_and_masks_beside_them(tmp_path):
    found = everything(nifti_set(tmp_path / "d"))
    assert len(found) == 4 * 6
    for s in range(4):
        check(found, f"IXI{s:03d}-T1", 0, brain(s), label_volume(s, 9))
    assert {subject for _, _, subject, _ in found.values()} == {f"IXI{s:03d}-T1" for s in range(4)}


@pytest.mark.parametrize("make", [nifti_set, bids_set, brats_2023_set, series_set])
def test_a_name_may_end_in_capitals(tmp_path, make):
    small, capitals = (make(tmp_path / name) for name in ("small", "capitals"))
    for path in capitals.rglob("*.nii*"):
        path.rename(path.with_name(path.name.replace(".nii", ".NII").replace(".gz", ".GZ")))
    expected, found = everything(small), everything(capitals)
    assert found.keys() == expected.keys()
    for name, (image, labels, *whose) in expected.items():
        assert np.array_equal(found[name][0], image) and np.array_equal(found[name][1], labels)
        assert [*found[name][2:]] == whose


@pytest.mark.parametrize("place, kind", [("m", "_mask"), ("m", ""), ("d/labels", "_seg")])
def test_masks_in_another_folder(tmp_path, place, kind):
    root = nifti_set(tmp_path / "d", masks=False)
    for s in range(4):
        save_nifti(tmp_path / place / f"IXI{s:03d}-T1{kind}.nii.gz", label_volume(s, 9) * np.uint8(255))
    found = everything(root, masks=str(tmp_path / place))
    assert len(found) == 4 * 6
    for s in range(4):
        check(found, f"IXI{s:03d}-T1", 0, brain(s), label_volume(s, 9))


def save_scaled(path, labels):
    """As floats under the header of an image of int16, as much code does: nibabel scales them, and 1 becomes 1.00002."""
    affine = np.diag([-1.0, -1, 1, 1])
    header = nibabel.Nifti1Image(brain(0), affine).header
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels.astype(float), affine, header), path)


@pytest.mark.parametrize("top, times", [(2, 1), (2, 255), (5, 1)])
def test_labels_that_were_saved_as_scaled_integers(tmp_path, top, times):
    root = nifti_set(tmp_path / "d", masks=False)
    for s in range(4):
        save_scaled(root / f"IXI{s:03d}-T1_mask.nii.gz", times * label_volume(s, 9, top=top).astype(float))
    mask, _ = volumes.read_nifti(root / "IXI002-T1_mask.nii.gz")
    assert not np.isin(mask, times * np.arange(top)).all()  # not read as what was saved
    check(everything(root, num_classes=top), "IXI002-T1", 0, brain(2), label_volume(2, 9, top=top))


@pytest.mark.parametrize("value", [1, 255])
def test_bids_masks_that_were_saved_as_scaled_integers(tmp_path, value):
    root = bids_set(tmp_path / "d")
    for path in root.rglob("*_label-lesion_mask.nii.gz"):
        if "space" not in path.name:
            save_scaled(path, value * label_volume(3, 1, 9).astype(float))
    check(everything(root), "sub-03/ses-1/anat/sub-03_ses-1_T1w", 0, brain(3, 1, 1, 0), label_volume(3, 1, 9))


@pytest.mark.parametrize("name", ["masks", "labels"])
def test_volumes_in_images_and_masks_beside_it(tmp_path, name):
    """In folders of subjects, as pictures may lie; masks are never taken for images."""
    for s in range(4):
        save_nifti(tmp_path / "d" / "images" / f"s{s}" / "t1.nii.gz", brain(s))
        save_nifti(tmp_path / "d" / name / f"s{s}" / "t1.nii.gz", label_volume(s, 9))
    found = everything(tmp_path / "d")
    assert len(found) == 4 * 6 and {subject for _, _, subject, _ in found.values()} == {f"s{s}" for s in range(4)}
    check(found, "s2/t1", 0, brain(2), label_volume(2, 9))
    assert len(everything(tmp_path / "d", labels="none")) == 4 * 6


def test_masks_of_volumes_under_another_name_are_not_overlooked(tmp_path):
    for s in range(3):
        save_nifti(tmp_path / "d" / "images" / f"s{s}.nii.gz", brain(s))
        save_nifti(tmp_path / "d" / "Segmentations" / f"s{s}.nii.gz", label_volume(s, 9))
    with pytest.raises(UserError, match="d/Segmentations: named as masks are, but not used; give --masks .*/Segm"):
        load(tmp_path / "d")
    check(
        everything(tmp_path / "d", masks=str(tmp_path / "d" / "Segmentations")), "s2", 0, brain(2), label_volume(2, 9)
    )
    assert load(tmp_path / "d", labels="none").masks is None


def test_volumes_without_masks_in_folders_of_subjects_and_of_splits(tmp_path):
    for s in range(6):
        for visit in range(2):
            save_nifti(tmp_path / "drawn" / f"s{s}" / f"visit{visit}" / "t1.nii.gz", brain(s, visit))
            split = ("train", "train", "train", "val", "val", "test")[s]
            save_nifti(tmp_path / "given" / split / f"s{s}" / f"{visit}.nii", brain(s, visit))
    for name in ("drawn", "given"):
        found = everything(tmp_path / name)
        assert len(found) == 6 * 2 * 6 and all(labels is None for _, labels, _, _ in found.values())
        splits = {}
        for _, _, subject, split in found.values():
            splits.setdefault(subject, set()).add(split)
        assert sorted(splits) == [f"s{s}" for s in range(6)] and all(len(one) == 1 for one in splits.values())
    assert splits == {"s0": {"train"}, "s1": {"train"}, "s2": {"train"}, "s3": {"val"}, "s4": {"val"}, "s5": {"test"}}


def test_a_folder_of_a_whole_contrast_is_no_subject(tmp_path, monkeypatch):
    """As IXI's archives unpack: each patient would be in every split."""
    monkeypatch.setattr(nifti, "MOST", 3)
    for contrast in ("T1", "T2", "PD"):
        for s in range(4):
            save_nifti(tmp_path / "d" / f"IXI-{contrast}" / f"IXI{s:03d}-{contrast}.nii.gz", brain(s))
    with pytest.raises(UserError, match=r"d/IXI-\w+: 4 volumes, more than a subject has. Whose is each"):
        load(tmp_path / "d")
    found = [load(tmp_path / "d", split, subject_pattern=r"IXI\d+") for split in ("train", "val", "test")]
    assert sorted(len(set(data.index["subjects"])) for data in found) == [1, 1, 2]


def test_nothing_left_is_one_line(tmp_path):
    for s in range(3):
        save_nifti(tmp_path / "d" / "images" / f"s{s}.nii.gz", brain(s))
        save_nifti(tmp_path / "d" / "masks" / f"other{s}.nii.gz", label_volume(s, 9))
    with pytest.raises(UserError, match="but nothing to use"):
        load(tmp_path / "d", skip_bad=True)


def test_a_picture_beside_volumes_makes_no_folder_of_pictures(tmp_path):
    for s, split in enumerate(("train", "train", "val")):
        save_nifti(tmp_path / "d" / split / f"s{s}" / "t1.nii.gz", brain(s))
    write(tmp_path / "d" / "train" / "s0" / "report.png", noise(0))
    assert len(set(load(tmp_path / "d").index["subjects"])) == 2


def test_of_a_series_the_volumes_without_diffusion_weighting(tmp_path):
    found = everything(series_set(tmp_path / "d"))
    assert len(found) == 3 * 2 * 6  # b = 0 and 5, of 0, 1000, 5, 2000
    for s in range(3):
        for i in (0, 2):
            check(found, f"s{s}/dwi volume {i}", 0, brain(s, i), None)


def test_of_a_series_the_volume_that_is_asked_for(tmp_path):
    root = series_set(tmp_path / "d")
    for path in root.rglob("*.bval"):
        path.unlink()
    found = everything(root, volume=3)
    assert len(found) == 3 * 6
    check(found, "s1/dwi volume 3", 0, brain(1, 3), None)


def test_a_series_may_have_a_fifth_dimension_of_one(tmp_path):
    for s in range(3):
        series = np.stack([brain(s, i) for i in range(4)], -1)[..., None]
        save_nifti(tmp_path / "d" / f"s{s}" / "dwi.nii.gz", series)
    check(everything(tmp_path / "d", volume=1), "s2/dwi volume 1", 0, brain(2, 1), None)


def test_other_b_values_are_other_volumes(tmp_path):
    root = series_set(tmp_path / "d")
    before = load(root)
    for path in root.rglob("*.bval"):
        path.write_text("1000 0 1000 1000")
    after = load(root)
    assert {name.split(" slice")[0] for name in before.index["names"]} == {"s1/dwi volume 0", "s1/dwi volume 2"}
    assert {name.split(" slice")[0] for name in after.index["names"]} == {"s1/dwi volume 1"}


# Along each axis, at each spacing


def marked():
    """A volume of RAS+ that is brightest to the patient's right, at the front and at the top, and is dark outside."""
    x, y, z = np.indices((20, 24, 16)).astype(np.int16)
    volume = 100 + 5 * x + 3 * y + 7 * z
    volume[[0, -1]] = volume[:, [0, -1]] = volume[:, :, [0, -1]] = 0
    return volume.astype(np.int16)


AXES = {"axial": (16, 24, 20), "coronal": (24, 16, 20), "sagittal": (20, 16, 24)}  # (N, H, W)


@pytest.mark.parametrize("axis", AXES)
def test_slices_along_each_axis_lie_as_radiologists_see_them(axis):
    """Along the rows and columns of a slice, each world coordinate rises or falls as it should."""
    world = np.indices((20, 24, 16))  # x to the right, y to the front, z to the top
    slices = [volumes.along(one, axis) for one in world]
    assert slices[0].shape == AXES[axis]
    down, right, across = {"axial": (1, 0, 2), "coronal": (2, 0, 1), "sagittal": (2, 1, 0)}[axis]
    assert (np.diff(slices[down], axis=1) == -1).all()  # anterior, or the top of the head, is up
    assert (np.diff(slices[right], axis=2) == -1).all()  # the patient's right, or the front, is on the left
    assert (np.diff(slices[across], axis=0) == 1).all()
    for coordinate, moving in ((down, 1), (right, 2), (across, 0)):
        still = [axis_of for axis_of in range(3) if axis_of != moving]
        assert all((np.diff(slices[coordinate], axis=axis_of) == 0).all() for axis_of in still)


@pytest.mark.parametrize("axis", AXES)
def test_a_set_is_cut_along_the_axis(tmp_path, axis):
    n, height, width = AXES[axis]
    for s in range(3):
        save_nifti(tmp_path / "d" / f"v{s}.nii.gz", marked() + np.int16(s), np.eye(4))
        save_nifti(tmp_path / "d" / f"v{s}_mask.nii.gz", (marked() > 150).astype(np.uint8), np.eye(4))
    data = load(tmp_path / "d", size=(height, width), axis=axis)
    assert len(data) == n - 2 and data.images.shape[2:] == data.masks.shape[1:] == (height, width)
    assert (f", {axis} slices" in data.index["about"]) == (axis != "axial")
    inner = data.images[:, 0, 1:-1, 1:-1].astype(int)
    assert (np.diff(inner, axis=1) <= 0).all() and (np.diff(inner, axis=2) <= 0).all()
    assert np.array_equal(data.masks, volumes.along(marked() > 150, axis)[1:-1])


@pytest.mark.parametrize("axis, shape", [("axial", (24, 40)), ("coronal", (48, 40)), ("sagittal", (48, 24))])
def test_at_a_spacing_pixels_have_that_size(tmp_path, axis, shape):
    """20 x 24 x 16 voxels of 2 x 1 x 3 mm, in pixels of 1 mm: cropped or padded, never stretched."""
    labels = (marked() > 150).astype(np.uint8)
    for s in range(3):
        save_nifti(tmp_path / "d" / f"v{s}.nii.gz", marked() + np.int16(s), np.diag([2.0, 1, 3, 1]))
        save_nifti(tmp_path / "d" / f"v{s}_mask.nii.gz", labels, np.diag([2.0, 1, 3, 1]))
    exact = load(tmp_path / "d", size=shape, axis=axis, spacing=1.0)
    larger = load(tmp_path / "d", size=(60, 50), axis=axis, spacing=1.0)
    smaller = load(tmp_path / "d", size=(20, 22), axis=axis, spacing=1.0)
    assert f"{axis} slices of 1 mm a pixel" in exact.index["about"]
    repeats = [n // m for n, m in zip(shape, AXES[axis][1:], strict=True)]
    expected = volumes.along(labels, axis)[1:-1].repeat(repeats[0], 1).repeat(repeats[1], 2)
    assert np.array_equal(exact.masks, expected)
    top, left = (60 - shape[0]) // 2, (50 - shape[1]) // 2
    assert np.array_equal(larger.masks[:, top : top + shape[0], left : left + shape[1]], exact.masks)
    assert np.array_equal(larger.images[:, :, top : top + shape[0], left : left + shape[1]], exact.images)
    assert larger.images.sum(dtype=int) == exact.images.sum(dtype=int)  # black around it
    top, left = (shape[0] - 20) // 2, (shape[1] - 22) // 2
    assert np.array_equal(smaller.images, exact.images[:, :, top : top + 20, left : left + 22])
    assert np.array_equal(smaller.masks, exact.masks[:, top : top + 20, left : left + 22])


def test_a_coarser_spacing_averages(tmp_path):
    stripes = np.zeros((20, 24, 4), np.int16)
    stripes[::2] = 200
    for s in range(3):
        stripes[0, :10, 0] = s + np.arange(10)  # with two values alone it would be a map of labels
        save_nifti(tmp_path / "d" / f"v{s}.nii.gz", stripes, np.eye(4))
    data = load(tmp_path / "d", size=(8, 8), spacing=2.0)
    assert abs(data.images[:, 0].astype(int) - 128).max() < 30  # half of the white


def test_to_crop_or_pad_is_about_the_centre():
    image = np.arange(1, 13).reshape(1, 3, 4)
    assert crop_or_pad(image, (1, 2)).tolist() == [[[6, 7]]]
    assert crop_or_pad(image, (5, 4))[0, 1:4].tolist() == image[0].tolist()
    assert crop_or_pad(image, (2, 6)).shape == (1, 2, 6) and crop_or_pad(image, (7, 7)).sum() == image.sum()


def test_each_axis_spacing_and_volume_is_a_store_of_its_own(tmp_path):
    root = nifti_set(tmp_path / "d")
    options = [{}, {"axis": "coronal"}, {"axis": "sagittal"}, {"spacing": 1.0}, {"spacing": 2.0}]
    assert len({load(root, **given).index["key"] for given in options}) == len(options)
    root = series_set(tmp_path / "e")
    assert len({load(root, volume=i).index["key"] for i in (-1, 0, 1)}) == 3
