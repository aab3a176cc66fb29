"""Volumes: NIfTI and HDF5 scans, their slices along an axis, and the intensity window that makes them 8 bits.

Slices are shown as the phantom shows them: the patient's right on the image's left, anterior up.
nibabel and h5py are imported where they are used; nothing else needs them.
"""

import gzip
import importlib.util
import re
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddpm import UserError
from ddpm.runtime.files import reading, write_whole

MAX_VOXELS = 2**29  # 800^3; a header that asks for more is damaged, or made to exhaust memory
MAX_BYTES = 2**31
MAX_EXTENSIONS = 2**24  # bytes between a NIfTI header and the voxels
MAX_COSINE = 0.02  # between the axes of a volume: 1.1 degrees; what rounding leaves of 90 is nearer
FREE_BYTES, PACKED = 2**24, 1100  # so much is read of any file; above, so many times what it holds (gzip: 1032)
PERCENTILES = (1.0, 99.5)
NIFTI = r"(?i:\.nii(\.gz)?)\Z"  # how its name ends, in small letters or capitals


def check_library(name: str) -> None:
    """Raises UserError, as `library` does, but imports nothing: what was decoded before is opened without."""
    if importlib.util.find_spec(name) is None:
        library(name)


def library(name: str):
    """The module `name` (nibabel, h5py or pydicom). Raises UserError, with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{name} is needed to read these files; run: pip install nibabel h5py pydicom") from None


def read_nifti(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The volume at `path` with its axes turned to RAS+ (x to the patient's right, y anterior, z superior; nothing
    is interpolated): (X, Y, Z) of any real type, and the affine (4, 4) from voxel to mm. Raises UserError."""
    with reading(path, "a NIfTI volume", "fetch it again"):
        image = open_nifti(path)
        if (n := number_in(image)) > 1:
            raise UserError(f"{path}: {n} volumes in it (4 dimensions), where one is due; save one of them")
        volumes, affine = voxels_of(path, image, [0])
    return volumes[..., 0], affine


def volumes_in(path: str | Path) -> int:
    """How many volumes a NIfTI file holds: 1, if it has three dimensions. Raises UserError."""
    with reading(path, "a NIfTI volume", "fetch it again"):
        return number_in(open_nifti(path))


def number_in(image) -> int:
    return int(np.prod(image.shape[3:], dtype=int))


def read_series(path: str | Path, which: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The volumes `which` of a NIfTI file of up to four dimensions: (X, Y, Z, N), turned as in read_nifti, and their
    affine. Raises UserError."""
    with reading(path, "a NIfTI volume", "fetch it again"):
        return voxels_of(path, open_nifti(path), which)


def voxels_of(path: str | Path, image, which: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """What `read_series` gives, of an opened image."""
    if list(which) == list(range(number_in(image))):
        values = np.asarray(image.dataobj)
    else:
        values = np.stack([np.asarray(image.dataobj[:, :, :, i]) for i in which], axis=-1)
    values = values.reshape(*image.shape[:3], len(which))
    check_finite(path, values)
    return to_ras(values, image.affine)


def to_ras(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (I, J, K, ...) and their affine (4, 4) to mm -> the same, axes swapped and turned so that they run to the
    patient's right, to the front and to the head, each as nearly as one of them does."""
    nibabel = library("nibabel")
    turn = nibabel.io_orientation(affine)
    return nibabel.apply_orientation(values, turn), affine @ nibabel.orientations.inv_ornt_aff(turn, values.shape[:3])


def open_nifti(path: str | Path):
    """A nibabel image whose header has been checked; its voxels are not read yet."""
    nibabel = library("nibabel")
    nibabel.imageglobals.logger.setLevel("CRITICAL")  # what it mends in a header it would tell on stderr
    check_extensions(path)
    with warnings.catch_warnings(action="ignore"):  # likewise
        image = nibabel.load(path)
    if len(image.shape) < 3 or any(n != 1 for n in image.shape[4:]):
        raise UserError(
            f"{path}: {len(image.shape)} dimensions {image.shape}, not three or four; save one volume of it"
        )
    check_header(path, image.shape, image.get_data_dtype(), "buif")
    unpacked, size = np.prod(image.shape, dtype=object) * image.get_data_dtype().itemsize, Path(path).stat().st_size
    if unpacked > max(FREE_BYTES, PACKED * size):
        raise UserError(f"{path}: its header says {unpacked / 1e6:.0f} MB, but it has {size} bytes; fetch it again")
    check_affine(path, image.affine)
    forms = [form for form, code in (image.header.get_qform(True), image.header.get_sform(True)) if code]
    if len(forms) == 2 and nibabel.aff2axcodes(forms[0]) != nibabel.aff2axcodes(forms[1]):
        raise UserError(f"{path}: its qform and sform disagree which side is which; mend its header")
    return image


def check_extensions(path: str | Path) -> None:
    """A header may be followed by extensions, which nibabel reads at once, however long they say they are. Raises
    ValueError for more than MAX_EXTENSIONS, or if one is longer than all of them: of a packed file that may be gigabytes.
    """
    with (gzip.open if str(path).lower().endswith(".gz") else open)(path, "rb") as file:
        start = file.read(540)
        order = "<" if start[:1] in b"\x5c\x1c" else ">"  # of a number of 348 or 540, the header's size
        (size,) = struct.unpack_from(f"{order}i", start)
        (end,) = (
            struct.unpack_from(f"{order}q", start, 168) if size == 540 else struct.unpack_from(f"{order}f", start, 108)
        )
        if not end <= MAX_EXTENSIONS:
            raise ValueError(f"it says that its voxels begin after {end:.0f} bytes")
        position = size + 4
        while end - position >= 16:
            file.seek(position)
            (length,) = struct.unpack(f"{order}i", file.read(4))
            if not 8 <= length <= end - position:
                raise ValueError(f"it says that a header extension has {length} bytes")
            position += length


def check_affine(path, affine: np.ndarray) -> None:
    """Raises UserError if (4, 4) does not lay voxels out in a box whose sides are at right angles."""
    if not np.isfinite(affine).all():
        raise UserError(f"{path}: its affine holds NaN or infinite numbers; mend its header")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not lengths.all():
        raise UserError(f"{path}: its affine gives voxels no length along one axis; mend its header")
    axes = affine[:3, :3] / lengths
    if (cosine := abs(axes.T @ axes - np.eye(3)).max()) > MAX_COSINE:
        angle = np.degrees(np.arccos(min(cosine, 1)))
        raise UserError(f"{path}: its affine is sheared (axes at {angle:.0f} degrees, not 90); resample it without")


def read_hdf5(path: str | Path, name: str) -> np.ndarray | None:
    """The array `name` of an HDF5 file, or None if it has none. Raises UserError."""
    h5py = library("h5py")
    with reading(path, "an HDF5 file", "fetch it again"), h5py.File(path, "r") as file:
        if name not in file:
            return None
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise UserError(f"{path}: {name!r} is not an array; fetch the file again")
        check_header(path, dataset.shape, dataset.dtype, "buifc")
        stored = dataset.id.get_storage_size()
        if dataset.nbytes > max(FREE_BYTES, PACKED * stored):
            size = f"{dataset.nbytes / 1e6:.0f} MB in {name!r}"
            raise UserError(f"{path}: its header says {size}, but it holds {stored} bytes of it; fetch it again")
        values = dataset[()]
    check_finite(path, values)
    return values


def check_header(path, shape: tuple[int, ...], dtype: np.dtype, kinds: str) -> None:
    """Before anything is read. kinds: numpy's letters of integers, floats, complex numbers. Raises UserError."""
    if dtype.kind not in kinds:
        raise UserError(f"{path}: values of type {dtype} make no image; save it as integers or floats")
    voxels = np.prod([int(n) for n in shape], dtype=object)
    if not 0 < voxels <= min(MAX_VOXELS, MAX_BYTES // max(dtype.itemsize, 1)):
        raise UserError(f"{path}: its header says {shape} voxels; empty, damaged or too large for a scan; remove it")


def check_finite(path, values: np.ndarray) -> None:
    if values.dtype.kind in "fc" and not np.isfinite(values).all():
        raise UserError(f"{path}: holds NaN or infinite values; replace them (by 0, say) and save it again")


def along(volume: np.ndarray, axis: str) -> np.ndarray:
    """RAS+ (X, Y, Z) -> slices (N, H, W) as radiologists see them. axis: one of config.AXES.

    axial: N from the feet up, rows from anterior to posterior, columns from the patient's right to the left (as the
    phantom's). coronal: N from posterior to anterior, rows from the top down, columns from right to left. sagittal: N from
    the patient's left to the right, rows from the top down, columns from anterior to posterior.
    """
    if axis == "axial":
        return volume[::-1, ::-1].transpose(2, 1, 0)
    if axis == "coronal":
        return volume[::-1, :, ::-1].transpose(1, 2, 0)
    return volume[:, ::-1, ::-1].transpose(0, 2, 1)


def pixel_mm(affine: np.ndarray, axis: str) -> tuple[float, float]:
    """Height and width of a pixel of such slices, in mm, of a RAS+ volume's affine (4, 4)."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return {"axial": (y, x), "coronal": (z, x), "sagittal": (z, y)}[axis]


def same_grid(a: np.ndarray, its: np.ndarray, b: np.ndarray, theirs: np.ndarray) -> bool:
    """Have two volumes voxels of the same number and place? its, theirs: their affines (4, 4)."""
    return a.shape[:3] == b.shape[:3] and np.allclose(its, theirs, atol=1e-3)


def window(path, values: np.ndarray, percentiles: tuple[float, float] = PERCENTILES) -> tuple[float, float]:
    """The intensities (low, high) that become black and white: the lower percentile of all values, and the upper
    one of those above it. (Of all values the upper one would fall as the share of air around the head grows.)

    Raises UserError if the values do not differ.
    """
    low = np.percentile(values, percentiles[0])
    above = values[values > low]
    if not above.size:
        raise UserError(f"{path}: every voxel has the value {low:g}; there is no image in it, remove it")
    return float(low), float(np.percentile(above, percentiles[1]))


def to_grey(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Any real array -> uint8: low and below black, high and above white."""
    scaled = (values.astype(np.float32) - low) / max(high - low, 1e-30)
    return np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)


def foreground_share(slices: np.ndarray) -> np.ndarray:
    """Slices (N, H, W) of a volume -> the share of each one's pixels that are not background. That is one value: the one
    that more than half of the rim has (where a skull was stripped 0, also if the brain goes below it), else the lowest."""
    rim = np.concatenate([slices[:, [0, -1]].ravel(), slices[:, :, [0, -1]].ravel()])
    values, counts = np.unique(rim, return_counts=True)
    background = values[counts.argmax()] if 2 * counts.max() > rim.size else slices.min()
    return (slices != background).mean(axis=(1, 2))


def centre_crop(slices: np.ndarray, side: int) -> np.ndarray:
    """(..., H, W) -> the middle (..., h, w), neither of them over `side` or over the shorter of H and W."""
    side = min(side, *slices.shape[-2:])
    top, left = (slices.shape[-2] - side) // 2, (slices.shape[-1] - side) // 2
    return slices[..., top : top + side, left : left + side]


def magnitude(kspace: np.ndarray) -> np.ndarray:
    """Centred k-space, fully sampled, (N, H, W) or (N, coils, H, W) -> images (N, H, W): the inverse Fourier
    transform's magnitude, coils joined by the root of the sum of squares (Roemer et al. 1990).

    That k-space is centred would turn the phase of the images; their magnitude does not feel it.
    """
    images = np.fft.fftshift(np.fft.ifft2(kspace, norm="ortho"), axes=(-2, -1))
    return np.abs(images) if images.ndim == 3 else np.sqrt((np.abs(images) ** 2).sum(axis=1))


def is_nifti(path: str | Path | None) -> bool:
    return bool(re.search(NIFTI, str(path)))


def stem(path: str | Path) -> str:
    """The name of a file without .nii, .nii.gz or what else ends it."""
    return re.sub(NIFTI, "", Path(path).name) if is_nifti(path) else Path(path).stem


def from_slices(slices: np.ndarray, axis: str) -> np.ndarray:
    """The inverse of `along`: slices (N, H, W) -> RAS+ (X, Y, Z)."""
    if axis == "axial":
        return slices.transpose(2, 1, 0)[::-1, ::-1]
    if axis == "coronal":
        return slices.transpose(2, 0, 1)[::-1, :, ::-1]
    return slices.transpose(0, 2, 1)[:, ::-1, ::-1]


def write_nifti(path: str | Path, volume: np.ndarray, like: str | Path) -> None:
    """Write RAS+ (X, Y, Z) in the orientation, with the affine and on the grid of the NIfTI file `like`. Raises OSError."""
    nibabel = library("nibabel")
    model = open_nifti(like)
    ras = nibabel.orientations.axcodes2ornt("RAS")
    turn = nibabel.orientations.ornt_transform(ras, nibabel.io_orientation(model.affine))
    image = nibabel.Nifti1Image(nibabel.apply_orientation(volume, turn), model.affine)
    image.set_sform(*model.get_sform(coded=True))
    image.set_qform(*model.get_qform(coded=True))
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    if str(path).endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    write_whole(path, lambda file: file.write(content))
