"""BIDS: sub-X/[ses-Y/]anat/sub-X[_ses-Y]..._{T1w,T2w,FLAIR,...}.nii[.gz]; the suffix is the contrast.

Masks are *_dseg.nii[.gz] (label maps, whose numbers a *dseg.tsv may name) or *_mask.nii[.gz] (one class each, named by
label-X), in derivatives/, beside the images or below --masks. A mask is of the images of its subject and session on whose
grid it lies. A mask of the brain (desc-brain) is no lesion, and one in another space is no mask of these images.
"""

import csv
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial

import numpy as np

from ddpm import UserError, printable
from ddpm.data.layout import Decoded, Findings, Item, Layout, Request, read_small, split_of, walk
from ddpm.data.scans import to_labels, volume_slices, volumes_below
from ddpm.data.volumes import check_library, read_nifti, same_grid, stem
from ddpm.runtime.files import reading

CONTRASTS = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "PDT2", "inplaneT1", "inplaneT2", "UNIT1", "angio")
OWN_SPACES = (None, "orig", *CONTRASTS)  # of a mask: that of an image of its session, whose grid will tell
MATCHED = ("ses", "acq", "ce", "rec", "run", "echo")  # what of a mask's name must stand in its image's


def recognise(request: Request) -> Layout | None:
    names = volumes_below(request, request.root, [file for file in request.files if "sub-" in file])
    images = {name: path for name, path in names.items() if is_image(name)}
    if not images and not is_bids(request):
        return None
    if not images:
        wanted = f"sub-*/[ses-*/]anat/*_{{{','.join(CONTRASTS[:3])},...}}.nii[.gz]"
        raise UserError(f"{request.root}: a BIDS folder, but without {wanted}; add them, or name another folder")
    request.check_flags("BIDS folders", own_masks=False)
    request.check_once({name: os.path.basename(name) for name in images})
    check_library("nibabel")
    left_out = Counter({"participants without images": len(participants(request) - set(map(subject_of, images)))})
    masks, tables = {}, []
    if request.with_masks:
        files = walk(request.masks, request.findings) if request.masks else request.files
        where = request.masks or request.root
        masks = usable(volumes_below(request, where, [file for file in files if "sub-" in file]), images, left_out)
        tables = [f"{where}/{file}" for file in files if file.endswith("dseg.tsv")] if kinds(masks) == {"dseg"} else []
    classes, values = classes_of(request, masks, tables)
    contrasts = tuple(suffix for suffix in CONTRASTS if any(entities(name)["suffix"] == suffix for name in images))
    items, of_subject = [], defaultdict(list)
    for mask in masks:
        of_subject[subject_of(mask)].append(mask)
    for name, path in images.items():
        its = [masks[mask] for mask in of_subject[subject_of(name)] if is_of(mask, name)]
        if masks and not its:
            request.findings.refuse(f"{path}: no mask (dseg or mask) of its subject and session; add it, or remove it")
        else:
            items.append(Item(name, (path,), None, subject_of(name), split_of(name), (*its, *tables)))
    read = partial(decode, contrasts=contrasts, classes=classes, values=values, axis=request.config.axis)
    about = f"a BIDS folder, {', '.join(contrasts)}, {'with' if masks else 'without'} masks"
    return Layout(about, items, read, classes, contrasts, volumes=True, left_out=+left_out, values=values)


# ---------------------------------------------------------------------------------------------------------
# Names


def entities(name: str) -> dict[str, str]:
    """{"sub": "01", "ses": "2", "suffix": "T1w"} of "sub-01/ses-2/anat/sub-01_ses-2_T1w"."""
    *pairs, suffix = os.path.basename(name).split("_")
    return dict(pair.split("-", 1) for pair in pairs if "-" in pair) | {"suffix": suffix}


def subject_of(name: str) -> str:
    return f"sub-{entities(name)['sub']}"


def is_image(name: str) -> bool:
    """Is this one of the set's own images of anatomy? Not so what was made of them, and phases."""
    *folders, last = name.split("/")
    if not last.startswith("sub-") or folders[-1:] != ["anat"] or {"derivatives", "sourcedata"} & set(folders):
        return False
    its = entities(name)
    return its["suffix"] in CONTRASTS and its.get("part", "mag") == "mag"


def is_mask(name: str) -> bool:
    return os.path.basename(name).startswith("sub-") and entities(name)["suffix"] in ("dseg", "mask")


def is_of(mask: str, image: str) -> bool:
    """Do the names say that a mask is of an image of its subject? What of MATCHED the mask does not say may be anything."""
    its, of = entities(mask), entities(image)
    space = its.get("space") in (*OWN_SPACES, of.get("space"))
    return space and all(its[key] == of.get(key) for key in MATCHED if key in its)


def is_bids(request: Request) -> bool:
    """Does it look like BIDS, whether or not there are images of anatomy?"""
    described = {"dataset_description.json", "participants.tsv"} & {os.path.basename(file) for file in request.files}
    return bool(described) and any(re.match(r"(.*/)?sub-[^/]+/", file) for file in request.files)


def participants(request: Request) -> set[str]:
    """Those that participants.tsv lists, if it is there."""
    found: set[str] = set()
    for file in request.files:
        if os.path.basename(file) == "participants.tsv":
            with request.findings.refusing():
                rows = read_tsv(request.place(file))
                found |= {row["participant_id"] for row in rows if row.get("participant_id")}
    return found


def read_tsv(path: str) -> list[dict[str, str]]:
    """The rows of a table, by the names in its first line. Raises UserError."""
    with reading(path, "a table", "fetch it again"):
        lines = io.StringIO(read_small(path).decode("utf-8-sig"), newline="")
        return list(csv.DictReader(lines, delimiter="\t"))


# ---------------------------------------------------------------------------------------------------------
# Masks


def kinds(masks: dict[str, str]) -> set[str]:
    return {entities(name)["suffix"] for name in masks}


def usable(named: dict[str, str], images: dict[str, str], left_out: Counter) -> dict[str, str]:
    """The masks among the named volumes, without those that say nothing of these images, which are counted. Raises
    UserError for a mask that may be of either of two sessions."""
    spaces = (*OWN_SPACES, *(entities(image).get("space") for image in images))
    sessions: dict[str, set] = {}
    for image in images:
        sessions.setdefault(subject_of(image), set()).add(entities(image).get("ses"))
    found = {}
    for name, path in named.items():
        if not is_mask(name):
            continue
        its = entities(name)
        if its.get("desc") == "brain":
            left_out["masks of the brain"] += 1
        elif its.get("space") not in spaces:
            left_out["masks in another space"] += 1
        elif "ses" not in its and len(sessions.get(subject_of(name), ())) > 1:
            raise UserError(f"{path}: of which session? Its subject has {len(sessions[subject_of(name)])}; add ses-Y")
        else:
            found[name] = path
    return found


def classes_of(request: Request, masks: dict[str, str], tables: list[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The classes, background first, and the value of each in a label map. Raises UserError."""
    if not masks:
        return (), ()
    if len(kinds(masks)) > 1:
        one = next(path for name, path in masks.items() if entities(name)["suffix"] == "mask")
        raise UserError(f"{one}: a mask, but there are label maps (dseg) too; name the folder of one kind by --masks")
    if kinds(masks) == {"mask"}:
        names = ("background", *sorted({class_of(name) for name in masks}))
        return names, tuple(range(len(names)))
    named: dict[int, str] = {}
    for table in tables:
        for number, name in numbered(table).items():
            if named.setdefault(number, name) != name:
                told = f"{number} is {name!r}, but {named[number]!r} in another table"
                raise UserError(f"{table}: {told}; make a number mean one label in all of them")
    named.setdefault(0, "background")
    if len(named) == 1:
        named |= {number: f"class {number}" for number in range(1, request.config.num_classes)}
    return tuple(named[number] for number in sorted(named)), tuple(sorted(named))


def class_of(mask: str) -> str:
    """What a mask is of, as its name says."""
    its = entities(mask)
    return printable(its.get("label") or its.get("desc") or "class 1")


def numbered(table: str) -> dict[int, str]:
    """Number -> name of a table with the columns index and name. Raises UserError."""
    rows = read_tsv(table)
    try:
        found = {int(row["index"]): printable(row["name"]) for row in rows}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{table}: should have the columns index, with numbers, and name; mend it") from None
    if len(found) > 255 or len(found) < len(rows):
        raise UserError(f"{table}: {len(rows)} labels, of which {len(found)} differ; 255 at most, each once: mend it")
    return found


# ---------------------------------------------------------------------------------------------------------
# Reading


def decode(items: list[Item], findings: Findings, contrasts, classes, values, axis: str) -> Iterator[Decoded]:
    """The images of a subject, each with those of its session's masks that lie on its grid."""
    before, fit = len(findings.bad), set()
    for item in items:
        with findings.refusing():
            path = item.images[0]
            volume, affine = read_nifti(path)
            labels = None
            if classes:
                on_grid = [mask for mask in item.beside if not mask.endswith(".tsv")]
                on_grid = [(mask, *read_nifti(mask)) for mask in on_grid]
                on_grid = [(mask, its) for mask, its, theirs in on_grid if same_grid(its, theirs, volume, affine)]
                fit |= {mask for mask, _ in on_grid}
                if not on_grid:
                    findings.left_out["images on another grid than the masks of their session"] += 1
                    continue
                drawn = {class_of(stem(mask)) for mask, _ in on_grid}
                for mask in item.beside:
                    if stem(mask).endswith("_mask") and class_of(stem(mask)) not in drawn:
                        remedy = "resample it, by nearest neighbour: there it would count as background"
                        raise UserError(f"{mask}: not on the grid of {path}, as other masks are; {remedy}")
                labels = joined(on_grid, classes, values)
            contrast = contrasts.index(entities(item.name)["suffix"])
            yield from volume_slices(item.name, [path], [volume], labels, affine, axis, findings, contrast)
    if classes and len(findings.bad) == before:
        for mask in sorted({mask for item in items for mask in item.beside if not mask.endswith(".tsv")} - fit):
            findings.refuse(f"{mask}: on the grid of no image of its session; resample it, by nearest neighbour")


def joined(masks: list[tuple[str, np.ndarray]], classes, values) -> np.ndarray:
    """Masks (path, (X, Y, Z)) on one grid -> labels uint8 (X, Y, Z): the label map, or one mask a class. Raises
    UserError for two label maps, or for a voxel in two classes."""
    if stem(masks[0][0]).endswith("_dseg"):
        if len(masks) > 1:
            raise UserError(f"{masks[1][0]}: a second label map of one image; name a folder of one kind by --masks")
        return to_labels(*masks[0], classes, values)
    labels = np.zeros(masks[0][1].shape, np.uint8)
    for path, values in masks:
        name = class_of(stem(path))
        inside = to_labels(path, values, ("background", name)) > 0
        if (labels[inside] > 0).any():
            raise UserError(f"{path}: voxels of it are in another mask of the image too; make each of one class")
        labels[inside] = classes.index(name)
    return labels
