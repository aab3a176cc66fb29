"""Bad volumes, for test_data_bad_input.py: NIfTI files and the sets that are made of them."""

import gzip
import json
import struct

import nibabel
import numpy as np
from bad_corpus import case
from small_sets import (
    bids_set,
    brain,
    brats_2023_set,
    decathlon_set,
    label_volume,
    nifti_set,
    nnunet_set,
    save_nifti,
    series_set,
    subject_set,
)

# ---------------------------------------------------------------------------------------------------------
# A folder of volumes. Under seed 0 the first subject of four, IXI000, is trained on.


def packed(root):
    """IXI000-T1.nii.gz of a good set."""
    return nifti_set(root) / "IXI000-T1.nii.gz"


def with_header(path, *changes):
    """Change bytes of a packed file's header: (offset, struct's letter, value)."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    for offset, letter, value in changes:
        struct.pack_into(f"<{letter}", content, offset, value)
    path.write_bytes(gzip.compress(bytes(content)))


@case("IXI000-T1.nii.gz: no mask (NAME_mask or NAME_seg) beside it; add it")
def volume_without_mask(root):
    (packed(root).with_name("IXI000-T1_mask.nii.gz")).unlink()


@case("IXI000-T1_mask.nii.gz: no volume of that name; add it")
def mask_without_volume(root):
    packed(root).unlink()


@case("IXI000-T1.nii.gz: the same name as IXI000-T1.nii; remove one")
def volume_packed_and_not(root):
    save_nifti(packed(root).with_name("IXI000-T1.nii"), brain(7))


@case("no mask of that name in")
def volume_without_mask_elsewhere(root):
    path = packed(root)
    for mask in [*root.glob("*_mask*"), *root.glob("*_seg*")]:
        (root.parent / "m").mkdir(exist_ok=True)
        mask.rename(root.parent / "m" / mask.name)
    (root.parent / "m" / f"{path.name.split('.')[0]}_mask.nii.gz").unlink()
    return ["--masks", str(root.parent / "m")]


@case("IXI000-T1_mask.nii.gz: not on the grid of")
def mask_of_another_shape(root):
    save_nifti(packed(root).with_name("IXI000-T1_mask.nii.gz"), label_volume(1, shape=(12, 14, 9)))


@case("IXI000-T1_mask.nii.gz: not on the grid of")
def mask_that_is_turned(root):
    path = packed(root).with_name("IXI000-T1_mask.nii.gz")
    save_nifti(path, label_volume(1), np.diag([1.0, -1, 1, 1]))


@case("IXI000-T1_mask.nii.gz: the mask has labels 7 that are not known; known are 0 background, 1 class 1")
def mask_of_an_unknown_label(root):
    save_nifti(packed(root).with_name("IXI000-T1_mask.nii.gz"), label_volume(1) * np.uint8(7))


@case("IXI000-T1_mask.nii.gz: the mask has labels 0.5 that are not known; known are 0 background, 1 class 1")
def mask_between_two_labels(root):
    save_nifti(packed(root).with_name("IXI000-T1_mask.nii.gz"), label_volume(1) * np.float32(0.5))


@case("IXI000-T1_seg.nii.gz: a second mask of the volume of IXI000-T1_mask.nii.gz; remove one")
def volume_with_two_masks(root):
    save_nifti(packed(root).with_name("IXI000-T1_seg.nii.gz"), label_volume(1))


@case("IXI000-T1_seg.nii.gz: a second mask of the volume of IXI000-T1.nii.gz; remove one")
def volume_with_two_masks_elsewhere(root):
    nifti_set(root, masks=False)
    for name in ("IXI000-T1", "IXI000-T1_seg", *(f"IXI{s:03d}-T1" for s in (1, 2, 3))):
        save_nifti(root.parent / "m" / f"{name}.nii.gz", label_volume(1))
    return ["--masks", str(root.parent / "m")]


@case("IXI000-T1_mask.nii.gz: 2 volumes in it (4 dimensions), where one is due")
def mask_of_four_dimensions(root):
    save_nifti(packed(root).with_name("IXI000-T1_mask.nii.gz"), np.stack([label_volume(1)] * 2, -1))


@case("IXI000-T1.nii.gz: its affine is sheared (axes at 60 degrees, not 90); resample it")
def sheared(root):
    affine = np.eye(4)
    affine[0, 2], affine[2, 2] = np.cos(np.pi / 3), np.sin(np.pi / 3)
    save_nifti(packed(root), brain(0), affine)


@case("IXI000-T1.nii.gz: its affine holds NaN or infinite numbers; mend")
def affine_of_nan(root):
    with_header(packed(root), (280, "f", np.nan))


@case("IXI000-T1.nii.gz: its affine gives voxels no length along one axis; mend")
def flat_voxels(root):
    with_header(packed(root), *((offset, "f", 0.0) for offset in (280, 296, 312)))


@case("IXI000-T1.nii.gz: its qform and sform disagree which side is which; mend")
def sides_that_disagree(root):
    path = packed(root)
    image = nibabel.Nifti1Image(brain(0), np.diag([-1.0, -1, 1, 1]))
    image.set_qform(np.diag([1.0, -1, 1, 1]), 1)
    image.set_sform(np.diag([-1.0, -1, 1, 1]), 1)
    nibabel.save(image, path)


@case("IXI000-T1.nii.gz: damaged, or not a NIfTI volume")
def volume_that_is_plain_text(root):
    packed(root).write_text("not packed, and no volume")


@case("IXI000-T1.nii.gz: damaged, or not a NIfTI volume")
def volume_cut_off(root):
    path = packed(root)
    path.write_bytes(path.read_bytes()[:300])


@case("IXI000-T1.nii.gz: damaged, or not a NIfTI volume")
def volume_of_too_few_voxels(root):
    path = packed(root)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:2000]))


@case("IXI000-T1.nii.gz: its header says")
def bomb_of_voxels(root):
    """A gigabyte of zeros, if the header is believed."""
    with_header(packed(root), (42, "h", 1000), (44, "h", 1000), (46, "h", 500))


@case("IXI000-T1.nii.gz: damaged, or not a NIfTI volume (it says that its voxels begin after 4294967296 bytes)")
def bomb_before_the_voxels(root):
    with_header(packed(root), (108, "f", 2.0**32))


@case("IXI000-T1.nii.gz: damaged, or not a NIfTI volume (it says that a header extension has 2147483632 bytes)")
def bomb_in_an_extension(root):
    """nibabel would unpack two gigabytes."""
    path = packed(root)
    with_header(path, (108, "f", 384.0), (348, "i", 1), (352, "i", 2**31 - 16))


@case("IXI000-T1.nii.gz: damaged, or not a NIfTI volume (it says that a header extension has 0 bytes)")
def extension_without_end(root):
    with_header(packed(root), (108, "f", 384.0), (348, "i", 1), (352, "i", 0))


@case("IXI000-T1.nii.gz: its header says (-12, 14, 10) voxels")
def volume_of_negative_size(root):
    with_header(packed(root), (42, "h", -12))


@case("IXI000-T1.nii.gz: 2 dimensions (12, 14), not three or four; save one volume")
def volume_of_two_dimensions(root):
    save_nifti(packed(root), brain(0)[..., 5])


@case("IXI000-T1.nii.gz: 5 dimensions (12, 14, 10, 1, 3), not three or four; save one volume")
def volume_of_five_dimensions(root):
    save_nifti(packed(root), np.stack([brain(0)] * 3, -1)[..., None, :])


@case("IXI000-T1.nii.gz: every voxel has the value 7")
def volume_of_one_value(root):
    save_nifti(packed(root), np.full((12, 14, 10), 7, np.int16))


@case("脳 мозг دماغ.nii.gz: damaged, or not a NIfTI volume")
def volume_named_in_other_scripts(root):
    packed(root).rename(root / "脳 мозг دماغ.nii.gz").write_bytes(b"")
    (root / "IXI000-T1_mask.nii.gz").rename(root / "脳 мозг دماغ_mask.nii.gz")


@case("NIfTI volumes are read in one channel", "refuses")
def volumes_in_three_channels(root):
    nifti_set(root)
    return ["--image-channels", "3"]


@case("which are slices already; leave it out", "refuses")
def pictures_along_another_axis(root):
    subject_set(root)
    return ["--axis", "coronal"]


@case("which are slices already; leave it out", "refuses")
def pictures_of_a_spacing(root):
    subject_set(root)
    return ["--spacing", "2"]


@case("--spacing 0.001: makes slices of", "refuses")
def spacing_too_fine(root):
    nifti_set(root)
    return ["--spacing", "0.001"]


# ---------------------------------------------------------------------------------------------------------
# Series


@case("dwi.nii.gz: 4 volumes, and no .bval beside it; put it there, or name one by --volume")
def series_without_b_values(root):
    (series_set(root, subjects=5) / "s1" / "dwi.bval").unlink()


@case("dwi.bval: 3 b values for 4 volumes; fetch it again")
def series_of_too_few_b_values(root):
    (series_set(root, subjects=5) / "s1" / "dwi.bval").write_text("0 0 1000")


@case("dwi.bval: no volume has b = 0; name one by --volume")
def series_without_b_0(root):
    (series_set(root, subjects=5) / "s1" / "dwi.bval").write_text("1000 1000 2000 2000")


@case("dwi.bval: damaged, or not a list of b values")
def series_whose_b_values_are_words(root):
    (series_set(root, subjects=5) / "s1" / "dwi.bval").write_text("none of these is")


def grow(path):
    """Make a file look as large as no list is; it takes no room on the disk."""
    with open(path, "r+b") as file:
        file.truncate(2**24 + 1)


@case("dwi.bval: damaged, or not a list of b values (too large)")
def series_whose_b_values_are_endless(root):
    grow(series_set(root, subjects=5) / "s1" / "dwi.bval")


@case("dataset.json: damaged, or not a dataset.json (too large)", "refuses")
def json_that_is_endless(root):
    grow(task(root) / "dataset.json")


@case("participants.tsv: damaged, or not a table (too large)")
def participants_without_end(root):
    grow(bids_set(root) / "participants.tsv")


@case("dseg.tsv: damaged, or not a table (too large)", "refuses")
def table_that_is_endless(root):
    path = label_maps(root) / "dseg.tsv"
    path.write_text("index\tname\n1\tlesion\n")
    grow(path)


@case("--volume 4: ", "refuses")
def series_without_that_volume(root):
    series_set(root, subjects=5)
    return ["--volume", "4"]


@case("dwi.nii.gz is a single volume, no series; leave it out")
def a_series_of_one_volume(root):
    save_nifti(series_set(root, subjects=5) / "s1" / "dwi.nii.gz", brain(1))
    return ["--volume", "3"]


@case("hold no series to choose from; leave it out", "refuses")
def a_volume_of_what_has_none(root):
    brats_2023_set(root)
    return ["--volume", "1"]


# ---------------------------------------------------------------------------------------------------------
# BraTS since 2023


@case("BraTS-GLI-00001-000-t2f.nii: no such file; add it, or rename")
def new_brats_without_a_contrast(root):
    (brats_2023_set(root) / "BraTS-GLI-00001-000" / "BraTS-GLI-00001-000-t2f.nii.gz").unlink()


@case("-seg.nii.gz: the mask has labels 4 that are not known; known are 0 background, 1 necrotic core, 2 oedema, 3 enh")
def new_brats_of_old_labels(root):
    for path in brats_2023_set(root).rglob("*-seg.nii.gz"):
        if path.name.startswith("BraTS-GLI-00000-000"):
            save_nifti(path, np.where(label_volume(1, top=4) == 3, 4, 0).astype(np.uint8))


# ---------------------------------------------------------------------------------------------------------
# Decathlon and nnU-Net


def edit(path, **changes):
    """Change a JSON file's entries; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def task(root):
    return decathlon_set(root) / "Task01_BrainTumour"


@case("dataset.json: names Task01_BrainTumour/imagesTr/BRATS_001.nii.gz, which is not there; add it")
def decathlon_without_a_file(root):
    (task(root) / "imagesTr" / "BRATS_001.nii.gz").unlink()


@case("dataset.json: names Task01_BrainTumour/labelsTr/BRATS_001.nii.gz, which is not there")
def decathlon_without_a_mask(root):
    (task(root) / "labelsTr" / "BRATS_001.nii.gz").unlink()


@case("dataset.json: names etc/passwd, which is not there")
def decathlon_that_points_elsewhere(root):
    path = task(root) / "dataset.json"
    training = json.loads(path.read_text())["training"]
    edit(path, training=[{"image": "../etc/passwd", "label": "../etc/passwd"}, *training])


@case("dataset.json: 'modality' should name what each volume shows", "refuses")
def decathlon_without_modalities(root):
    edit(task(root) / "dataset.json", modality=None)


@case("dataset.json: 'labels' should name the labels, and 0 the background", "refuses")
def decathlon_without_labels(root):
    edit(task(root) / "dataset.json", labels=None)


@case("dataset.json: 'training' should list files", "refuses")
def decathlon_without_a_list(root):
    edit(task(root) / "dataset.json", training={"image": "x"})


@case("BRATS_001.nii.gz: 3 modalities, but dataset.json names 4 (FLAIR, T1w, t1gd, T2w)")
def decathlon_of_three_modalities(root):
    save_nifti(task(root) / "imagesTr" / "BRATS_001.nii.gz", np.stack([brain(0, m) for m in range(3)], -1))


@case("BRATS_001.nii.gz: 1 modalities, but dataset.json names 4")
def decathlon_of_three_dimensions(root):
    save_nifti(task(root) / "imagesTr" / "BRATS_001.nii.gz", brain(0))


@case("dataset.json: damaged, or not a dataset.json", "refuses")
def json_cut_off(root):
    path = task(root) / "dataset.json"
    path.write_text(path.read_text()[:100])


@case("dataset.json: damaged, or not a dataset.json", "refuses")
def json_nested_deeply(root):
    (task(root) / "dataset.json").write_text("[" * 100_000)


@case("imagesTr: no dataset.json beside it; add it", "refuses")
def task_without_json(root):
    """Its masks must not be taken for images."""
    (task(root) / "dataset.json").unlink()


@case("dataset.json: no JSON object; fetch it again", "refuses")
def json_of_a_list(root):
    (task(root) / "dataset.json").write_text("[1, 2]")


@case("dataset.json: a second set; name one of them", "refuses")
def two_tasks(root):
    task(root)
    nnunet_set(root)


def nnunet(root):
    return nnunet_set(root) / "Dataset042_Name"


@case("case_00_0001.nii.gz: no such file; add it")
def nnunet_without_a_channel(root):
    (nnunet(root) / "imagesTr" / "case_00_0001.nii.gz").unlink()


@case("labelsTr/case_00.nii.gz: no such file; add it")
def nnunet_without_a_mask(root):
    (nnunet(root) / "labelsTr" / "case_00.nii.gz").unlink()


@case("dataset.json: 'channel_names' should name what each volume shows", "refuses")
def nnunet_whose_channels_have_gaps(root):
    edit(nnunet(root) / "dataset.json", channel_names={"0": "T2", "2": "ADC"})


@case("dataset.json: 'labels' has regions (whole); name each number once", "refuses")
def nnunet_of_regions(root):
    edit(nnunet(root) / "dataset.json", labels={"background": 0, "whole": [1, 2], "core": [2]})


@case("dataset.json: 'labels' should give each name a number from 0 to 255, once", "refuses")
def nnunet_of_a_label_twice(root):
    edit(nnunet(root) / "dataset.json", labels={"background": 0, "PZ": 1, "TZ": 1})


@case("dataset.json: 'labels' should give each name a number from 0 to 255, once", "refuses")
def decathlon_of_a_label_of_5000_digits(root):
    edit(task(root) / "dataset.json", labels={"0": "background", "1" * 5000: "edema"})


@case("dataset.json: files that end in '.png'; save them as .nii.gz", "refuses")
def nnunet_of_pictures(root):
    edit(nnunet(root) / "dataset.json", file_ending=".png")


@case("case_00_0001.nii.gz: not on the grid of case_00_0000.nii.gz; resample it")
def nnunet_of_two_grids(root):
    save_nifti(nnunet(root) / "imagesTr" / "case_00_0001.nii.gz", brain(0, 1), np.diag([2.0, 2, 2, 1]))


@case("case_00_0000.nii.gz: 2 volumes in it (4 dimensions), where one is due")
def nnunet_of_four_dimensions(root):
    save_nifti(nnunet(root) / "imagesTr" / "case_00_0000.nii.gz", np.stack([brain(0)] * 2, -1))


# ---------------------------------------------------------------------------------------------------------
# BIDS. Under seed 0 the last subject of five, sub-05, is trained on, and so are sub-02 and sub-03.


def anat(root, kind=""):
    """sub-02's first session of a good set, or what a derivative has of it."""
    return bids_set(root) / kind / "sub-02" / "ses-1" / "anat"


LESIONS = "derivatives/lesions"


@case("a BIDS folder, but without sub-*/[ses-*/]anat/*_{T1w,T2w,FLAIR,...}.nii[.gz]; add them", "refuses")
def bids_without_anat(root):
    for folder in bids_set(root).glob("sub-*/**/anat"):
        folder.rename(folder.with_name("func"))
    (root / "derivatives").rename(root.parent / "derivatives")


@case("_label-lesion_mask.nii.gz: of which session? Its subject has 2; add ses-Y", "refuses")
def bids_of_two_sessions_with_one_mask(root):
    path = anat(root, LESIONS) / "sub-02_ses-1_label-lesion_mask.nii.gz"
    path.rename(path.with_name("sub-02_label-lesion_mask.nii.gz"))


@case("sub-02_ses-1_FLAIR.nii: no mask (dseg or mask) of its subject and session; add it")
def bids_session_without_mask(root):
    (anat(root, LESIONS) / "sub-02_ses-1_label-lesion_mask.nii.gz").unlink()


@case("sub-02_ses-1_label-lesion_mask.nii.gz: on the grid of no image of its session; resample it")
def bids_mask_on_another_grid(root):
    save_nifti(anat(root, LESIONS) / "sub-02_ses-1_label-lesion_mask.nii.gz", label_volume(1), np.diag([2.0, 2, 2, 1]))


@case(
    "sub-02_ses-1_label-lesion_mask.nii.gz: the mask has labels 3 that are not known; known are 0 background, 1 lesion"
)
def bids_mask_that_is_a_label_map(root):
    save_nifti(anat(root, LESIONS) / "sub-02_ses-1_label-lesion_mask.nii.gz", label_volume(1, top=2) * np.uint8(3))


@case("_label-lesion_mask.nii.gz: voxels of it are in another mask of the image too; make each of one class")
def bids_masks_that_overlap(root):
    path = anat(root, LESIONS) / "sub-02_ses-1_label-lesion_mask.nii.gz"
    path.with_name("sub-02_ses-1_label-core_mask.nii.gz").write_bytes(path.read_bytes())


@case("_mask.nii.gz: a mask, but there are label maps (dseg) too; name the folder of one kind", "refuses")
def bids_of_masks_and_label_maps(root):
    save_nifti(anat(root, "derivatives/fs") / "sub-02_ses-1_dseg.nii.gz", label_volume(1))


def label_maps(root):
    """sub-02/ses-1/anat in derivatives/fs of a set whose masks are label maps."""
    for path in [*bids_set(root, masks=False).glob("sub-*/**/*_T1w.nii.gz")]:
        name = path.name.replace("_T1w", "_dseg")
        save_nifti(root / "derivatives" / "fs" / path.relative_to(root).parent / name, label_volume(1))
    return root / "derivatives" / "fs" / "sub-02" / "ses-1" / "anat"


@case("_dseg.nii.gz: a second label map of one image; name a folder of one kind by --masks")
def bids_of_two_label_maps(root):
    save_nifti(label_maps(root) / "sub-02_ses-1_desc-aseg_dseg.nii.gz", label_volume(1))


@case("dseg.tsv: should have the columns index, with numbers, and name; mend it", "refuses")
def bids_table_of_something_else(root):
    (label_maps(root) / "dseg.tsv").write_text("name\tcolour\nlesion\tred\n")


@case("dseg.tsv: 2 labels, of which 1 differ; 255 at most, each once", "refuses")
def bids_table_of_one_number_twice(root):
    (label_maps(root) / "dseg.tsv").write_text("index\tname\n1\tlesion\n1\toedema\n")


@case("dseg.tsv: 1 is 'oedema', but 'lesion' in another table; make a number mean one label", "refuses")
def bids_tables_that_differ(root):
    label_maps(root)
    for subject, names in (("sub-01", ("lesion", "oedema")), ("sub-02", ("oedema", "lesion"))):
        rows = "".join(f"{n}\t{name}\n" for n, name in enumerate(names, 1))
        path = root / "derivatives" / "fs" / subject / f"{subject}_ses-1_dseg.tsv"
        path.write_text("index\tname\n" + rows)


@case("_label-core_mask.nii.gz: not on the grid of")
def bids_classes_on_two_grids(root):
    path = anat(root, LESIONS) / "sub-02_ses-1_label-core_mask.nii.gz"
    save_nifti(path, label_volume(1, shape=(14, 12, 8)))


@case("participants.tsv: damaged, or not a table")
def bids_table_of_bytes(root):
    (bids_set(root) / "participants.tsv").write_bytes(bytes(range(256)))


@case("also in", "refuses")
def bids_twice(root):
    bids_set(bids_set(root) / "copy")


@case("sub-05_T1w.nii.gz: 3 volumes in it (4 dimensions), where one is due")
def bids_of_four_dimensions(root):
    save_nifti(bids_set(root) / "sub-05" / "anat" / "sub-05_T1w.nii.gz", np.stack([brain(1)] * 3, -1))


@case("BIDS folders are read in one channel", "refuses")
def bids_in_three_channels(root):
    bids_set(root)
    return ["--image-channels", "3"]
