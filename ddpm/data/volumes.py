"""Volumes: NIfTI and HDF5 scans as axial slices, and the intensity window that makes them 8 bits.

Slices are shown as the phantom shows them: the patient's right on the image's left, anterior up.
nibabel and h5py are imported where they are used; nothing else needs them.
"""

import importlib
from pathlib import Path

import numpy as np

from ddpm import UserError
from ddpm.runtime.files import reading

MAX_VOXELS = 2**29  # 800^3; a header that asks for more is damaged, or made to exhaust memory
FREE_BYTES, PACKED = 2**24, 1100  # so much is read of any file; above, so many times what it holds (gzip: 1032)
PERCENTILES = (1.0, 99.5)


def library(name: str):
    """The module `name` (nibabel or h5py). Raises UserError, with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{name} is needed to read these files; run: pip install nibabel h5py") from None


def read_nifti(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The volume at `path` with its axes turned to RAS+ (x to the patient's right, y anterior, z superior; nothing
    is interpolated): (X, Y, Z) of any real type, and the affine (4, 4) from voxel to mm. Raises UserError."""
    nibabel = library("nibabel")
    with reading(path, "a NIfTI volume", "fetch it again"):
        image = nibabel.load(path)
        shape = image.shape
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3:
            raise UserError(f"{path}: {len(shape)} dimensions {shape}, not three; save one volume of it")
        check_header(path, shape, image.get_data_dtype(), "buif")
        image = nibabel.as_closest_canonical(image)
        volume = np.asarray(image.dataobj).reshape(image.shape[:3])
    check_finite(path, volume)
    return volume, image.affine


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
    if not 0 < np.prod([int(n) for n in shape], dtype=object) <= MAX_VOXELS:
        raise UserError(f"{path}: its header says {shape} voxels; empty, damaged or too large for a scan; remove it")


def check_finite(path, values: np.ndarray) -> None:
    if values.dtype.kind in "fc" and not np.isfinite(values).all():
        raise UserError(f"{path}: holds NaN or infinite values; replace them (by 0, say) and save it again")


def axial(volume: np.ndarray) -> np.ndarray:
    """RAS+ (X, Y, Z) -> slices (Z, H, W), feet first. Rows run from anterior to posterior, columns from the
    patient's right to the left: the phantom's (and radiology's) convention."""
    return volume[::-1, ::-1].transpose(2, 1, 0)


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
    """Slices (N, H, W) of a volume -> the share of each one's pixels that differ from the volume's lowest value.
    Where the skull has been stripped the lowest value is the background, so this is the share of brain."""
    return (slices != slices.min()).mean(axis=(1, 2))


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
