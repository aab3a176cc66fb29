"""DICOM: what a file is, and a series of MR images as one volume.

A header says who lies in the scanner. So no value of one is ever shown or stored: messages have names of files only,
pydicom's own (which quote headers) are silenced, and what is kept of a header is the geometry and, in memory, whose it is.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ddpm import UserError
from ddpm.data.volumes import MAX_COSINE, MAX_VOXELS, check_finite, library, to_ras

TAGS = (
    "Modality",
    "ImageType",
    "PhotometricInterpretation",
    "Rows",
    "NumberOfFrames",
    "SeriesInstanceUID",
    "PatientID",
)
DEFLATED = "1.2.840.10008.1.2.1.99"
# What is compressed in ways that pydicom alone cannot undo: its name, and the packages that can.
JPEG, JPEG_LS = ("JPEG", "pylibjpeg pylibjpeg-libjpeg"), ("JPEG-LS", "pyjpegls")
JPEG_2000 = ("JPEG 2000", "pylibjpeg pylibjpeg-openjpeg")
DECODERS = dict.fromkeys((50, 51, 57, 70), JPEG) | dict.fromkeys((80, 81), JPEG_LS)
DECODERS |= dict.fromkeys((90, 91, 201, 202, 203), JPEG_2000)
COMPRESSED = {f"1.2.840.10008.1.2.4.{number}": how for number, how in DECODERS.items()}


@dataclass(frozen=True)
class Header:
    """What a file is. unfit: why it is left out, or "" for an MR image."""

    unfit: str
    series: str = field(default="", repr=False)
    patient: str = field(default="", repr=False)
    frames: int = 1


class Frame(NamedTuple):
    """A slice in space. Vectors are in mm, in the patient's system (x to the left, y to the back, z to the head)."""

    path: str
    pixels: np.ndarray  # (H, W), rescaled
    position: np.ndarray  # (3,) of the first pixel
    across: np.ndarray  # (3,) from a pixel to the next of its row
    down: np.ndarray  # (3,) from a row to the next


@contextlib.contextmanager
def reading_dicom(path: str) -> Iterator:
    """Gives pydicom. Within it, whatever a damaged file makes it raise becomes a UserError without a word of the file."""
    pydicom = library("pydicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings(action="ignore"):
        try:
            yield pydicom
        except UserError:
            raise
        except Exception as error:  # damaged bytes make a reader fail in any way at all
            kind = type(error).__name__
            raise UserError(f"{path}: damaged, or not a DICOM image ({kind}); export it again, or remove it") from None


def read_header(path: str) -> Header:
    """Raises UserError."""
    with reading_dicom(path) as pydicom:
        check_not_deflated(path, pydicom)
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
        if not header.get("Modality") or not header.get("SeriesInstanceUID"):
            raise UserError(
                f"{path}: its header has no modality or no series, or was cut off; export it again, or remove it"
            )
        if header.Modality != "MR":
            return Header("files of other modalities than MR")
        if "LOCALIZER" in (header.get("ImageType") or ()):
            return Header("localisers")
        if not header.get("Rows") or "MONOCHROME" not in str(header.get("PhotometricInterpretation")):
            return Header("MR files without an image in grey")
        series, patient = (str(header.get(tag) or "") for tag in ("SeriesInstanceUID", "PatientID"))
        return Header("", series, patient, int(header.get("NumberOfFrames") or 1))


def check_not_deflated(path: str, pydicom) -> None:
    """pydicom unpacks a deflated file at once, and a small one may hold gigabytes. Raises UserError."""
    if pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID") == DEFLATED:
        raise UserError(f"{path}: deflated as a whole; export it again, as little endian")


def read_frames(path: str) -> list[Frame]:
    """The slices in a file: one, or those of an enhanced (multi-frame) image. Raises UserError."""
    with reading_dicom(path) as pydicom:
        check_not_deflated(path, pydicom)
        image = pydicom.dcmread(path)
        check_decoder(path, image, pydicom)
        shape = int(image.get("NumberOfFrames") or 1), int(image.Rows), int(image.Columns)
        if not 0 < np.prod(shape, dtype=object) <= MAX_VOXELS:
            raise UserError(f"{path}: its header asks for no pixels, or for too many; export it again, or remove it")
        pixels = image.pixel_array.reshape(shape)
        frames = [Frame(path, rescaled(image, i, pixels[i]), *geometry(path, image, i)) for i in range(len(pixels))]
    for frame in frames:
        check_finite(path, frame.pixels)
    return frames


def check_decoder(path: str, image, pydicom) -> None:
    """Raises UserError, with the command that installs it, if what decodes the pixels is not there."""
    syntax = image.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return
    name, packages = COMPRESSED.get(syntax, ("", ""))
    try:
        there = pydicom.pixels.get_decoder(syntax).is_available
    except NotImplementedError:
        there = False
    if not there and name:
        raise UserError(
            f"{path}: compressed as {name}; install what decodes it: pip install {packages}; or leave it out"
        )
    if not there:
        raise UserError(f"{path}: compressed in a way that nothing here decodes; export it again, uncompressed")


def value(image, i: int, sequence: str, keyword: str):
    """An attribute of frame i: of its functional groups, or of those that all frames share (enhanced images), or of the
    image itself; None if it is in none."""
    for groups, number in (("PerFrameFunctionalGroupsSequence", i), ("SharedFunctionalGroupsSequence", 0)):
        if groups in image and sequence in image[groups][number]:
            return image[groups][number][sequence][0].get(keyword)
    return image.get(keyword)


def rescaled(image, i: int, pixels: np.ndarray) -> np.ndarray:
    """Stored values -> intensities; negative where the lowest is to be shown white (MONOCHROME1)."""
    slope = value(image, i, "PixelValueTransformationSequence", "RescaleSlope")
    intercept = value(image, i, "PixelValueTransformationSequence", "RescaleIntercept")
    sign = -1 if image.get("PhotometricInterpretation") == "MONOCHROME1" else 1
    if slope in (None, 1) and intercept in (None, 0) and sign == 1:
        return pixels
    return sign * (pixels.astype(np.float32) * float(1 if slope is None else slope) + float(intercept or 0))


def geometry(path: str, image, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position, across and down of a Frame. Raises UserError."""
    position = value(image, i, "PlanePositionSequence", "ImagePositionPatient")
    cosines = value(image, i, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = value(image, i, "PixelMeasuresSequence", "PixelSpacing")  # between rows, between columns
    if any(found is None for found in (position, cosines, spacing)):
        raise UserError(f"{path}: does not say where it lies in space, or how large its pixels are; remove it")
    position, cosines, spacing = (np.array(found, np.float64) for found in (position, cosines, spacing))
    across, down = cosines[:3], cosines[3:]
    lengths = np.linalg.norm([across, down], axis=1)
    right = np.isfinite(np.concatenate([position, spacing])).all() and (spacing > 0).all()
    if not right or not (abs(lengths - 1) < MAX_COSINE).all() or not abs(across @ down) < MAX_COSINE:
        raise UserError(f"{path}: its rows and columns are not at right angles, or of no length; export it again")
    return position, across * spacing[1], down * spacing[0]


def volume_of(frames: list[Frame]) -> tuple[np.ndarray, np.ndarray]:
    """The slices of a series as a volume (X, Y, Z), turned to RAS+, and its affine. Raises UserError if they do not lie one
    behind the other, evenly."""
    first = frames[0]
    for frame in frames:
        same = frame.pixels.shape == first.pixels.shape
        if not same or not np.allclose([frame.across, frame.down], [first.across, first.down], atol=1e-3):
            raise UserError(f"{frame.path}: of another size or orientation than {first.path} in its series; split them")
    normal = np.cross(first.across, first.down)
    normal /= np.linalg.norm(normal)
    frames = sorted(frames, key=lambda frame: frame.position @ normal)
    steps = np.diff([frame.position @ normal for frame in frames])
    usual = np.median(steps)
    for n in np.flatnonzero((steps < 1e-3) | (abs(steps - usual) > 0.1 * usual)):
        a, b = frames[n].path, frames[n + 1].path
        if steps[n] < 1e-3:
            raise UserError(f"{b}: at the same place as {a}; split a series of several echoes or times, or remove one")
        raise UserError(f"{b}: not as far from {a} as other slices are from the next; slices are missing, add them")
    step = (frames[-1].position - frames[0].position) / (len(frames) - 1)
    if np.linalg.norm(step - normal * (step @ normal)) > MAX_COSINE * np.linalg.norm(step):
        raise UserError(f"{first.path}: its series is sheared (the gantry was tilted); resample it without")
    affine = np.eye(4)
    affine[:3] = np.column_stack([first.across, first.down, step, frames[0].position])
    affine[:2] *= -1  # to the right and to the front
    return to_ras(np.stack([frame.pixels for frame in frames]).transpose(2, 1, 0), affine)
