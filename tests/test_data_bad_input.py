"""A corpus of bad data: each file ends in one line that names it and says what to do, with exit status 2, or is
counted and left out under --skip-bad. Never a traceback, never a silent drop."""

import io
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import bad_dicom
import bad_scans
import h5py
import nibabel
import numpy as np
import pytest
from bad_corpus import CORPUS, case
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_dicom import MARKS
from small_sets import (
    SIZE,
    brats_set,
    brats_slice_set,
    fastmri_set,
    lgg_set,
    noise,
    save_nifti,
    split_set,
    subject_set,
    write,
    write_hdf5,
)

import train
from ddpm import UserError
from ddpm.data import folders, images, volumes
from ddpm.runtime import cache
from ddpm.runtime.command_line import given_fields, train_parser
from ddpm.runtime.config import Config

ROOT = Path(train.__file__).parent
REMEDY = r"[;:?] ?[^;:?]*\b(remove|export|split|save|add|rename|make|mend|fetch|keep|name|resample|replace|leave|see|cut|put|say|Say|labels none|takes 3|known are|must|beside it has 8|leave out|docs/data.md)\b"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "d"


def spoil(root, content, name="s1.png", kind="images"):
    """A good set in which one file has other bytes; returns its path."""
    path = split_set(root) / "train" / kind / name
    path.unlink(missing_ok=True)
    if name != "s1.png":
        path.with_name("s1.png").unlink()
    path.write_bytes(content)
    return path


def encoded(array, format="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format, **options)
    return buffer.getvalue()


def png(width, height, depth=8, colour=0, data=b""):
    """A PNG of any size that its header may claim."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def deep_tiff(colours):
    """A TIFF of three channels of 16 bits (H, W, 3), as Pillow reads but does not write."""
    height, width, _ = colours.shape
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 128), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, colours.nbytes)]  # 8 + 2 + 9 * 12 + 4
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return header + bytes(4) + struct.pack("<HHH", 16, 16, 16) + colours.astype("<u2").tobytes()


# ---------------------------------------------------------------------------------------------------------
# Pictures that cannot be read


@case("s1.png: damaged, or not a picture")
def truncated_png(root):
    spoil(root, encoded(noise(1))[:200])


@case("s1.png: damaged, or not a picture")
def zero_bytes(root):
    spoil(root, b"")


@case("s1.png: damaged, or not a picture")
def text_named_png(root):
    spoil(root, b"this is no picture at all\n" * 20)


@case("s1.png: damaged, or not a picture")
def header_alone(root):
    spoil(root, encoded(noise(1))[:33])


@case("s1.png: damaged, or not a picture")
def flipped_bytes_in_the_middle(root):
    content = bytearray(encoded(noise(1)))
    content[100:120] = bytes(b ^ 0xFF for b in content[100:120])
    spoil(root, bytes(content))


@case("s1.png: damaged, or not a picture")
def bmp_named_png(root):
    spoil(root, encoded(noise(1), "BMP"))


@case("s1.png: damaged, or not a picture")
def gif_named_png(root):
    spoil(root, encoded(noise(1), "GIF"))


@case("s1.png: damaged, or not a picture")
def html_of_a_failed_download(root):
    spoil(root, b"<!DOCTYPE html><html><body>Sign in</body></html>")


@case("s1.png: damaged, or not a picture")
def archive_named_png(root):
    spoil(root, b"PK\x03\x04" + bytes(200))


@case("s1.png:")
def decompression_bomb(root):
    spoil(root, png(60_000, 60_000, data=bytes(1000)))


@case("s1.png: 5000x5000 pixels are too many")
def too_many_pixels(root):
    spoil(root, png(5000, 5000, depth=1, data=bytes(5000 * 626)))


@case("s1.png: damaged, or not a picture")
def no_width(root):
    spoil(root, png(0, 20))


@case("s1.png: damaged, or not a picture")
def bit_depth_that_does_not_exist(root):
    spoil(root, png(24, 20, depth=7, data=bytes(600)))


@case("s1.jpg: damaged, or not a picture")
def truncated_jpeg(root):
    spoil(root, encoded(noise(1), "JPEG")[:300], "s1.jpg")


@case("s1.tif: damaged, or not a picture")
def truncated_tiff(root):
    spoil(root, encoded(noise(1), "TIFF")[:200], "s1.tif")


@case("s1.tif:")
def tiff_whose_pages_are_a_loop(root):
    content = bytearray(encoded(noise(1), "TIFF"))
    first = struct.unpack("<I", content[4:8])[0]
    end = first + 2 + 12 * struct.unpack("<H", content[first : first + 2])[0]
    content[end : end + 4] = struct.pack("<I", first)  # the next page is this one
    content[first + 2 : first + 4] = struct.pack("<H", 9)  # and its width is gone
    spoil(root, bytes(content), "s1.tif")


@case("s1.tif: 2 pages")
def several_pages(root):
    pages = [Image.fromarray(noise(i)) for i in range(2)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    spoil(root, buffer.getvalue(), "s1.tif")


@case("s1.png: 2 pages")
def animated_png(root):
    pages = [Image.fromarray(noise(i)) for i in range(2)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "PNG", save_all=True, append_images=pages[1:])
    spoil(root, buffer.getvalue())


@case("s1.tif: values that do not fit 16 bits")
def floats(root):
    spoil(root, encoded(noise(1).astype(np.float32), "TIFF"), "s1.tif")


@case("s1.tif: values that do not fit 16 bits")
def negative_values(root):
    spoil(root, encoded(noise(1).astype(np.int32) - 1000, "TIFF"), "s1.tif")


@case("s1.png: more than 8 bits a pixel, but s2.png beside it has 8")
def sixteen_bits_among_eight(root):
    spoil(root, encoded(noise(1, top=4000, dtype=np.uint16)))


@case("s0.png: more than 8 bits a pixel, but s1.png beside it has 8")
def eight_bits_among_sixteen(root):
    split_set(root, top=4000, dtype=np.uint16)
    write(root / "train" / "images" / "s1.png", noise(1))


@case("s1.png: 16 bits a channel in colour or with transparency")
def sixteen_bits_in_colour(root):
    spoil(root, png(24, 20, depth=16, colour=2, data=bytes(20 * (1 + 24 * 6))))


@case("s1.png: 16 bits a channel in colour or with transparency")
def sixteen_bits_with_transparency(root):
    spoil(root, png(24, 20, depth=16, colour=4, data=bytes(20 * (1 + 24 * 4))))


@case("s1.tif: 16 bits a channel in colour or with transparency")
def tiff_of_sixteen_bits_in_colour(root):
    spoil(root, deep_tiff(noise(1, size=(*SIZE, 3), top=4000, dtype=np.uint16)), "s1.tif")


@case("every voxel has the value 7", "refuses")
def sixteen_bits_all_alike(root):
    split_set(root)
    for path in (root / "train" / "images").iterdir():
        write(path, np.full(SIZE, 7, np.uint16))


@case("s0.png: mode L, not three channels", "refuses")
def grey_where_three_channels_are_asked_for(root):
    split_set(root)
    return ["--image-channels", "3"]


# ---------------------------------------------------------------------------------------------------------
# Files that are no files


@case("s1.png: a link to nothing, or no file")
def named_pipe(root):
    os.mkfifo(spoil(root, b"").with_name("x.png"))
    (root / "train" / "images" / "s1.png").unlink()
    (root / "train" / "images" / "x.png").rename(root / "train" / "images" / "s1.png")


@case("s1.png: a link to nothing")
def broken_link(root):
    path = spoil(root, b"")
    path.unlink()
    path.symlink_to("nowhere.png")


@case("s1.png: cannot be read")
def link_to_itself(root):
    path = spoil(root, b"")
    path.unlink()
    path.symlink_to(path.name)


@case("again: a link to a folder that it lies in")
def loop_of_folders(root):
    split_set(root)
    (root / "train" / "images" / "again").symlink_to("..")


@case("s1.png: no image of that name")
def folder_named_png(root):
    path = spoil(root, b"")
    path.unlink()
    path.mkdir()


@case("s1.png: damaged, or not a picture")
def unreadable(root):
    path = spoil(root, b"")
    path.unlink()
    path.symlink_to("/proc/self/mem")  # also root cannot read it


# ---------------------------------------------------------------------------------------------------------
# Images and masks that do not belong together


@case("s1.png: no mask of that name")
def image_without_mask(root):
    (split_set(root) / "train" / "masks" / "s1.png").unlink()


@case("s1.png: no image of that name")
def mask_without_image(root):
    (split_set(root) / "train" / "images" / "s1.png").unlink()


@case("s1.tif: the same name as s1.png")
def two_masks_for_one_image(root):
    write(split_set(root) / "train" / "masks" / "s1.tif", noise(1, top=2))


@case("s1.png: the same name as s1.jpg")
def two_images_of_one_name(root):
    write(split_set(root) / "train" / "images" / "s1.jpg", noise(1))


@case("s1.png: 24x20, but its image is 20x24")
def sizes_that_differ(root):
    write(split_set(root) / "train" / "masks" / "s1.png", noise(1, top=2).T.copy())


@case("s1.png: the mask has labels 7 ")
def label_out_of_range(root):
    write(split_set(root) / "train" / "masks" / "s1.png", noise(1, top=2) * np.uint8(7))


@case("smoothed edges")
def anti_aliased_edges(root):
    sharp = Image.fromarray(255 * noise(1, size=(5, 6), top=2))
    smooth = sharp.resize(SIZE[::-1], Image.Resampling.BICUBIC)
    write(split_set(root) / "train" / "masks" / "s1.png", np.asarray(smooth))


@case("s1.jpg: the mask has labels")
def mask_as_jpeg(root):
    spoil(root, encoded(255 * noise(1, top=2), "JPEG"), "s1.jpg", "masks")


@case("s1.png: a mask must have one channel")
def mask_in_colour(root):
    write(split_set(root) / "train" / "masks" / "s1.png", noise(1, size=(*SIZE, 3), top=2))


@case("s1.png: the mask has labels 300")
def mask_of_sixteen_bits(root):
    write(split_set(root) / "train" / "masks" / "s1.png", np.full(SIZE, 300, np.uint16))


@case("s1.tif: a mask must have one channel holding labels, not mode F")
def mask_of_floats(root):
    spoil(root, encoded(noise(1, top=2).astype(np.float32), "TIFF"), "s1.tif", "masks")


@case("s1.tif: the mask has labels -1")
def negative_label(root):
    spoil(root, encoded(-noise(1, top=2).astype(np.int32), "TIFF"), "s1.tif", "masks")


@case("s1.png: damaged, or not a picture")
def truncated_mask(root):
    spoil(root, encoded(255 * noise(1, top=2))[:60], kind="masks")


# ---------------------------------------------------------------------------------------------------------
# Splits and folders


@case("nowhere: no such folder", "refuses")
def no_folder(root):
    return ["--data", str(root / "nowhere")]


@case("d: a file; if it is an archive unpack it, and name the folder", "refuses")
def a_file_for_a_folder(root):
    root.write_text("")


@case("nothing at all; see docs/data.md", "refuses")
def empty_folder(root):
    root.mkdir()


@case("only .csv, .txt; see docs/data.md", "refuses")
def nothing_known(root):
    root.mkdir()
    for name in ("a.txt", "b.csv"):
        (root / name).write_text("")


@case("a.dcm: damaged, or not a DICOM image", "refuses")
def dicom(root):
    root.mkdir()
    (root / "a.dcm").write_bytes(bytes(200))


@case("images: no such folder; put pictures there", "refuses")
def no_images_folder(root):
    split_set(root)
    (root / "train" / "images").rename(root / "train" / "pictures")


@case("images: no pictures here", "refuses")
def empty_split(root):
    for path in (split_set(root) / "val" / "images").iterdir():
        path.unlink()


@case("no images for val", "refuses")
def no_val(root):
    split_set(root, splits=("train", "test"))


@case("masks: no pictures here", "refuses")
def empty_masks_folder(root):
    for path in (split_set(root) / "train" / "masks").iterdir():
        path.unlink()


@case("val/ has no masks, but another split has", "refuses")
def a_split_without_masks(root):
    (split_set(root) / "val" / "masks").rename(root / "val" / "labels")


@case("nowhere: no such folder", "refuses")
def masks_folder_that_is_not_there(root):
    split_set(root)
    return ["--masks", str(root / "nowhere")]


@case("elsewhere/val: no such folder", "refuses")
def masks_folder_without_a_split(root):
    (split_set(root) / "elsewhere").mkdir()
    (root / "train" / "masks").rename(root / "elsewhere" / "train")
    return ["--masks", str(root / "elsewhere")]


@case("which pictures are of one subject", "refuses")
def subjects_unknown(root):
    subject_set(root, nested=False)


@case("cannot be split into three", "refuses")
def two_subjects(root):
    subject_set(root, subjects=2)


@case("not a regular expression", "refuses")
def pattern_that_is_none(root):
    subject_set(root)
    return ["--subject-pattern", "p(["]


@case("finds nothing in p0/0", "refuses")
def pattern_that_finds_nothing(root):
    subject_set(root)
    return ["--subject-pattern", "^case"]


@case("finds nothing in p0/0", "refuses")
def pattern_that_finds_the_empty_word(root):
    subject_set(root)
    return ["--subject-pattern", "x*"]


@case("s1 in val is the same image as s1 in train")
def leaking_split(root):
    write(split_set(root) / "val" / "images" / "s1.png", noise(0, 1))


@case("subject 'p1' is in train and val; keep each subject in one split, or name subjects by --subj", "refuses")
def subject_in_two_splits(root):
    for s, split in enumerate(("train", "val")):
        write(root / split / "images" / "p1" / f"{s}.png", noise(s))


@case("subject 's0' is in train and val", "refuses")
def subject_in_two_splits_by_its_name(root):
    split_set(root)
    return ["--subject-pattern", "s."]


@case("s0.png: damaged, or not a picture", "refuses")
def nothing_left(root):
    for path in (split_set(root) / "train" / "images").iterdir():
        path.write_bytes(b"")


# ---------------------------------------------------------------------------------------------------------
# Names


@case("träger größe 切片.png: damaged, or not a picture")
def name_that_is_not_ascii(root):
    spoil(root, b"", "träger größe 切片.png")
    write(root / "train" / "masks" / "träger größe 切片.png", noise(1, top=2))
    (root / "train" / "masks" / "s1.png").unlink()


@case(r"\udcff\udcfe.png: damaged, or not a picture")
def name_that_is_not_text(root):
    name = os.fsdecode(b"\xff\xfe.png")
    spoil(root, b"", name)
    (root / "train" / "masks" / "s1.png").rename(root / "train" / "masks" / name)


@case(r"a\nb\t.png: damaged, or not a picture")
def name_of_two_lines(root):
    spoil(root, b"", "a\nb\t.png")
    (root / "train" / "masks" / "s1.png").rename(root / "train" / "masks" / "a\nb\t.png")


@case("x.png: damaged, or not a picture")
def name_as_long_as_a_name_may_be(root):
    name = "x" * 251 + ".png"
    spoil(root, b"", name)
    (root / "train" / "masks" / "s1.png").rename(root / "train" / "masks" / name)


# ---------------------------------------------------------------------------------------------------------
# Known sets


def lgg_case(root, number=0):
    case = f"TCGA_CS_{4941 + number}_19960909"
    return lgg_set(root) / "kaggle_3m" / case / f"{case}_1.tif"


@case("_1.tif: no mask (NAME_mask.tif) beside it")
def lgg_image_without_mask(root):
    path = lgg_case(root)
    path.with_name(f"{path.stem}_mask.tif").unlink()


@case("_1_mask.tif: no image beside it")
def lgg_mask_without_image(root):
    lgg_case(root).unlink()


@case("the set lies here twice", "refuses")
def lgg_twice(root):
    lgg_set(root)
    lgg_set(root / "lgg-mri-segmentation")


@case("_1.tif: mode L, not three channels")
def lgg_in_grey(root):
    write(lgg_case(root), noise(1))


@case("LGG cases take no masks from elsewhere", "refuses")
def lgg_with_masks_flag(root):
    return ["--masks", str(lgg_set(root))]


BRATS = Path("BraTS20_Training_005")  # of five cases under seed 0, one that is trained on


def brats_file(root, kind):
    return brats_set(root, cases=5) / BRATS / f"{BRATS}_{kind}.nii"


def volume(path):
    image = nibabel.load(path)
    return np.asarray(image.dataobj).copy(), image.affine


@case("BraTS20_Training_005_seg.nii: no such file; add it, or rename")
def brats_without_seg(root):
    path = brats_file(root, "seg")
    path.rename(path.with_name("W39_1998.09.19_Segm.nii"))  # as in the published set, case 355


@case("BraTS20_Training_005_flair.nii: no such file")
def brats_without_a_contrast(root):
    brats_file(root, "flair").unlink()


@case("_t2.nii.gz: the same name as BraTS20_Training_005_t2.nii")
def brats_packed_and_not(root):
    path = brats_file(root, "t2")
    save_nifti(path.with_name(f"{path.name}.gz"), *volume(path))


@case("_seg.nii: the mask has labels 3 that are not known; known are 0 background, 1 necrotic core, 2 oedema, 4 enh")
def brats_label_3(root):
    values, affine = volume(path := brats_file(root, "seg"))
    save_nifti(path, np.where(values == 4, 3, values).astype(np.uint8), affine)


@case("_seg.nii: the mask has labels 0.5")
def brats_labels_between(root):
    values, affine = volume(path := brats_file(root, "seg"))
    save_nifti(path, (values / 2).astype(np.float32), affine)


def put_in(path, value):
    """Put a value into one voxel of a volume."""
    values, affine = volume(path)
    values = values.astype(np.float32)
    values[3, 3, 3] = value
    save_nifti(path, values, affine)


@case("_t1.nii: holds NaN")
def brats_nan(root):
    put_in(brats_file(root, "t1"), np.nan)


@case("_t1ce.nii: holds NaN or infinite")
def brats_infinite(root):
    put_in(brats_file(root, "t1ce"), np.inf)


@case("_t2.nii: every voxel has the value 7")
def brats_constant(root):
    values, affine = volume(path := brats_file(root, "t2"))
    save_nifti(path, np.full_like(values, 7), affine)


@case("_t2.nii: not on the grid of BraTS20_Training_005_t1.nii")
def brats_shape(root):
    values, affine = volume(path := brats_file(root, "t2"))
    save_nifti(path, values[:-1], affine)


@case("_seg.nii: not on the grid of BraTS20_Training_005_t1.nii")
def brats_shifted(root):
    values, affine = volume(path := brats_file(root, "seg"))
    affine[2, 3] += 5
    save_nifti(path, values, affine)


@case("_t1.nii: 2 volumes in it (4 dimensions)")
def brats_with_time(root):
    values, affine = volume(path := brats_file(root, "t1"))
    save_nifti(path, np.stack([values, values], -1), affine)


@case("_t1.nii: damaged, or not a NIfTI volume")
def brats_truncated(root):
    path = brats_file(root, "t1")
    path.write_bytes(path.read_bytes()[:1000])


@case("_t1.nii: damaged, or not a NIfTI volume")
def brats_zero_bytes(root):
    brats_file(root, "t1").write_bytes(b"")


@case("_t1.nii: damaged, or not a NIfTI volume")
def brats_text(root):
    brats_file(root, "t1").write_text("not a volume" * 100)


@case("_t1.nii.gz: damaged, or not a NIfTI volume")
def brats_broken_gz(root):
    path = brats_set(root, cases=5) / "BraTS20_Training_002" / "BraTS20_Training_002_t1.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@case("_t1.nii: its header says (32000, 32000, 32000) voxels")
def brats_bomb(root):
    path = brats_file(root, "t1")
    content = bytearray(path.read_bytes())
    content[42:48] = struct.pack("<hhh", 32000, 32000, 32000)
    path.write_bytes(bytes(content))


@case("_t1.nii: values of type")
def brats_colours(root):
    path = brats_file(root, "t1")
    colours = np.zeros((12, 14, 10), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    save_nifti(path, colours)


@case("_t1.nii: values of type complex64")
def brats_complex(root):
    values, affine = volume(path := brats_file(root, "t1"))
    save_nifti(path, values.astype(np.complex64), affine)


@case("--num-classes 3: ", "refuses")
def brats_of_three_classes(root):
    brats_set(root)
    return ["--num-classes", "3"]


@case("BraTS cases are read in one channel", "refuses")
def brats_in_three_channels(root):
    brats_set(root)
    return ["--image-channels", "3"]


def slice_file(root):
    return brats_slice_set(root) / "content" / "data" / "volume_3_slice_1.h5"


def slice_arrays():
    return {"image": np.random.default_rng(0).normal(size=(*SIZE, 4)), "mask": np.zeros((*SIZE, 3), np.uint8)}


@case("volume_3_slice_1.h5: damaged, or not an HDF5 file")
def slice_that_is_no_hdf5(root):
    slice_file(root).write_text("no HDF5")


@case("volume_3_slice_1.h5: damaged, or not an HDF5 file")
def slice_cut_off(root):
    path = slice_file(root)
    path.write_bytes(path.read_bytes()[:3000])


@case("volume_3_slice_1.h5: 'mask' should have the shape (H, W, 3), not nothing")
def slice_without_mask(root):
    write_hdf5(slice_file(root), image=slice_arrays()["image"])


@case("volume_3_slice_1.h5: 'image' should have the shape (H, W, 4), not (20, 24)")
def slice_of_one_channel(root):
    write_hdf5(slice_file(root), **slice_arrays() | {"image": np.zeros(SIZE)})


@case("volume_3_slice_1.h5: its size is not that of its mask")
def slice_of_another_size(root):
    write_hdf5(slice_file(root), **slice_arrays() | {"image": np.zeros((*SIZE[::-1], 4))})


@case("volume_3_slice_1.h5: 'mask' should hold 0 and 1, and one class a pixel")
def slice_of_two_classes_at_once(root):
    write_hdf5(slice_file(root), **slice_arrays() | {"mask": np.ones((*SIZE, 3), np.uint8)})


@case("volume_3_slice_1.h5: holds NaN")
def slice_of_nan(root):
    write_hdf5(slice_file(root), **slice_arrays() | {"image": np.full((*SIZE, 4), np.nan)})


@case("volume_3_slice_1.h5: values of type")
def slice_of_words(root):
    write_hdf5(slice_file(root), **slice_arrays() | {"image": np.full((*SIZE, 4), b"word")})


@case("volume_3_slice_1.h5: its header says 384 MB")
def slice_that_is_hardly_there(root):
    path = write_hdf5(slice_file(root), mask=slice_arrays()["mask"])
    with h5py.File(path, "a") as file:
        file.create_dataset("image", (4000, 3000, 4), np.float64, chunks=True, compression="gzip")


@case("volume_3_slice_1.h5: 'image' is not an array")
def slice_with_a_folder_for_an_image(root):
    path = write_hdf5(slice_file(root), mask=slice_arrays()["mask"])
    with h5py.File(path, "a") as file:
        file.create_group("image")


def scan(root):
    return fastmri_set(root) / "singlecoil_train" / "file10000001.h5"


@case("file10000001.h5: neither reconstruction_rss nor kspace")
def scan_of_something_else(root):
    write_hdf5(scan(root), data=np.zeros(3))


@case("file10000001.h5: its k-space is undersampled")
def scan_undersampled(root):
    write_hdf5(scan(root), kspace=np.zeros((2, 8, 8), np.complex64), mask=np.zeros(8))


@case("file10000001.h5: kspace has the shape (8, 8)")
def scan_of_two_dimensions(root):
    write_hdf5(scan(root), kspace=np.zeros((8, 8), np.complex64))


@case("file10000001.h5: (2, 8, 8) complex64, not real slices")
def scan_of_complex_images(root):
    write_hdf5(scan(root), reconstruction_rss=np.zeros((2, 8, 8), np.complex64))


@case("file10000001.h5: every voxel has the value 0")
def scan_of_nothing(root):
    write_hdf5(scan(root), reconstruction_rss=np.zeros((2, 8, 8), np.float32))


@case("file10000001.h5: its header says (0, 8, 8) voxels")
def scan_without_slices(root):
    write_hdf5(scan(root), reconstruction_rss=np.zeros((0, 8, 8), np.float32))


@case("stray.h5: in no split, but others are", "refuses")
def scan_in_no_split(root):
    write_hdf5(fastmri_set(root) / "stray.h5", reconstruction_rss=np.zeros((2, 8, 8), np.float32))


@case("fastMRI scans take no masks", "refuses")
def scans_with_masks_flag(root):
    return ["--masks", str(fastmri_set(root))]


# ---------------------------------------------------------------------------------------------------------


def flags_for(root, make):
    flags = make(root) or []
    if "--data" not in flags:
        flags = ["--data", str(root), *flags]
    return [*flags, "--preset", "tiny", "--steps", "1", "--image-size", "16"]


def test_the_corpus_is_large():
    assert len(CORPUS) >= 200 and len({param.id for param in CORPUS}) == len(CORPUS)


@pytest.mark.parametrize("make, says, skip_bad", CORPUS)
def test_bad_data_is_one_line_that_names_it(root, capsys, make, says, skip_bad):
    assert train.main(flags_for(root, make)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and error.endswith("\n")
    assert says in error and re.search(REMEDY, error.replace(str(root), "")), error
    assert len(error) < 1000 and not any(mark in error for mark in MARKS)  # of patients, in DICOM headers
    assert not Path("results").exists()  # nothing half-written
    assert not list(cache.CACHE.glob("*.tmp"))


@pytest.mark.parametrize("make, says, skip_bad", CORPUS)
def test_under_skip_bad_it_is_counted_or_still_refused(root, make, says, skip_bad):
    flags = make(root) or []
    given = given_fields(train_parser().parse_args(["--data", str(root), *flags]))

    def load(split):
        return folders.load(Config(**given | {"image_size": [16, 16], "skip_bad": True}), split)

    if skip_bad == "refuses":
        with pytest.raises((UserError, OSError)):
            for split in ("train", "val"):
                load(split)
        return
    found = [load(split) for split in ("train", "val")]
    bad = {line for data in found for line in data.index["bad"]}
    assert any(says in line for line in bad), bad
    assert all(len(data) == len(data.index["names"]) and (data.masks is None or len(data.masks) == len(data))
               for data in found)  # fmt: skip
    assert ("skipped" in folders.table(*found)) == bool(bad)


def test_every_case_of_a_drawn_split_is_counted_somewhere(tmp_path):
    """Where the split is drawn by subject the bad case may lie in any split; over all three it is there once."""
    for name, make, says in (
        ("lgg", lgg_in_grey, "not three channels"),
        ("brats", brats_nan, "holds NaN"),
        ("slices", slice_of_nan, "holds NaN"),
    ):
        make(tmp_path / name)
        bad, config = [], Config(data=str(tmp_path / name), image_size=[16, 16], skip_bad=True)
        for split in ("train", "val", "test"):
            try:
                bad += folders.load(config, split).index["bad"]
            except UserError as error:  # a split of this one case
                bad.append(str(error))
        assert sum(says in line for line in bad) == 1, (name, bad)


AS_A_PROCESS = [truncated_png, decompression_bomb, named_pipe, name_that_is_not_text, truncated_tiff]
AS_A_PROCESS += [bad_scans.extension_without_end, bad_scans.sides_that_disagree, bad_dicom.a_place_of_words]


@pytest.mark.parametrize("make", AS_A_PROCESS)
@pytest.mark.slow
def test_as_a_real_process(root, make):
    command = [sys.executable, str(ROOT / "train.py"), *flags_for(root, make)]
    done = subprocess.run(command, capture_output=True, timeout=120, cwd=root.parent)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1 and b"Traceback" not in done.stderr


def test_what_is_hardly_there_is_not_read_but_what_is_packed_well_is(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("nothing", (4000, 3000, 4), np.float64, chunks=True)
        file.create_dataset("words", (9,), h5py.string_dtype())
        file.create_dataset("packed", data=np.zeros((100, 200, 200)), chunks=True, compression="gzip")
    assert volumes.read_hdf5(tmp_path / "f.h5", "packed").shape == (100, 200, 200)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", None)
    for name, says in (("nothing", "384 MB"), ("words", "values of type object")):
        with pytest.raises(UserError, match=f"f.h5: .*{says}"):
            volumes.read_hdf5(tmp_path / "f.h5", name)


# Damage of any kind


def damaged(content, where, values):
    content = bytearray(content)
    for position, value in zip(where, values, strict=False):
        content[position % len(content)] = value
    return bytes(content)


bytes_to_change = st.lists(st.integers(0, 10**6), min_size=1, max_size=12), st.binary(min_size=12, max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "TIFF", "JPEG"]), *bytes_to_change, st.integers(0, 500))
def test_whatever_happens_to_a_picture_it_is_read_or_refused(tmp_path_factory, format, where, values, cut):
    content = damaged(encoded(noise(1), format), where, values)
    path = tmp_path_factory.getbasetemp() / f"fuzz.{format.lower()}"
    path.write_bytes(content[: len(content) - cut])
    try:
        assert images.read_pixels(path).ndim == 3
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([".nii", ".nii.gz"]), *bytes_to_change, st.integers(0, 500))
def test_whatever_happens_to_a_volume_it_is_read_or_refused(tmp_path_factory, ending, where, values, cut):
    path = tmp_path_factory.getbasetemp() / f"fuzz{ending}"
    save_nifti(path, noise(1, size=(3, 4, 5)))
    where = [w % 400 for w in where]  # the header
    path.write_bytes(damaged(path.read_bytes(), where, values)[: 10_000 - cut])
    try:
        volume, _ = volumes.read_nifti(path)
        assert volume.ndim == 3
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
