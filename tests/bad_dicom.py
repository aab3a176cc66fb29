"""Bad DICOM files, for test_data_bad_input.py. Under seed 0 patient 2 of five is trained on."""

import struct

import numpy as np
import pydicom
from bad_corpus import case
from pydicom.uid import UID, JPEGLossless, RLELossless
from small_dicom import compressed_as, dicom_set, images_of, nested, save, save_series
from small_sets import brain

PATIENT = "p2/s1"


def a_file(root, number=4):
    """One of patient 2's first series in a good set."""
    return dicom_set(root) / PATIENT / f"IM{number:04d}.dcm"


def changed(root, change):
    """A good set in whose patient 2, series 1, each image was changed: change(its place in the series, image)."""
    images = images_of(brain(2, 1), 2, 1)
    for n, image in enumerate(images):
        change(n, image)
    return save_series(images, dicom_set(root) / PATIENT)


def with_bytes(path, content, before=b"\x08\x00\x60\x00"):
    """Put an element before that of the modality."""
    whole = path.read_bytes()
    at = whole.index(before)
    path.write_bytes(whole[:at] + content + whole[at:])


@case(".dcm: not as far from ")
def slices_missing(root):
    dicom_set(root)
    for path in (root / PATIENT).iterdir():
        if pydicom.dcmread(path).InstanceNumber in (5, 6):
            path.unlink()


@case(".dcm: at the same place as ")
def places_taken_twice(root):
    def change(n, image):
        if n == 5:
            image.ImagePositionPatient = [-20, -30, 40 + 4 * 3.1717]

    changed(root, change)


@case("copy.dcm: at the same place as ")
def a_slice_twice(root):
    path = a_file(root)
    path.with_name("copy.dcm").write_bytes(path.read_bytes())


@case(": of another size or orientation than ")
def series_of_two_orientations(root):
    def change(n, image):
        if n == 3:
            image.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    changed(root, change)


@case(": of another size or orientation than ")
def series_of_two_sizes(root):
    def change(n, image):
        if n == 3:
            image.PixelSpacing = [2, 2]

    changed(root, change)


@case("its series is sheared (the gantry was tilted); resample it")
def tilted_gantry(root):
    def change(n, image):
        image.ImagePositionPatient = [-20, -30 + n, 40 + 3 * n]

    changed(root, change)


@case("IM0004.dcm: does not say where it lies in space, or how large its pixels are; remove it")
def slice_without_a_place(root):
    image = pydicom.dcmread(a_file(root))
    del image.ImagePositionPatient
    save(image, root / PATIENT / "IM0004.dcm")


@case("its rows and columns are not at right angles, or of no length; export it again")
def cosines_that_are_none(root):
    changed(root, lambda n, image: setattr(image, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]))


@case("its rows and columns are not at right angles, or of no length; export it again")
def pixels_of_no_size(root):
    changed(root, lambda n, image: setattr(image, "PixelSpacing", [0, 0]))


@case(": damaged, or not a DICOM image (ValueError); export it again")
def a_place_of_words(root):
    path = a_file(root)
    content = path.read_bytes()
    at = content.index(b"\x20\x00\x32\x00DS") + 8
    path.write_bytes(content[:at] + b"Q7ZX-somewhere" + content[at + 14 :])


@case("holds NaN or infinite values")
def slope_of_nan(root):
    path = a_file(root)
    image = pydicom.dcmread(path)
    image.RescaleSlope, image.RescaleIntercept = "1", "0"
    save(image, path)
    content = path.read_bytes()
    at = content.index(b"\x28\x00\x53\x10DS") + 6
    path.write_bytes(content[:at] + struct.pack("<H", 4) + b"nan " + content[at + 4 :])


@case("compressed as JPEG; install what decodes it: pip install pylibjpeg pylibjpeg-libjpeg; or leave")
def compressed_without_decoder(root):
    changed(root, lambda n, image: compressed_as(image, JPEGLossless))


@case("compressed in a way that nothing here decodes; export it again, uncompressed")
def compressed_as_a_film(root):
    changed(root, lambda n, image: compressed_as(image, UID("1.2.840.10008.1.2.4.100")))


@case(": damaged, or not a DICOM image")
def compressed_and_damaged(root):
    changed(root, lambda n, image: compressed_as(image, RLELossless))


@case("IM0004.dcm: deflated as a whole; export it again")
def deflated(root):
    """A bomb would be unpacked at once."""
    image = pydicom.dcmread(a_file(root))
    image.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    save(image, root / PATIENT / "IM0004.dcm")


@case("IM0004.dcm: damaged, or not a DICOM image")
def pixels_cut_off(root):
    path = a_file(root)
    path.write_bytes(path.read_bytes()[:-100])


@case("IM0004.dcm: its header has no modality or no series, or was cut off; export it again")
def header_cut_off(root):
    path = a_file(root)
    path.write_bytes(path.read_bytes()[:150])


@case("IM0004.dcm: damaged, or not a DICOM image")
def dicom_that_is_text(root):
    a_file(root).write_text("Q7ZX, no image\n" * 20)


@case("IM0004.dcm: its header has no modality or no series, or was cut off; export it again")
def length_of_2_to_the_32(root):
    """An element that says it has four gigabytes."""
    with_bytes(a_file(root), b"\x08\x00\x50\x00OB\0\0" + struct.pack("<I", 2**32 - 2))


@case("IM0004.dcm: damaged, or not a DICOM image")
def sequences_a_thousand_deep(root):
    with_bytes(a_file(root), nested(2000))


@case("IM0004.dcm: its header asks for no pixels, or for too many; export it again")
def more_pixels_than_memory(root):
    image = pydicom.dcmread(a_file(root))
    image.Rows = image.Columns = 65535
    image.NumberOfFrames = 2**31 - 1
    save(image, root / PATIENT / "IM0004.dcm")


@case("切片 größe.dcm: damaged, or not a DICOM image")
def dicom_named_in_other_scripts(root):
    path = a_file(root)
    path.rename(path.with_name("切片 größe.dcm")).write_bytes(b"")


@case("but nothing to use (directories (DICOMDIR)); see docs/data.md", "refuses")
def a_dicomdir_alone(root):
    (dicom_set(root) / "DICOMDIR").rename(root.parent / "DICOMDIR")
    root.rename(root.parent / "images")
    root.mkdir()
    (root.parent / "DICOMDIR").rename(root / "DICOMDIR")


@case("but nothing to use (files of other modalities than MR); see docs/data.md", "refuses")
def no_mr_at_all(root):
    images = images_of(brain(1))
    for image in images:
        image.Modality = "CT"
    save_series(images, root)


@case("whose is it? Its header has no PatientID; name its folder by --subject-pattern '^[^/]+', or make", "refuses")
def patients_without_a_number(root):
    for p in range(1, 6):
        images = images_of(brain(p), p)
        for image in images:
            image.PatientID = ""
        save_series(images, root / f"p{p}")


@case("subject 'patient 1' is in train and val; keep each subject in one split", "refuses")
def a_series_in_two_splits(root):
    for n, path in enumerate(save_series(images_of(brain(1)), root)):
        (root / ("train", "val")[n % 2]).mkdir(exist_ok=True)
        path.rename(root / ("train", "val")[n % 2] / path.name)


@case("DICOM series take no masks from elsewhere; leave --masks out", "refuses")
def dicom_with_masks(root):
    return ["--masks", str(dicom_set(root))]


@case("IM0000.dcm: every voxel has the value 7; there is no image in it")
def series_of_one_value(root):
    volume = np.full((12, 14, 10), 7, np.int16)
    save_series(images_of(volume, 2, 1), dicom_set(root) / PATIENT)
