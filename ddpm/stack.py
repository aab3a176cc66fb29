"""A volume as slices that a network knows, and slices as a volume again: `sample.py` of NIfTI files.

A network draws single slices, all along one axis, of one size of picture and, if that is known, one size of pixel. A Stack
is the way from a file's grid to there and back. Nothing is interpolated between slices: that neighbours agree is left to
their noise, which goes over from one to another within a few cm (`seed`).
"""

import functools
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddpm import UserError, printable
from ddpm.data.images import MAX_PIXELS, crop_or_pad, overlaps, resize, resize_labels
from ddpm.data.phantom import FOV
from ddpm.data.scans import to_labels
from ddpm.data.volumes import along, from_slices, pixel_mm, read_nifti, stem, write_nifti
from ddpm.model import Between, Model

LETTERS = {"axial": "z", "coronal": "y", "sagittal": "x"}
COHERENCE = 20.0  # mm; docs/uses.md says why
SHOWN = 12  # slices of a volume in the overview


@dataclass(frozen=True, eq=False)
class Stack:
    path: str  # the file whose grid this is
    affine: np.ndarray  # (4, 4) from voxel to mm, as if its axes were RAS+
    axis: str  # along which the network's slices lie
    shape: tuple[int, int, int]  # (N, h, w) of the slices in the file
    true_size: tuple[int, int]  # of a slice in the network's pixels ...
    size: tuple[int, int]  # ... and cropped or padded to the network's pictures

    @property
    def stem(self) -> str:
        return stem(self.path)

    @property
    def names(self) -> list[str]:
        return [f"{self.stem}_{LETTERS[self.axis]}{n:03d}" for n in range(self.shape[0])]

    @property
    def shown(self) -> list[str]:
        """The names of some slices, from end to end."""
        return [self.names[n] for n in np.unique(np.linspace(0, len(self.names) - 1, SHOWN).round().astype(int))]

    def seed(self, name: str, k: int, seed: int, apart: float) -> Between:
        """The seed of slice `name` of volume k. Every `apart` mm there is a noise of its own; in between, one goes over
        into the next."""
        step = np.linalg.norm(self.affine[:3, ("sagittal", "coronal", "axial").index(self.axis)])  # mm between slices
        place, share = divmod(self.names.index(name) * step / apart, 1)
        volume = seed, zlib.crc32(self.stem.encode(errors="surrogateescape")), k
        return Between((*volume, int(place)), (*volume, int(place) + 1), share)

    def to_network(self, image: np.ndarray) -> np.ndarray:
        """A slice (h, w), uint8 or float32 -> the picture (1, H, W) that the network sees."""
        return crop_or_pad(resize(image[None], self.true_size), self.size)

    def labels_to_network(self, labels: np.ndarray) -> np.ndarray:
        """Labels (h, w) uint8 -> (H, W), by nearest neighbour."""
        return crop_or_pad(resize_labels(labels, self.true_size), self.size)

    def region_to_network(self, region: np.ndarray) -> np.ndarray:
        """A region (h, w), not 0 where it is -> (H, W) bool: each pixel any of whose area lies in it."""
        down, across = (overlaps(*sizes) for sizes in zip(self.true_size, self.shape[1:], strict=True))
        return crop_or_pad(down @ (region != 0) @ across.T, self.size)

    def to_file(self, image: np.ndarray) -> np.ndarray:
        """A picture (1, H, W) -> the slice (h, w) in the file's pixels, 0 where the network does not look."""
        padded = crop_or_pad(image, self.true_size, mode="edge")  # with black the outermost pixels would be mixed
        return resize(padded, self.shape[1:])[0] * self.looked_at

    @functools.cached_property
    def looked_at(self) -> np.ndarray:
        """(h, w) bool: which of the file's pixels the network sees."""
        return resize(crop_or_pad(np.ones((1, *self.size), np.float32), self.true_size), self.shape[1:])[0] > 0.5

    def write(self, path: str | Path, slices: np.ndarray) -> None:
        """Slices (N, h, w) -> a NIfTI file on this grid. Raises OSError."""
        write_nifti(path, from_slices(slices, self.axis), self.path)


def stack_of(path: str, slices: np.ndarray, affine: np.ndarray, model: Model) -> Stack:
    """How slices (N, h, w) of the volume at `path` become pictures of the model: as those it was trained on did.
    affine: RAS+. Raises UserError."""
    config = model.config
    if config.image_channels != 1:
        raise UserError(f"{path}: a volume is grey, and {model.name} draws {config.image_channels} channels")
    size, shape = tuple(config.image_size), tuple(slices.shape)
    pixel = FOV / min(size) if config.data == "phantom" else config.spacing
    true_size = size  # the network's pixels have no size of their own: slices were stretched
    if pixel:
        mm = pixel_mm(affine, config.axis)
        true_size = tuple(max(1, round(n * m / pixel)) for n, m in zip(shape[1:], mm, strict=True))
        if true_size[0] * true_size[1] > MAX_PIXELS:
            found = f"voxels of {mm[0]:g} x {mm[1]:g} mm"
            raise UserError(f"{path}: {found} make slices of {true_size[0]}x{true_size[1]} pixels; mend its header")
    return Stack(path, affine, config.axis, shape, true_size, size)


def read_stack(path: str, model: Model) -> tuple[dict[str, np.ndarray], Stack]:
    """Name -> label map (H, W) for each slice of a volume of labels, and the way back. Raises UserError."""
    volume, affine = read_nifti(path)
    known = model.vocabulary
    slices = along(to_labels(path, volume, known.classes, known.values), model.config.axis)
    stack = stack_of(path, slices, affine, model)
    masks = {name: stack.labels_to_network(labels) for name, labels in zip(stack.names, slices, strict=True)}
    height, width, h, w = *stack.size, *stack.shape[1:]
    print(printable(f"{path}: {len(masks)} {stack.axis} slices of {h}x{w} drawn as {height}x{width}"))
    whole = sum(np.count_nonzero(resize_labels(labels, stack.true_size)) for labels in slices)
    if outside := whole - sum(np.count_nonzero(mask) for mask in masks.values()):
        print(
            printable(f"{path}: {outside} labelled pixels lie beside these pictures and are not drawn; crop the volume")
        )
    return masks, stack
