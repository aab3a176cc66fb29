"""fastMRI's scans, FILE.h5, in one folder, or in folders whose names end in train, val and test; no masks."""

import os
from collections.abc import Iterator

import numpy as np

from ddpm import UserError
from ddpm.data.layout import SPLITS, Decoded, Findings, Item, Layout, Request, ending, parent, stem
from ddpm.data.volumes import centre_crop, library, magnitude, read_hdf5, window

CROP = 320  # pixels; the field of view of fastMRI's reference images


def recognise(request: Request) -> Layout | None:
    files = [file for file in request.files if ending(file) == ".h5"]
    if not files:
        return None
    request.check_flags("fastMRI scans")
    h5py = library("h5py")
    items, patients = [], {}
    for file in files:
        name, path, split = stem(file), request.place(file), parent(file).rpartition("_")[2]
        patient = os.path.basename(name)
        try:
            with h5py.File(path, "r") as scan:
                patient = str(scan.attrs.get("patient_id", patient))  # a patient may have several scans
        except Exception:
            pass  # it will be met again, and refused
        subject = patients.setdefault(patient, f"patient {len(patients) + 1}")  # as of DICOM: never written down
        items.append(Item(name, (path,), None, subject, split if split in SPLITS else "", drawn_by=patient))
    return Layout("fastMRI scans, without masks", items, decode, ())


def decode(items: list[Item], findings: Findings) -> Iterator[Decoded]:
    """Scans of slices, cropped to their centre."""
    for item in items:
        with findings.refusing():
            slices = read_scan(item.images[0])
            low_high = window(item.images[0], slices)
            for i, values in enumerate(centre_crop(slices, CROP)):
                yield Decoded(f"{item.name} slice {i}", values[None], None, low_high, scan=item.name)


def read_scan(path: str) -> np.ndarray:
    """A scan's slices (N, H, W): the reference image, or that of its fully sampled k-space. Raises UserError."""
    slices = read_hdf5(path, "reconstruction_rss")
    if slices is None:
        kspace = read_hdf5(path, "kspace")
        if kspace is None:
            raise UserError(f"{path}: neither reconstruction_rss nor kspace in it; not a fastMRI scan, remove it")
        if read_hdf5(path, "mask") is not None:
            raise UserError(f"{path}: its k-space is undersampled, so there is no image to learn; remove it")
        if kspace.ndim not in (3, 4):
            raise UserError(f"{path}: kspace has the shape {kspace.shape}, not (slices, [coils,] H, W); remove it")
        slices = magnitude(kspace)
    if slices.ndim != 3 or slices.dtype.kind not in "uif":
        raise UserError(f"{path}: {slices.shape} {slices.dtype}, not real slices (N, H, W); remove it")
    return slices
