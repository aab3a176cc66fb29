"""From files to slices: each function takes items of one subject (or of one split, where subjects are not told
apart) and yields their slices, with one intensity window for all of them.

A file that cannot be used is refused through `Findings`; it is never left out without being counted.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ddpm import UserError, printable
from ddpm.data.images import read_mask, read_pixels
from ddpm.data.volumes import axial, centre_crop, foreground_share, magnitude, read_hdf5, read_nifti, window

BRATS_CLASSES = ("background", "necrotic core", "oedema", "enhancing tumour")
BRATS_CONTRASTS = ("t1", "t1ce", "t2", "flair")
MIN_BRAIN = 0.02  # slices with a smaller share of brain are left out: the top of the head, and air
TOO_LITTLE_BRAIN = f"slices with less than {MIN_BRAIN:.0%} brain"
FASTMRI_CROP = 320  # pixels; the field of view of fastMRI's reference images
WINDOW_PICTURES = 200  # a window is of all pictures of a subject, or of so many, evenly spaced


@dataclass(frozen=True)
class Item:
    """What is decoded at one go: a picture, or the volumes of a scan, with the mask."""

    name: str  # unique: the path below the data folder, without its ending
    images: tuple[str, ...]  # files; plain strings, as there may be a million of them
    mask: str | None = None
    subject: str = ""  # "" where the layout does not tell
    split: str = ""  # likewise

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.images, self.mask) if self.mask else self.images


class Decoded(NamedTuple):
    name: str
    image: np.ndarray  # (C, H, W) as in the file: uint8, or, with a window, of any real type
    labels: np.ndarray | None  # (H, W) uint8
    window: tuple[float, float] | None  # the intensities that become black and white; None if it has 8 bits
    contrast: int = 0


@dataclass
class Findings:
    """Files that cannot be used: refused, or, under --skip-bad, listed and left out."""

    skip_bad: bool
    bad: list[str] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)  # what a layout leaves out by a rule of its own

    def refuse(self, message: object) -> None:
        if not self.skip_bad:
            raise UserError(f"{message} (--skip-bad leaves out all that is bad)")
        self.bad.append(printable(str(message)))

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse what a UserError inside says."""
        try:
            yield
        except UserError as error:
            self.refuse(error)


# ---------------------------------------------------------------------------------------------------------
# Pictures


def pictures(
    items: list[Item],
    findings: Findings,
    classes: tuple[str, ...],
    channels: int,
    pick: slice = slice(None),
    train: Sequence[Item] = (),
) -> Iterator[Decoded]:
    """Pictures read in so many channels, of which `pick` are kept. Where subjects are not known the window is that of
    `train`, the pictures to train on: in every split a picture is shown alike."""

    def read(path):
        return read_pixels(path, channels)[pick]

    known, low_high = depth(items if items[0].subject else train or items, read)
    for item in items:
        with findings.refusing():
            path = item.images[0]
            image = read(path)
            if (image.dtype == np.uint16) != bool(low_high):
                deep, shallow = (path, known) if image.dtype == np.uint16 else (known, path)
                beside = f"but {os.path.basename(shallow)} beside it has 8"
                raise UserError(f"{deep}: more than 8 bits a pixel, {beside}; save all in one depth")
            labels = read_mask(item.mask, classes) if item.mask else None
            if labels is not None and labels.shape != image.shape[1:]:
                sizes = [f"{array.shape[-2]}x{array.shape[-1]}" for array in (labels, image)]
                raise UserError(f"{item.mask}: {sizes[0]}, but its image is {sizes[1]}; make them equal")
            yield Decoded(item.name, image, labels, low_high)


def depth(items: Sequence[Item], read: Callable) -> tuple[str | None, tuple[float, float] | None]:
    """A picture of the depth that most have and, if that is more than 8 bits, the window of all of that depth."""

    def readable(number: int) -> list[tuple[str, np.ndarray]]:
        found = []
        for item in items[:: -(-len(items) // number)]:
            with contextlib.suppress(UserError):  # it will be met again, and refused
                found.append((item.images[0], read(item.images[0])))
        return found

    few = sorted(readable(3), key=lambda one: one[1].dtype == np.uint16)
    known, image = few[len(few) // 2] if few else (None, None)
    if image is None or image.dtype == np.uint8:
        return known, None
    values = [image.ravel() for _, image in readable(WINDOW_PICTURES) if image.dtype == np.uint16]
    return known, window(known, np.concatenate(values))


# ---------------------------------------------------------------------------------------------------------
# Scans


def brats_volumes(items: list[Item], findings: Findings) -> Iterator[Decoded]:
    """Four contrasts and their labels, each a volume."""
    for item in items:
        with findings.refusing():
            volumes, affines = zip(*map(read_nifti, item.files), strict=True)
            for path, volume, affine in zip(item.files, volumes, affines, strict=True):
                if volume.shape != volumes[0].shape or not np.allclose(affine, affines[0], atol=1e-3):
                    raise UserError(f"{path}: not on the grid of {os.path.basename(item.files[0])}; resample it")
            labels = axial(brats_labels(item.mask, volumes[-1])) if item.mask else None
            contrasts = [axial(volume) for volume in volumes[: len(item.images)]]
            yield from brain_slices(item.name, item.images, contrasts, labels, findings)


def brain_slices(name: str, paths, contrasts, labels, findings: Findings) -> Iterator[Decoded]:
    """Contrasts, each (Z, H, W), their files, and labels (Z, H, W) or None -> an image for each slice with brain and
    each contrast. Raises UserError for a contrast of a single value."""
    windows = [window(path, slices) for path, slices in zip(paths, contrasts, strict=True)]
    brain = np.maximum.reduce([foreground_share(slices) for slices in contrasts]) >= MIN_BRAIN
    findings.left_out[TOO_LITTLE_BRAIN] += int((~brain).sum())
    for z in np.flatnonzero(brain):
        of_slice = None if labels is None else labels[z]
        for contrast, slices in enumerate(contrasts):
            yield Decoded(f"{name} slice {z}", slices[z][None], of_slice, windows[contrast], contrast)


def brats_labels(path: str, values: np.ndarray) -> np.ndarray:
    """BraTS's labels 0, 1, 2, 4 -> 0 .. 3 uint8, in the order of BRATS_CLASSES. Raises UserError for others."""
    if unknown := [f"{value:g}" for value in np.unique(values).tolist() if value not in (0, 1, 2, 4)]:
        raise UserError(f"{path}: the mask has labels {', '.join(unknown[:5])}; BraTS has 0, 1, 2, 4; mend it")
    return np.where(values == 4, 3, values).astype(np.uint8)


def brats_slices(items: list[Item], findings: Findings) -> Iterator[Decoded]:
    """The slice files of one volume: image (H, W, 4), mask (H, W, 3) with a channel a class."""
    images, masks = {}, []
    for item in items:
        with findings.refusing():
            path = item.images[0]
            image, mask = read_hdf5(path, "image"), read_hdf5(path, "mask")
            for name, array, C in (("image", image, 4), ("mask", mask, 3)):
                if array is None or array.ndim != 3 or array.shape[2] != C:
                    found = "nothing" if array is None else array.shape
                    raise UserError(f"{path}: {name!r} should have the shape (H, W, {C}), not {found}; remove it")
            if mask.shape[:2] != image.shape[:2] or any(other.shape != image.shape for other in images.values()):
                raise UserError(f"{path}: its size is not that of its mask, or of its volume's slices; remove it")
            if not np.isin(mask, (0, 1)).all() or (mask.sum(axis=2) > 1).any():
                raise UserError(f"{path}: 'mask' should hold 0 and 1, and one class a pixel; remove it")
            images[path] = image.astype(np.float32)
            masks.append((mask * np.arange(1, 4)).sum(axis=2).astype(np.uint8))
    if not images:
        return
    # [x, y] of volumes whose x runs to the patient's left and y to the back: transposed, anterior is up.
    contrasts, labels = np.stack([*images.values()]).transpose(3, 0, 2, 1), np.stack(masks).transpose(0, 2, 1)
    with findings.refusing():
        yield from brain_slices(items[0].subject, [next(iter(images))] * 4, contrasts, labels, findings)


def fastmri(items: list[Item], findings: Findings) -> Iterator[Decoded]:
    """Scans of slices, cropped to their centre."""
    for item in items:
        with findings.refusing():
            slices = read_fastmri(item.images[0])
            low_high = window(item.images[0], slices)
            for i, values in enumerate(centre_crop(slices, FASTMRI_CROP)):
                yield Decoded(f"{item.name} slice {i}", values[None], None, low_high)


def read_fastmri(path: str) -> np.ndarray:
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
