"""Small DICOM files as scanners write them, of made-up patients. Whatever a header says of them has a mark to look for."""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage
from small_sets import brain

MARKS = ("Q7ZX", "19371231", "20010203", "7777777", "77.7731", "0.7371", "3.1717")  # in text, dates, UIDs, numbers
ROOT_UID = "1.2.826.0.1.7777777"
PIXEL_MM = (0.7371, 0.8371)  # between rows, between columns
STEP_MM = 3.1717


def header(patient, series, number, kind=MRImageStorage):
    """A data set without pixels and geometry."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = kind
    uid = f"{ROOT_UID}.{patient}.{series}.{number + 1}"
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = uid
    image.StudyInstanceUID, image.SeriesInstanceUID = f"{ROOT_UID}.{patient}", f"{ROOT_UID}.{patient}.{series}"
    image.FrameOfReferenceUID = f"{ROOT_UID}.{patient}.9"
    image.Modality, image.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M", "ND"]
    image.SpecificCharacterSet = "ISO_IR 192"
    image.PatientName, image.PatientID = f"Q7ZX{patient}^Gïvén", f"Q7ZX-{patient}"
    image.PatientBirthDate, image.StudyDate, image.SeriesDate = "19371231", "20010203", "20010203"
    for keyword in ("StudyDescription", "SeriesDescription", "ProtocolName", "InstitutionName", "StationName"):
        setattr(image, keyword, f"Q7ZX {keyword}")
    image.ReferringPhysicianName, image.AccessionNumber, image.DeviceSerialNumber = "Q7ZX^Doctor", "Q7ZX1", "Q7ZX2"
    image.EchoTime, image.InstanceNumber = 77.7731, number + 1
    image.private_block(0x0029, "Q7ZX PRIVATE", create=True).add_new(0x10, "LO", "Q7ZX private")
    return image


def set_pixels(image, pixels):
    """pixels: (H, W), or (N, H, W) of several frames, uint16 or int16."""
    image.Rows, image.Columns = pixels.shape[-2:]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, int(pixels.dtype.kind == "i")
    image.PixelData = np.ascontiguousarray(pixels).tobytes()


# How an acquisition lies: from a pixel to the next, from a row to the next, from a slice to the next, each a unit vector to
# the left, the back, the head; and the slices (N, H, W) that it makes of a volume (X, Y, Z) to the right, front, head.
PLANES = {
    "axial": ((1, 0, 0), (0, 1, 0), (0, 0, 1), lambda v: np.stack([v[::-1, ::-1, z].T for z in range(v.shape[2])])),
    "sagittal": (
        (0, 1, 0),
        (0, 0, -1),
        (-1, 0, 0),
        lambda v: np.stack([v[x, ::-1, ::-1].T for x in range(v.shape[0])]),
    ),
    "coronal": (
        (1, 0, 0),
        (0, 0, -1),
        (0, 1, 0),
        lambda v: np.stack([v[::-1, y, ::-1].T for y in range(v.shape[1])][::-1]),
    ),
}


def images_of(volume, patient=1, series=1, plane="axial"):
    """A series: an image for each slice, in order of place."""
    across, down, step, cut = PLANES[plane]
    found = []
    for n, pixels in enumerate(cut(volume)):
        image = header(patient, series, n)
        set_pixels(image, pixels)
        image.ImageOrientationPatient = [*across, *down]
        image.ImagePositionPatient = (np.array([-20.0, -30, 40]) + n * STEP_MM * np.array(step)).tolist()
        image.PixelSpacing, image.SliceThickness = list(PIXEL_MM), STEP_MM
        found.append(image)
    return found


def enhanced_of(volume, patient=1, series=1):
    """The same as one multi-frame image; its frames are stored from the head down."""
    slices = images_of(volume, patient, series)[::-1]
    image = header(patient, series, 0, EnhancedMRImageStorage)
    set_pixels(image, np.stack([one.pixel_array for one in slices]))
    image.NumberOfFrames = len(slices)
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [Dataset()], [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = list(PIXEL_MM)
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = slices[0].ImageOrientationPatient
    image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [shared], []
    for n, one in enumerate(slices):
        frame = Dataset()
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [Dataset()], [Dataset()]
        frame.PlanePositionSequence[0].ImagePositionPatient = one.ImagePositionPatient
        frame.PixelValueTransformationSequence[0].RescaleSlope = 1 + n % 2
        frame.PixelValueTransformationSequence[0].RescaleIntercept = -n
        image.PerFrameFunctionalGroupsSequence.append(frame)
    return image


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return path


def save_series(images, folder):
    """Files in an order that says nothing of place: the names are IM0000.dcm ..."""
    order = np.random.default_rng(len(images)).permutation(len(images))
    return [save(images[i], folder / f"IM{n:04d}.dcm") for n, i in enumerate(order)]


def compressed_as(image, syntax):
    """The image with bytes for pixels that claim to be of a compressed transfer syntax."""
    image.file_meta.TransferSyntaxUID = syntax
    image.PixelData = encapsulate([b"\xff\xd8 no decoder will see this " * 4])
    return image


def dicom_set(root, patients=5):
    """patient{P}/{t1,t2}/IM*.dcm, with a localiser, a CT image, a report without pixels, an image in colour, a series of two, and a DICOMDIR."""
    for p in range(1, patients + 1):
        for s in (1, 2):
            save_series(images_of(brain(p, s), p, s), root / f"p{p}" / f"s{s}")
    localiser, other, report, colours = (images_of(brain(9), 1, series)[0] for series in (7, 8, 9, 10))
    colours.PhotometricInterpretation = "PALETTE COLOR"
    localiser.ImageType, other.Modality, report.Modality = ["ORIGINAL", "PRIMARY", "LOCALIZER"], "CT", "SR"
    del report.PixelData
    for n, image in enumerate((localiser, other, report, colours)):
        save(image, root / "p1" / f"other{n}.dcm")
    for n, image in enumerate(images_of(brain(9), 1, 11)[:2]):
        save(image, root / "p1" / f"scout{n}.dcm")
    (root / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    return root


def nested(depth):
    """An element that holds a sequence in a sequence in a ..., all of undefined length."""
    start = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return start * depth + end * depth
