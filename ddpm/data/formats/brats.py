"""BraTS 2020: CASE/CASE_{t1,t1ce,t2,flair,seg}.nii[.gz]; the contrasts become four images a slice."""

import os
import re
from collections.abc import Iterator

import numpy as np

from ddpm import UserError
from ddpm.data.layout import Decoded, Findings, Item, Layout, Request
from ddpm.data.scans import brain_slices
from ddpm.data.volumes import axial, library, read_nifti

CLASSES = ("background", "necrotic core", "oedema", "enhancing tumour")
CONTRASTS = ("t1", "t1ce", "t2", "flair")


def recognise(request: Request) -> Layout | None:
    scans: dict[str, dict[str, str]] = {}
    for file in request.files:
        if match := re.fullmatch(r"(.+)_(t1|t1ce|t2|flair|seg)\.nii(\.gz)?", file):
            path, scan = request.place(file), scans.setdefault(match[1], {})
            if twin := scan.get(match[2]):
                request.findings.refuse(f"{path}: the same name as {os.path.basename(twin)}; remove one")
            scan[match[2]] = path
    if not any({"t1ce", "flair"} & scan.keys() for scan in scans.values()):
        return None
    request.check_flags("BraTS cases")
    library("nibabel")
    items = []
    for name, scan in scans.items():
        lacking = [kind for kind in (*CONTRASTS, *["seg"] * request.with_masks) if kind not in scan]
        if lacking:
            file = f"{request.place(name)}_{lacking[0]}.nii"
            request.findings.refuse(f"{file}: no such file; add it, or rename the one that should be it")
        else:
            images = tuple(scan[kind] for kind in CONTRASTS)
            items.append(Item(name, images, scan.get("seg"), os.path.basename(name)))
    return Layout("BraTS volumes, each slice in four contrasts", items, decode, CLASSES, CONTRASTS)


def decode(items: list[Item], findings: Findings) -> Iterator[Decoded]:
    """Four contrasts and their labels, each a volume."""
    for item in items:
        with findings.refusing():
            volumes, affines = zip(*map(read_nifti, item.files), strict=True)
            for path, volume, affine in zip(item.files, volumes, affines, strict=True):
                if volume.shape != volumes[0].shape or not np.allclose(affine, affines[0], atol=1e-3):
                    raise UserError(f"{path}: not on the grid of {os.path.basename(item.files[0])}; resample it")
            labels = axial(to_labels(item.mask, volumes[-1])) if item.mask else None
            contrasts = [axial(volume) for volume in volumes[: len(item.images)]]
            yield from brain_slices(item.name, item.images, contrasts, labels, findings)


def to_labels(path: str, values: np.ndarray) -> np.ndarray:
    """BraTS's labels 0, 1, 2, 4 -> 0 .. 3 uint8, in the order of CLASSES. Raises UserError for others."""
    if unknown := [f"{value:g}" for value in np.unique(values).tolist() if value not in (0, 1, 2, 4)]:
        raise UserError(f"{path}: the mask has labels {', '.join(unknown[:5])}; BraTS has 0, 1, 2, 4; mend it")
    return np.where(values == 4, 3, values).astype(np.uint8)
