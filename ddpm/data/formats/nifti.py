"""Any folder of NIfTI volumes: NAME.nii[.gz], with a mask NAME_mask or NAME_seg beside each, or NAME below --masks; or
volumes in images/ and masks in masks/ or labels/.

A first folder train/, val/ or test/ is a split; the next folder is a subject; a volume in no folder is one by itself. Of
a 4-D series those volumes are taken whose b value is 0 by NAME.bval beside it, or --volume.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial

import numpy as np

from ddpm import UserError
from ddpm.data.layout import FEW_VALUES, Decoded, Findings, Item, Layout, Request, lies_in, read_small, split_of, walk
from ddpm.data.scans import read_labels, volume_slices, volumes_below
from ddpm.data.volumes import NIFTI, check_library, read_series, volumes_in
from ddpm.runtime.files import reading
from ddpm.seeds import generator

MOST = 20  # volumes of a subject, unless the user says so
SAMPLED = 100_000  # voxels in which a scan shows that its values are many
B_0 = 50  # s/mm^2; scanners write a b of 0 as a few


def recognise(request: Request) -> Layout | None:
    below = "images/" if any(file.startswith("images/") for file in request.files) else ""
    apart = [request.root / name for name in ("masks", "labels") if below and (request.root / name).is_dir()]
    folder = request.masks or next(iter(apart), None)
    images = [file for file in request.files if file.startswith(below) and not lies_in(folder, request.place(file))]
    named = volumes_below(request, request.root / below, [file.removeprefix(below) for file in images])
    if not named:
        return None
    request.check_flags("NIfTI volumes", own_masks=False)
    check_library("nibabel")
    masks = {}
    if not folder:
        masks = by_volume({name: named.pop(name) for name in [*named] if bare(name) != name}, request)
    elif request.with_masks:
        found = volumes_below(request, folder, walk(folder, request.findings))
        masks = by_volume(found, request)
    if request.with_masks and (masks or folder):
        where = f"of that name in {folder}" if folder else "(NAME_mask or NAME_seg) beside it"
        request.refuse_lonely(named, masks, f"no mask {where}", "no volume of that name")
    items = [item_of(name, path, masks.get(name), request) for name, path in named.items()]
    if not request.config.subject_pattern:
        refuse_several([name for name in named if "/" not in name], request)
    for subject, n in Counter(item.subject for item in items).items():
        if n > MOST and not request.config.subject_pattern:
            remedy = r"name it by --subject-pattern, such as 'IXI\d+' ('^[^/]+' if the first folder is it)"
            raise UserError(f"{request.root}/{subject}: {n} volumes, more than a subject has. Whose is each? {remedy}")
    classes = ("background", *(f"class {i}" for i in range(1, request.config.num_classes))) if masks else ()
    about = f"NIfTI volumes {'with' if classes else 'without'} masks"
    about += "" if request.config.subject_pattern else f", {whose(items)}"
    read = partial(decode, classes=classes, volume=request.config.volume, axis=request.config.axis)
    return Layout(about, items, read, classes, volumes=True)


def refuse_several(names: list[str], request: Request) -> None:
    """Raises UserError if volumes in one folder are named as several of a subject are: IXI002-T1 and -T2, IXI003-T1.
    The shortest beginning of names that may be a subject is it: of P0_A_T1 and P0_B_T1, two sessions, P0."""
    pattern = "[^_-]+"
    while pairs := [found.groups() for name in names if (found := re.fullmatch(f"({pattern})[_-]+(.+)", name))]:
        firsts, lasts = (Counter(words) for words in zip(*pairs, strict=True))
        for first, last in pairs:
            if firsts[first] > 1 and lasts[last] > 1 and len(lasts) < len(firsts):
                remedy = f"say it by --subject-pattern, such as '^{pattern}' ('.+' if each is another's)"
                asked = f"is {first!r} a subject? Whose is each?"
                raise UserError(f"{request.root}: {firsts[first]} volumes {first}*, {asked} {remedy}")
        pattern += "[_-]+[^_-]+"


def bare(name: str) -> str:
    """The name of the volume that a mask is of: "a/b" of "a/b_mask"; any other name as it is."""
    return re.sub(r"_(mask|seg)$", "", name)


def by_volume(masks: dict[str, str], request: Request) -> dict[str, str]:
    """The masks under the names of their volumes. Two of one volume are refused."""
    found: dict[str, str] = {}
    for name, path in masks.items():
        if (twin := found.get(bare(name))) and request.with_masks:
            request.findings.refuse(f"{path}: a second mask of the volume of {os.path.basename(twin)}; remove one")
        else:
            found[bare(name)] = path
    return found


def item_of(name: str, path: str, mask: str | None, request: Request) -> Item:
    """The volume as an item: its split and its subject are in its name."""
    split = split_of(name)
    rest = name.removeprefix(f"{split}/")
    folder, slash, _ = rest.partition("/")
    bval = re.sub(NIFTI, ".bval", path)
    beside = (bval,) if os.path.exists(bval) else ()
    return Item(name, (path,), mask, folder if slash else rest, split, beside)


def whose(items: list[Item]) -> str:
    nested = any(item.subject != os.path.basename(item.name) for item in items)
    return "a folder a subject" if nested else "each taken for a subject of its own"


def decode(
    items: list[Item], findings: Findings, classes: tuple[str, ...], volume: int, axis: str
) -> Iterator[Decoded]:
    """Volumes, or those chosen of a series, and a file of labels 0 .. K-1 (or 0 and 255) for each."""
    for item in items:
        with findings.refusing():
            path = item.images[0]
            n = volumes_in(path)
            which = chosen(path, n, volume, item.beside)
            volumes, affine = read_series(path, which)
            labels = read_labels(item.mask, path, volumes, affine, classes) if item.mask else None
            some = volumes[tuple(generator(0).integers(volumes.shape, size=(SAMPLED, volumes.ndim)).T)]
            if 1 < (n_values := len(np.unique(some))) <= FEW_VALUES:
                remedy = "call it NAME_mask or NAME_seg, name its folder by --masks, or move it away"
                raise UserError(f"{path}: {n_values} different values, as a map of labels has; {remedy}")
            for i, values in zip(which, np.moveaxis(volumes, -1, 0), strict=True):
                name = f"{item.name} volume {i}" if n > 1 else item.name
                yield from volume_slices(name, [path], [values], labels, affine, axis, findings)


def chosen(path: str, n: int, volume: int, beside: tuple[str, ...]) -> list[int]:
    """Which of the n volumes of a series are read: `volume`, or (-1) those with b = 0. Raises UserError."""
    if n == 1 and volume > 0:
        raise UserError(f"--volume {volume}: {path} is a single volume, no series; leave it out")
    if n == 1:
        return [0]
    if volume >= n:
        raise UserError(f"--volume {volume}: {path} has {n}, from 0 to {n - 1}; name one of them")
    if volume >= 0:
        return [volume]
    if not beside:
        raise UserError(
            f"{path}: {n} volumes, and no .bval beside it; put it there, or name one by --volume I (from 0)"
        )
    with reading(beside[0], "a list of b values", "fetch it again"):
        values = [float(word) for word in read_small(beside[0]).split()]
    if len(values) != n:
        raise UserError(f"{beside[0]}: {len(values)} b values for {n} volumes; fetch it again")
    if not (found := [i for i, b in enumerate(values) if abs(b) <= B_0]):
        raise UserError(f"{beside[0]}: no volume has b = 0; name one by --volume I (from 0)")
    return found
