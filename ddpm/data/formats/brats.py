"""BraTS volumes, whose four contrasts become four images a slice.

Until 2021 CASE/CASE_{t1,t1ce,t2,flair,seg}.nii[.gz], enhancing tumour being label 4; from 2023 CASE/CASE-{t1n,t1c,t2w,
t2f,seg}.nii[.gz], it being label 3, where CASE ends in the number of a time point (-000) of the patient before it.
"""

import os
import re
from collections.abc import Iterator
from functools import partial

from ddpm.data.layout import Decoded, Findings, Item, Layout, Request, split_of
from ddpm.data.scans import read_contrasts, to_labels, volume_slices
from ddpm.data.volumes import NIFTI, check_library

CLASSES = ("background", "necrotic core", "oedema", "enhancing tumour")
VALUES = (0, 1, 2, 4)  # in the masks; since 2023 0 to 3
CONTRASTS = ("t1", "t1ce", "t2", "flair")
SINCE_2023 = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair", "seg": "seg"}
NAME = r"(?P<case>.+)(_(?P<old>t1|t1ce|t2|flair|seg)|-(?P<new>t1n|t1c|t2w|t2f|seg))" + NIFTI


def recognise(request: Request) -> Layout | None:
    scans: dict[str, dict[str, str]] = {}
    for file in request.files:
        if match := re.fullmatch(NAME, file):
            kind = match["old"] or SINCE_2023[match["new"]]
            path, scan = request.place(file), scans.setdefault(match["case"], {})
            if twin := scan.get(kind):
                request.findings.refuse(f"{path}: the same name as {os.path.basename(twin)}; remove one")
            scan[kind] = path
    contrasts = [scan.keys() - {"seg"} for scan in scans.values()]
    if not any(len(kinds) > 2 - ("t1ce" in kinds) for kinds in contrasts):
        return None  # volumes may be called NAME_t1 and NAME_flair, or NAME_t1ce, in any folder
    request.check_flags("BraTS cases")
    check_library("nibabel")
    items = []
    for case, scan in scans.items():
        lacking = [kind for kind in (*CONTRASTS, *["seg"] * request.with_masks) if kind not in scan]
        if lacking:
            file = name_of(lacking[0], request.place(case), like=next(iter(scan.values())))
            request.findings.refuse(f"{file}: no such file; add it, or rename the one that should be it")
        else:
            images, patient = tuple(scan[kind] for kind in CONTRASTS), os.path.basename(case)
            if is_new(scan["t1"]):
                patient = re.sub(r"-\d{3}$", "", patient)
            items.append(Item(case, images, scan.get("seg"), patient, split_of(case)))
    read = partial(decode, axis=request.config.axis)
    values = () if all(is_new(item.images[0]) for item in items) else VALUES
    about = "BraTS volumes, each slice in four contrasts"
    return Layout(about, items, read, CLASSES, CONTRASTS, volumes=True, values=values)


def is_new(path: str) -> bool:
    """Is a file named as BraTS does since 2023?"""
    return bool(re.fullmatch(NAME, path)["new"])


def name_of(kind: str, case: str, like: str) -> str:
    """The file of a case that is not there, named as another of its files is."""
    since_2023 = {old: new for new, old in SINCE_2023.items()}
    return f"{case}-{since_2023[kind]}.nii" if is_new(like) else f"{case}_{kind}.nii"


def decode(items: list[Item], findings: Findings, axis: str) -> Iterator[Decoded]:
    """Four contrasts and their labels, each a volume."""
    for item in items:
        with findings.refusing():
            volumes, affine = read_contrasts(item.files)
            labels = None
            if item.mask:
                labels = to_labels(item.mask, volumes[-1], CLASSES, () if is_new(item.mask) else VALUES)
            contrasts = volumes[: len(item.images)]
            yield from volume_slices(item.name, item.images, contrasts, labels, affine, axis, findings)
