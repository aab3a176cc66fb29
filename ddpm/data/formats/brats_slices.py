"""Kaggle's slices of BraTS 2020: volume_V_slice_S.h5, with image (H, W, 4) and mask (H, W, 3), a channel a class.

Which contrast is which channel is not written in the files, and accounts of it differ: so the channels keep their
numbers.
"""

import os
import re
from collections.abc import Iterator

import numpy as np

from ddpm import UserError
from ddpm.data.formats.brats import CLASSES
from ddpm.data.layout import Decoded, Findings, Item, Layout, Request, split_of, stem
from ddpm.data.scans import brain_slices
from ddpm.data.volumes import check_library, read_hdf5


def recognise(request: Request) -> Layout | None:
    matches = [re.fullmatch(r"(.*/)?volume_(\d+)_slice_(\d+)\.h5", file) for file in request.files]
    found = sorted((int(match[2]), int(match[3]), match[0]) for match in matches if match)
    if not found:
        return None
    request.check_flags("BraTS slices")
    check_library("h5py")
    request.check_once({file: os.path.basename(file) for _, _, file in found})
    items = [
        Item(stem(file), (request.place(file),), None, f"volume {volume}", split_of(file)) for volume, _, file in found
    ]
    about = "Kaggle's slices of BraTS volumes, each in four channels"
    return Layout(about, items, decode, CLASSES, tuple(f"channel {i}" for i in range(4)))


def decode(items: list[Item], findings: Findings) -> Iterator[Decoded]:
    """The slice files of one volume."""
    images, masks, numbers = {}, [], []
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
            numbers.append(int(item.name.rpartition("_")[2]))
            images[path] = image.astype(np.float32)
            masks.append((mask * np.arange(1, 4)).sum(axis=2).astype(np.uint8))
    if not images:
        return
    # [x, y] of volumes whose x runs to the patient's left and y to the back: transposed, anterior is up.
    contrasts, labels = np.stack([*images.values()]).transpose(3, 0, 2, 1), np.stack(masks).transpose(0, 2, 1)
    with findings.refusing():
        first = [next(iter(images))] * 4
        yield from brain_slices(items[0].subject, first, contrasts, labels, findings, numbers=numbers)
