"""What formats of volumes share: labels in the order of the classes, and slices that show something, each contrast of a
scan in a window of its own."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ddpm import UserError
from ddpm.data.layout import Decoded, Findings, Request
from ddpm.data.volumes import (
    NIFTI,
    along,
    foreground_share,
    is_nifti,
    pixel_mm,
    read_nifti,
    same_grid,
    to_grey,
    window,
)

MIN_BRAIN = 0.02  # slices with a smaller share of brain are left out: the top of the head, and air
NEARLY = 0.01  # between a label in a file and a whole number; rounding leaves less, interpolation more
TOO_LITTLE_BRAIN = f"slices with less than {MIN_BRAIN:.0%} brain"


def volumes_below(request: Request, root: Path, files: list[str]) -> dict[str, str]:
    """Name (without its ending) -> path of every volume of these files below `root`. Two of one name are refused."""
    found: dict[str, str] = {}
    for file in files:
        if is_nifti(file):
            path, name = f"{root}/{file}", re.sub(NIFTI, "", file)
            if twin := found.get(name):
                request.findings.refuse(f"{path}: the same name as {os.path.basename(twin)}; remove one")
            else:
                found[name] = path
    return found


def to_labels(path: str, values: np.ndarray, classes: Sequence[str], known: Sequence[int] = ()) -> np.ndarray:
    """A mask's values -> classes 0 .. K-1, uint8 of the same shape. known: the value of each class; without, they are
    0 .. K-1, or 0 and 255 if there are two. Raises UserError."""
    values = whole(values)
    if not known:
        known = (0, 255) if len(classes) == 2 and values.max() == 255 else range(len(classes))
    labels, is_known = np.zeros(values.shape, np.uint8), np.zeros(values.shape, bool)
    for label, value in enumerate(known):
        here = values == value
        labels[here] = label
        is_known |= here
    if not is_known.all():
        unknown = [f"{value:g}" for value in np.unique(values[~is_known])[:5].tolist()]
        names = ", ".join(f"{value} {name}" for value, name in zip(known, classes, strict=True))
        raise UserError(f"{path}: the mask has labels {', '.join(unknown)} that are not known; known are {names}")
    return labels


def whole(values: np.ndarray) -> np.ndarray:
    """Values that are nearly whole numbers are those: labels that were saved as scaled integers return as 0.99998."""
    if values.dtype.kind != "f":
        return values
    rounded = np.rint(values)
    return np.where(abs(values - rounded) < NEARLY, rounded, values)


def read_labels(path: str, of: str, volume, affine, classes: Sequence[str], known: Sequence[int] = ()) -> np.ndarray:
    """The labels (X, Y, Z), uint8, of the volume `of` from a NIfTI file on its grid. classes, known: as in to_labels.
    Raises UserError."""
    return to_labels(path, read_on_grid(path, of, volume, affine), classes, known)


def read_on_grid(path: str, of: str, volume, affine) -> np.ndarray:
    """The values (X, Y, Z) of a NIfTI file on the grid of the volume `of`. Raises UserError."""
    mask, its_affine = read_nifti(path)
    if not same_grid(mask, its_affine, volume, affine):
        raise UserError(f"{path}: not on the grid of {of}; resample it to that, by nearest neighbour")
    return mask


def read_contrasts(paths: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
    """The volumes (X, Y, Z) of NIfTI files on one grid, and their affine. Raises UserError."""
    volumes, affines = zip(*map(read_nifti, paths), strict=True)
    for path, volume, affine in zip(paths, volumes, affines, strict=True):
        if not same_grid(volume, affine, volumes[0], affines[0]):
            raise UserError(f"{path}: not on the grid of {os.path.basename(paths[0])}; resample it")
    return [*volumes], affines[0]


def volume_slices(
    name: str, paths, volumes, labels, affine: np.ndarray, axis: str, findings: Findings, contrast: int = 0
) -> Iterator[Decoded]:
    """Volumes (X, Y, Z) of RAS+ on one grid, their files, and labels (X, Y, Z) or None -> an image for each slice along
    the axis and each volume. contrast: that of the first. Raises UserError for a volume of a single value."""
    cut = None if labels is None else along(labels, axis)
    slices = [along(volume, axis) for volume in volumes]
    yield from brain_slices(name, paths, slices, cut, findings, contrast, pixel_mm(affine, axis))


def brain_slices(
    name: str, paths, contrasts, labels, findings: Findings, first: int = 0, mm=None, numbers: Sequence[int] = ()
) -> Iterator[Decoded]:
    """Contrasts, each (N, H, W), numbered from `first`, their files, and labels (N, H, W) or None -> an image for each
    slice with brain and each contrast. mm: height and width of a pixel, if known; numbers: of the slices, if not 0 ..
    N-1. Raises UserError for a contrast of a single value."""
    windows = [window(path, slices) for path, slices in zip(paths, contrasts, strict=True)]
    brain = np.maximum.reduce([foreground_share(slices) for slices in contrasts]) >= MIN_BRAIN
    findings.left_out[TOO_LITTLE_BRAIN] += int((~brain).sum())
    for n in np.flatnonzero(brain):
        its_name, its_labels = f"{name} slice {numbers[n] if numbers else n}", None if labels is None else labels[n]
        for contrast, slices in enumerate(contrasts):
            image = slices[n][None]
            yield Decoded(its_name, image, its_labels, windows[contrast], first + contrast, mm, name)


def grey_slices(path: str) -> np.ndarray:
    """The axial slices with brain of a NIfTI volume, uint8 (N, H, W), in one window. Raises UserError."""
    volume, _ = read_nifti(path)
    slices = along(volume, "axial")
    return to_grey(slices[foreground_share(slices) >= MIN_BRAIN], *window(path, volume))
